//! Hostile archives: whatever the bytes, the reader answers with an error or a program, never a panic.

use super::crc::crc32;
use super::{Archive, ArchiveError, Limits};
use proptest::prelude::*;

const CLASSIFIER: &[u8] = include_bytes!("../../tests/fixtures/classifier.pt2");
const SMALLEST: &[u8] = include_bytes!("../../tests/fixtures/cross_entropy.pt2");
const BROADCAST: &[u8] = include_bytes!("../../tests/fixtures/broadcast.pt2");

/// One member to write.
#[derive(Clone)]
struct Member {
    name: String,
    data: Vec<u8>,
    method: u16,
}

/// The members of a stored archive, by its central directory.
fn members(archive: &[u8]) -> Vec<Member> {
    let u16_at = |at: usize| usize::from(u16::from_le_bytes([archive[at], archive[at + 1]]));
    let u32_at = |at: usize| u32::from_le_bytes(archive[at..at + 4].try_into().unwrap()) as usize;
    let end = archive.len() - 22;
    let mut at = u32_at(end + 16);
    let mut members = Vec::new();
    for _ in 0..u16_at(end + 10) {
        let (name_length, extra) = (u16_at(at + 28), u16_at(at + 30) + u16_at(at + 32));
        let name = String::from_utf8(archive[at + 46..at + 46 + name_length].to_vec()).unwrap();
        let (length, local) = (u32_at(at + 24), u32_at(at + 42));
        let start = local + 30 + u16_at(local + 26) + u16_at(local + 28);
        members.push(Member {
            name,
            data: archive[start..start + length].to_vec(),
            method: 0,
        });
        at += 46 + name_length + extra;
    }
    members
}

/// Writes a stored archive with right checksums.
fn write(members: &[Member]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for member in members {
        let offset = bytes.len() as u32;
        let mut common = Vec::new();
        common.extend(20u16.to_le_bytes());
        common.extend(0u16.to_le_bytes());
        common.extend(member.method.to_le_bytes());
        common.extend([0; 4]);
        common.extend(crc32(&member.data).to_le_bytes());
        common.extend((member.data.len() as u32).to_le_bytes());
        common.extend((member.data.len() as u32).to_le_bytes());
        common.extend((member.name.len() as u16).to_le_bytes());
        common.extend(0u16.to_le_bytes());
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&common);
        bytes.extend(member.name.as_bytes());
        bytes.extend(&member.data);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(member.name.as_bytes());
    }
    let start = bytes.len() as u32;
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend((members.len() as u16).to_le_bytes());
    bytes.extend((members.len() as u16).to_le_bytes());
    bytes.extend((directory.len() as u32).to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend([0; 2]);
    bytes
}

fn read(bytes: &[u8]) -> Result<Archive, ArchiveError> {
    Archive::read(bytes, &Limits::default())
}

/// The message of the error after changing the members.
fn refused(change: impl FnOnce(&mut Vec<Member>)) -> String {
    let mut changed = members(CLASSIFIER);
    change(&mut changed);
    read(&write(&changed))
        .expect_err("the change makes it unreadable")
        .to_string()
}

/// The message after replacing text in a JSON member.
fn refused_json(path: &str, from: &str, to: &str) -> String {
    refused(|members| {
        let member = members
            .iter_mut()
            .find(|member| member.name.ends_with(path))
            .unwrap();
        let text = String::from_utf8(member.data.clone()).unwrap();
        assert!(text.contains(from), "{path} has no {from}");
        member.data = text.replacen(from, to, 1).into_bytes();
    })
}

const MODEL: &str = "models/model.json";
const WEIGHTS: &str = "data/weights/model_weights_config.json";

#[test]
fn a_rewritten_archive_still_reads() {
    let archive = read(&write(&members(CLASSIFIER))).unwrap();
    assert_eq!(archive.program().parameters().len(), 6);
    assert_eq!(archive.parameter_bytes(0).unwrap().len(), 16 * 8 * 4);
    assert_eq!(
        archive.constant_bytes(1).unwrap(),
        [4.0f32; 8].map(f32::to_le_bytes).concat()
    );
    assert!(archive.parameter_bytes(6).is_none());
}

#[test]
fn odd_members_are_refused() {
    let add = |name: &str, data: &[u8]| {
        let member = Member {
            name: name.into(),
            data: data.to_vec(),
            method: 0,
        };
        refused(|members| members.push(member))
    };
    assert!(add("archive/models/model.json", b"{}").contains("appears twice"));
    assert!(add("archive/../x", b"").contains("not a plain relative path"));
    assert!(add("/archive/x", b"").contains("not a plain relative path"));
    assert!(add("archive/data\\weights\\w", b"").contains("not a plain relative path"));
    assert!(add("other/byteorder", b"little").contains("second root folder"));
    assert!(add("byteorder", b"little").contains("outside of the root folder"));
    assert!(add("archive/models/other.json", b"{}").contains("no place"));
    assert!(add("archive/data/weights/deep/x", b"").contains("no place"));
    assert!(refused(|members| members[0].method = 8).contains("compressed"));
    assert!(refused(|members| members.retain(|member| !member.name.ends_with(MODEL))).contains("is missing"));
    assert!(
        refused(|members| members.retain(|member| !member.name.ends_with("weight_0"))).contains("is missing")
    );
    let big_endian = refused(|members| {
        members
            .iter_mut()
            .find(|member| member.name.ends_with("byteorder"))
            .unwrap()
            .data = b"big".to_vec();
    });
    assert!(big_endian.contains("little-endian"), "{big_endian}");
}

#[test]
fn the_pickled_sample_inputs_are_never_opened() {
    let mut with_pickle = members(CLASSIFIER);
    let pickle = Member {
        name: "archive/data/sample_inputs/model.pt".into(),
        data: b"\x80\x02cos\nsystem\n".to_vec(),
        method: 0,
    };
    with_pickle.push(pickle);
    read(&write(&with_pickle)).unwrap();
}

#[test]
fn a_pickled_tensor_is_refused_by_name() {
    let text = refused_json(WEIGHTS, "\"use_pickle\": false", "\"use_pickle\": true");
    assert!(text.contains("stored as a pickle"), "{text}");
}

#[test]
fn repeated_json_keys_are_refused() {
    let twice = refused_json(
        MODEL,
        "\"target\": ",
        "\"target\": \"torch.ops.aten.t.default\", \"target\": ",
    );
    assert!(twice.contains("\"target\" appears twice"), "{twice}");
    let parameters = refused_json(
        WEIGHTS,
        "\"requires_grad\": true",
        "\"requires_grad\": false, \"requires_grad\": true",
    );
    assert!(parameters.contains("appears twice"), "{parameters}");
    let ignored = refused_json(
        MODEL,
        "\"range_constraints\": {",
        "\"range_constraints\": {\"a\": 1, \"a\": 2, ",
    );
    assert!(ignored.contains("appears twice"), "{ignored}");
}

#[test]
fn other_schema_majors_are_refused() {
    let text = refused_json(MODEL, "\"major\": 8", "\"major\": 9");
    assert!(text.contains("export schema 9."), "{text}");
}

#[test]
fn values_are_defined_once_and_before_use() {
    let twice = refused_json(
        MODEL,
        "{\"as_tensor\": {\"name\": \"linear_1\"}}], \"metadata\"",
        "{\"as_tensor\": {\"name\": \"linear\"}}], \"metadata\"",
    );
    assert!(twice.contains("\"linear\" is defined twice"), "{twice}");
    let undefined = refused_json(
        MODEL,
        "{\"name\": \"self\", \"arg\": {\"as_tensor\": {\"name\": \"x\"}}",
        "{\"name\": \"self\", \"arg\": {\"as_tensor\": {\"name\": \"gather\"}}",
    );
    assert!(undefined.contains("before it is defined"), "{undefined}");
    let argument = refused_json(
        MODEL,
        "{\"name\": \"other\", \"arg\": {\"as_tensor\": {\"name\": \"b_low\"}}",
        "{\"name\": \"self\", \"arg\": {\"as_tensor\": {\"name\": \"b_low\"}}",
    );
    assert!(argument.contains("\"self\" twice"), "{argument}");
    let outputs = refused_json(
        MODEL,
        "\"outputs\": [{\"as_tensor\": {\"name\": \"neg\"}}], \"nodes\"",
        "\"outputs\": [{\"as_tensor\": {\"name\": \"squeeze\"}}], \"nodes\"",
    );
    assert!(
        outputs.contains("outputs of the graph are not those of its signature"),
        "{outputs}"
    );
}

#[test]
fn views_outside_of_their_storage_are_refused() {
    for (from, to) in [
        (
            "\"storage_offset\": {\"as_int\": 0}",
            "\"storage_offset\": {\"as_int\": 1}",
        ),
        (
            "\"storage_offset\": {\"as_int\": 0}",
            "\"storage_offset\": {\"as_int\": 9223372036854775807}",
        ),
        (
            "\"strides\": [{\"as_int\": 8}, {\"as_int\": 1}]",
            "\"strides\": [{\"as_int\": 9}, {\"as_int\": 1}]",
        ),
        (
            "\"strides\": [{\"as_int\": 8}, {\"as_int\": 1}]",
            "\"strides\": [{\"as_int\": 9223372036854775807}, {\"as_int\": 1}]",
        ),
        (
            "\"sizes\": [{\"as_int\": 16}, {\"as_int\": 8}]",
            "\"sizes\": [{\"as_int\": 9223372036854775807}, {\"as_int\": 8}]",
        ),
    ] {
        let text = refused_json(WEIGHTS, from, to);
        assert!(text.contains("outside of its stored bytes"), "{to}: {text}");
    }
    let negative = refused_json(
        WEIGHTS,
        "\"strides\": [{\"as_int\": 8}",
        "\"strides\": [{\"as_int\": -8}",
    );
    assert!(negative.contains("negative"), "{negative}");
    let overlapping = refused_json(
        WEIGHTS,
        "\"strides\": [{\"as_int\": 8}, {\"as_int\": 1}]",
        "\"strides\": [{\"as_int\": 0}, {\"as_int\": 1}]",
    );
    assert!(overlapping.contains("share memory"), "{overlapping}");
    let half = refused_json(WEIGHTS, "\"dtype\": 7", "\"dtype\": 13");
    assert!(half.contains("dtype without rules"), "{half}");
}

#[test]
fn partly_shared_trainable_storage_is_refused() {
    let text = refused_json(
        WEIGHTS,
        "\"path_name\": \"weight_1\"",
        "\"path_name\": \"weight_0\"",
    );
    assert!(text.contains("shares part of its memory"), "{text}");
}

#[test]
fn strided_views_are_made_contiguous() {
    let mut changed = members(CLASSIFIER);
    let config = changed
        .iter_mut()
        .find(|member| member.name.ends_with(WEIGHTS))
        .unwrap();
    let text = String::from_utf8(config.data.clone()).unwrap();
    let from = "\"strides\": [{\"as_int\": 8}, {\"as_int\": 1}]";
    config.data = text
        .replacen(from, "\"strides\": [{\"as_int\": 1}, {\"as_int\": 16}]", 1)
        .into_bytes();
    let plain = read(&write(&members(CLASSIFIER))).unwrap();
    let transposed = read(&write(&changed)).unwrap();
    let at =
        |archive: &Archive, element: usize| archive.parameter_bytes(0).unwrap()[element * 4..][..4].to_vec();
    for row in 0..16 {
        for column in 0..8 {
            assert_eq!(at(&transposed, row * 8 + column), at(&plain, column * 16 + row));
        }
    }
}

#[test]
fn tied_parameters_are_one_with_all_their_names() {
    let archive = read(BROADCAST).unwrap();
    let tied = archive
        .program()
        .parameters()
        .iter()
        .find(|parameter| parameter.names.len() == 2)
        .unwrap();
    assert_eq!(tied.names, ["encode.weight", "tied.weight"]);
}

#[test]
fn limits_are_kept() {
    let with = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        Archive::read(CLASSIFIER, &limits).unwrap_err().to_string()
    };
    assert!(with(|limits| limits.max_archive_bytes = 100).contains("archive bytes"));
    assert!(with(|limits| limits.max_json_bytes = 100).contains("JSON"));
    assert!(with(|limits| limits.max_members = 3).contains("members"));
    assert!(with(|limits| limits.max_nodes = 3).contains("graph nodes"));
    assert!(with(|limits| limits.max_tensor_bytes = 600).contains("bytes of tensors"));
}

#[test]
fn deep_nesting_is_an_error() {
    let deep = format!(
        "\"guards_code\": {}{}, \"range_constraints\"",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let text = refused_json(MODEL, "\"range_constraints\"", &deep);
    assert!(text.contains("recursion limit"), "{text}");
}

#[test]
fn every_prefix_and_every_flipped_byte_is_an_error_or_a_program() {
    let mut bytes = SMALLEST.to_vec();
    for position in 0..bytes.len() {
        assert!(read(&SMALLEST[..position]).is_err(), "cut at {position}");
        let mask = [0x01, 0x80, 0xFF][position % 3];
        bytes[position] ^= mask;
        let _ = read(&bytes);
        bytes[position] ^= mask;
    }
}

/// Reads, and checks what reads: neither may panic.
fn survive(bytes: &[u8]) {
    if let Ok(archive) = read(bytes)
        && let Ok(inputs) = archive.example_inputs()
        && let Ok(graph) = crate::check(&archive, &inputs)
    {
        assert_eq!(
            crate::typed::TypedGraph::from_bytes(&graph.to_bytes()).unwrap(),
            graph
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_survive(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        survive(&bytes);
    }

    /// Numbers and words of the JSON changed, with right checksums, so that the change reaches the parsers.
    #[test]
    fn edited_json_survives(edits in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..9), 1..6), weights in any::<bool>()) {
        let mut changed = members(CLASSIFIER);
        let path = if weights { WEIGHTS } else { MODEL };
        let member = changed.iter_mut().find(|member| member.name.ends_with(path)).unwrap();
        let text = String::from_utf8(member.data.clone()).unwrap();
        let mut tokens: Vec<String> = text.split_inclusive([' ', ',', '{', '}', '[', ']', ':']).map(str::to_owned).collect();
        for (place, what) in edits {
            let place = place.index(tokens.len());
            let end = tokens[place].chars().last().filter(|last| " ,{}[]:".contains(*last)).map(String::from).unwrap_or_default();
            tokens[place] = match what {
                0 => format!("-1{end}"),
                1 => format!("9223372036854775807{end}"),
                2 => format!("null{end}"),
                3 => format!("0{end}"),
                4 => format!("\"x\"{end}"),
                5 => end,
                6 => tokens[(place * 7) % tokens.len()].clone(),
                7 => format!("1e300{end}"),
                _ => format!("true{end}"),
            };
        }
        member.data = tokens.concat().into_bytes();
        survive(&write(&changed));
    }
}
