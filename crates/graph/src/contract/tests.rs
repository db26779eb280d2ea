use super::*;

fn contract() -> DataContract {
    let range = |low: f64, high: f64| Domain::Range {
        minimum: vec![low],
        maximum: vec![high],
    };
    let column = |name: &str, dtype, shape: &[u64], domain| Column {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
        domain,
    };
    let per_element = Domain::Range {
        minimum: vec![0.0, -1.0],
        maximum: vec![1.0, 0.1],
    };
    DataContract {
        version: CONTRACT_VERSION,
        columns: vec![
            column("x", DType::F32, &[2], per_element),
            column("wide", DType::F64, &[], range(-1e300, 1e300)),
            column(
                "y",
                DType::I64,
                &[],
                Domain::Classes {
                    names: vec!["benign".into(), "malignant".into()],
                },
            ),
            column("age", DType::I32, &[], range(0.0, 120.0)),
            column("flag", DType::Bool, &[2], Domain::Bool),
            column("level", DType::U8, &[], range(1.0, 9.0)),
        ],
        privacy_unit: PrivacyUnit::Record,
        declared_size: 24,
    }
}

fn batch() -> Vec<Vec<u8>> {
    let floats = |values: &[f32]| {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    vec![
        floats(&[0.0, -1.0, 1.0, 0.0]),
        [1e300f64, -1e300]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        [0i64, 1].iter().flat_map(|value| value.to_le_bytes()).collect(),
        [0i32, 120].iter().flat_map(|value| value.to_le_bytes()).collect(),
        vec![0, 1, 1, 0],
        vec![1, 9],
    ]
}

fn check(batch: &[Vec<u8>]) -> Result<(), RowError> {
    contract().check_batch(2, &batch.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn broken(change: impl FnOnce(&mut Vec<Vec<u8>>)) -> RowError {
    let mut batch = batch();
    change(&mut batch);
    check(&batch).expect_err("the change breaks the contract")
}

#[test]
fn ladder_is_two_rungs_a_power_from_16_to_2_to_the_31() {
    assert_eq!(&SIZE_LADDER[..5], &[16, 24, 32, 48, 64]);
    assert_eq!(SIZE_LADDER[54], 1 << 31);
    assert!(SIZE_LADDER.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(declared_size_for(0), Some(16));
    assert_eq!(declared_size_for(24), Some(24));
    assert_eq!(declared_size_for(25), Some(32));
    assert_eq!(declared_size_for((1 << 31) + 1), None);
}

#[test]
fn canonical_json_round_trips_and_is_pinned() {
    let json = contract().to_canonical_json();
    assert_eq!(DataContract::parse_json(&json).unwrap(), contract());
    assert_eq!(DataContract::parse_json(&json).unwrap().to_canonical_json(), json);
    let text = String::from_utf8(json).unwrap();
    assert!(text.starts_with(
        r#"{"version":1,"columns":[{"name":"x","dtype":"f32","shape":[2],"domain":{"range":{"minimum":[0.0,-1.0],"maximum":[1.0,0.1]}}}"#
    ));
    assert!(text.ends_with(r#""privacy_unit":"record","declared_size":24}"#));
}

#[test]
fn unknown_and_repeated_fields_are_refused() {
    let text = String::from_utf8(contract().to_canonical_json()).unwrap();
    let unknown = text.replace("\"declared_size\"", "\"rows\":7,\"declared_size\"");
    assert!(
        DataContract::parse_json(unknown.as_bytes())
            .unwrap_err()
            .to_string()
            .contains("rows")
    );
    let twice = text.replace("\"declared_size\"", "\"declared_size\":16,\"declared_size\"");
    assert!(
        DataContract::parse_json(twice.as_bytes())
            .unwrap_err()
            .to_string()
            .contains("duplicate")
    );
    let long = vec![b' '; MAX_CONTRACT_BYTES + 1];
    assert!(matches!(
        DataContract::parse_json(&long),
        Err(ContractError::TooLong { .. })
    ));
}

#[test]
fn contracts_that_cannot_be_meant_are_refused_with_their_column() {
    type Change = fn(&mut DataContract);
    let cases: [(Change, &str); 12] = [
        (|c| c.version = 2, "version 2"),
        (|c| c.declared_size = 25, "the next one is 32"),
        (|c| c.columns.clear(), "not 0"),
        (|c| c.columns[1].name = "x".into(), "twice"),
        (|c| c.columns[1].name = "a\nb".into(), "control"),
        (|c| c.columns[0].shape = vec![0], "extent 0"),
        (|c| c.columns[0].shape = vec![u64::MAX, 2], "bytes a record"),
        (|c| c.columns[0].shape = vec![3], "one per element (3)"),
        (
            |c| {
                c.columns[3].domain = Domain::Range {
                    minimum: vec![0.5],
                    maximum: vec![2.0],
                }
            },
            "not an integer",
        ),
        (
            |c| {
                c.columns[3].domain = Domain::Range {
                    minimum: vec![2.0],
                    maximum: vec![1.0],
                }
            },
            "above its maximum",
        ),
        (
            |c| {
                c.columns[3].domain = Domain::Range {
                    minimum: vec![0.0],
                    maximum: vec![f64::NAN],
                }
            },
            "maximum",
        ),
        (|c| c.columns[4].dtype = DType::I64, "needs dtype bool"),
    ];
    for (change, expected) in cases {
        let mut contract = contract();
        change(&mut contract);
        let message = contract.validate().expect_err(expected).to_string();
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
    }
}

#[test]
fn rows_within_the_contract_pass() {
    check(&batch()).unwrap();
    contract()
        .check_batch(0, &[&[], &[], &[], &[], &[], &[]])
        .unwrap();
    assert_eq!(contract().record_bytes(), 8 + 8 + 8 + 4 + 2 + 1);
}

#[test]
fn every_kind_of_bad_row_is_named_without_its_value() {
    let nan = broken(|batch| batch[0][8..12].copy_from_slice(&f32::NAN.to_le_bytes()));
    assert_eq!(
        (nan.row, nan.reason),
        (Some(1), RowReason::NotANumber { element: 0 })
    );
    let high = broken(|batch| batch[0][4..8].copy_from_slice(&0.123_456f32.to_le_bytes()));
    assert_eq!(
        high.to_string(),
        "column \"x\", row 0: element 1 is above the maximum 0.1, the declared bound"
    );
    let infinite = broken(|batch| batch[1][..8].copy_from_slice(&f64::NEG_INFINITY.to_le_bytes()));
    assert!(matches!(
        infinite.reason,
        RowReason::OutOfRange {
            side: "below the minimum",
            ..
        }
    ));
    for label in [2i64, -1, i64::MAX, i64::MIN] {
        let class = broken(|batch| batch[2][8..].copy_from_slice(&label.to_le_bytes()));
        assert_eq!(
            (class.row, class.reason),
            (
                Some(1),
                RowReason::NotAClass {
                    element: 0,
                    classes: 2
                }
            )
        );
    }
    let age = broken(|batch| batch[3][4..].copy_from_slice(&121i32.to_le_bytes()));
    assert!(matches!(
        age.reason,
        RowReason::OutOfRange {
            side: "above the maximum",
            ..
        }
    ));
    let flag = broken(|batch| batch[4][3] = 2);
    assert_eq!(
        (flag.row, flag.reason),
        (Some(1), RowReason::NotABool { element: 1 })
    );
    let level = broken(|batch| batch[5][0] = 0);
    assert_eq!(level.column, "level");
}

#[test]
fn a_value_equal_to_its_declared_bound_passes_however_f32_rounds_it() {
    let column = Column {
        name: "x".into(),
        dtype: DType::F32,
        shape: vec![],
        domain: Domain::Range {
            minimum: vec![0.7],
            maximum: vec![28.11],
        },
    };
    let check = |value: f32| column.check_rows(1, &value.to_le_bytes());
    assert!(f64::from(28.11f32) > 28.11 && f64::from(0.7f32) < 0.7);
    assert!(check(28.11).is_ok() && check(0.7).is_ok());
    assert!(check(28.11f32.next_up()).is_err() && check(0.7f32.next_down()).is_err());
}

#[test]
fn one_bad_element_of_a_long_record_is_found_wherever_it_stands() {
    let column = Column {
        name: "x".into(),
        dtype: DType::F32,
        shape: vec![37],
        domain: Domain::Range {
            minimum: vec![-1.0],
            maximum: vec![1.0],
        },
    };
    let record = |values: [f32; 37]| values.map(f32::to_le_bytes).concat();
    let edges = record(std::array::from_fn(|at| {
        [-1.0, 1.0, -0.0, f32::MIN_POSITIVE][at % 4]
    }));
    assert_eq!(column.check_rows(2, &[edges.clone(), edges].concat()), Ok(()));
    for at in 0..37 {
        for bad in [
            1.0f32.next_up(),
            (-1.0f32).next_down(),
            f32::INFINITY,
            f32::NAN,
            -f32::NAN,
        ] {
            let mut values = [0.5; 37];
            values[at] = bad;
            let error = column.check_rows(1, &record(values)).unwrap_err();
            assert_eq!(error.row, Some(0));
            let named = match error.reason {
                RowReason::OutOfRange { element, .. } | RowReason::NotANumber { element } => element,
                other => panic!("{other}"),
            };
            assert_eq!(named, at, "{bad}");
        }
    }
}

#[test]
fn batches_of_another_size_are_refused() {
    assert!(matches!(
        broken(|batch| batch.truncate(5)).reason,
        RowReason::Columns {
            found: 5,
            expected: 6
        }
    ));
    assert!(matches!(
        broken(|batch| batch[2].truncate(15)).reason,
        RowReason::Length { found: 15, .. }
    ));
    assert!(
        contract()
            .check_batch(u64::MAX, &[&[], &[], &[], &[], &[], &[]])
            .is_err()
    );
}

#[test]
fn inputs_follow_the_order_asked_for() {
    let inputs = contract().inputs(&["y", "x"]).unwrap();
    assert_eq!(
        (inputs[0].column.as_str(), inputs[1].shape.as_slice()),
        ("y", &[2][..])
    );
    assert!(
        contract()
            .inputs(&["z"])
            .unwrap_err()
            .to_string()
            .contains("no such column")
    );
}

fn by_patient() -> DataContract {
    DataContract {
        privacy_unit: PrivacyUnit::Column(UnitColumn {
            name: "patient_id".into(),
            dtype: UnitType::I64,
            max_records: 5,
            declared_units: 16,
        }),
        ..contract()
    }
}

#[test]
fn the_json_of_a_unit_column_is_pinned_and_round_trips() {
    let json = by_patient().to_canonical_json();
    assert_eq!(DataContract::parse_json(&json).unwrap(), by_patient());
    let text = String::from_utf8(json).unwrap();
    assert!(text.ends_with(
        r#""privacy_unit":{"column":{"name":"patient_id","dtype":"i64","max_records":5,"declared_units":16}},"declared_size":24}"#
    ));
    assert_eq!(contract().declared_units(), 24);
    assert_eq!(
        (by_patient().declared_units(), by_patient().max_records_per_unit()),
        (16, 5)
    );
}

#[test]
fn unit_columns_that_cannot_be_meant_are_refused() {
    let refused = |change: fn(&mut UnitColumn)| {
        let mut contract = by_patient();
        let PrivacyUnit::Column(unit) = &mut contract.privacy_unit else {
            panic!("it has a unit column")
        };
        change(unit);
        contract.validate().unwrap_err().to_string()
    };
    assert!(refused(|unit| unit.name = "y".into()).contains("no input"));
    assert!(refused(|unit| unit.name = String::new()).contains("name"));
    assert!(refused(|unit| unit.max_records = 0).contains("max_records"));
    assert!(refused(|unit| unit.max_records = 1025).contains("1024"));
    assert!(refused(|unit| unit.declared_units = 17).contains("published"));
    assert!(refused(|unit| unit.declared_units = 32).contains("declared_size 24"));
}

#[test]
fn identifiers_are_one_more_column_of_a_batch() {
    let mut columns = batch();
    let check = |columns: &[Vec<u8>]| {
        by_patient().check_batch(2, &columns.iter().map(Vec::as_slice).collect::<Vec<_>>())
    };
    let missing = check(&columns).unwrap_err();
    assert_eq!(missing.column, "patient_id");
    columns.push([7i64, -7].iter().flat_map(|value| value.to_le_bytes()).collect());
    check(&columns).unwrap();
    assert_eq!(by_patient().record_bytes(), contract().record_bytes() + 8);
    let inputs = by_patient().inputs(&["patient_id"]).unwrap_err();
    assert!(inputs.to_string().contains("no such column"), "{inputs}");
}
