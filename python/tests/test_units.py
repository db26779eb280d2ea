"""All records of a patient are one unit: declared, counted, sealed, joined over hospitals, and never shown."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from separable import CONTRACT, separable
from torch import nn
from torch.utils.data import TensorDataset

import bastionai
from bastionai import Adam, Column, ContractError, DataContract, InvalidRequest, RowError, UnitColumn
from bastionai.records import record_batches

COLUMNS = [Column("x", "float32", (2,), range=(0, 1)), Column("label", "int64", classes=["no", "yes"])]
NAMES = ["zyx-anna", "zyx-bert", "zyx-anna"]


def contract(max_records: int = 2, dtype: str = "string", units: int | None = 16) -> DataContract:
    return DataContract(COLUMNS, 16, UnitColumn("patient_id", max_records, dtype, units))


def encoded(names: list[str]) -> bytes:
    return b"".join(bytes([len(name)]) + name.encode().ljust(64, b"\0") for name in names)


def identifiers(dataset: object, declared: DataContract) -> bytes:
    return b"".join(batch.columns[2] for batch in record_batches(dataset, declared))


def test_a_contract_with_a_unit_survives_its_json():
    declared = contract()
    assert DataContract.from_json(declared.to_json()) == declared
    assert json.loads(declared.to_json())["privacy_unit"]["column"] == {
        "name": "patient_id", "dtype": "string", "max_records": 2, "declared_units": 16,
    }  # fmt: skip
    assert declared.digest() != declared.per_record().digest()
    assert DataContract.from_json(contract(dtype="int64").to_json()).privacy_unit.dtype == "int64"
    assert "at most 2 each" in repr(declared)
    assert declared.field_names == ["x", "label", "patient_id"]


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: UnitColumn("who", 2, "float32"), "neither 'string' nor 'int64'"),
        (lambda: DataContract(COLUMNS, 16, "patient_id"), "UnitColumn"),
        (lambda: DataContract(COLUMNS, 16, UnitColumn("label", 2, declared_units=16)), "no input"),
        (lambda: contract(0), "max_records"),
        (lambda: contract(units=17), "published"),
        (lambda: contract(units=24), "declared_size 16"),
        (lambda: contract(units=None).to_json(), "with_declared_units"),
        (lambda: DataContract(COLUMNS, 16).with_declared_units(16), "unit of this contract is the record"),
    ],
)
def test_units_that_cannot_be_meant_are_refused(build, says):
    with pytest.raises(ContractError, match=says):
        build()


ROWS = [(torch.zeros(2), 0), (torch.ones(2), 1), (torch.zeros(2), 1)]
STRINGS = {
    "tuples": [(*row, name) for row, name in zip(ROWS, NAMES, strict=True)],
    "dicts": [{"patient_id": f" {n}\t", "x": x, "label": y} for (x, y), n in zip(ROWS, NAMES, strict=True)],
    "arrow": pa.table({"patient_id": NAMES, "x": pa.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), "label": [0, 1, 1]}),
}


@pytest.mark.parametrize("dataset", STRINGS.values(), ids=STRINGS.keys())
def test_names_become_canonical_bytes_beside_the_columns(dataset):
    if isinstance(dataset, pa.Table):
        dataset = dataset.set_column(1, "x", dataset["x"].cast(pa.list_(pa.float32())))
    assert identifiers(dataset, contract()) == encoded(NAMES)


def test_integers_come_from_tensors_numpy_and_python():
    expected = np.array([7, -7, 7], "<i8").tobytes()
    x, label = torch.zeros(3, 2), torch.tensor([0, 1, 1])
    tensors = TensorDataset(x, label, torch.tensor([7, -7, 7]))
    items = [(*row, who) for row, who in zip(ROWS, [7, np.int32(-7), torch.tensor(7)], strict=True)]
    for dataset in (tensors, items):
        assert identifiers(dataset, contract(dtype="int64")) == expected


@pytest.mark.parametrize(
    ("names", "declared", "row", "says"),
    [
        ([*NAMES, "zyx-anna"], contract(), 3, "more than 2 records"),
        ([f"zyx-{i}" for i in range(17)], contract().with_declared_size(24), 16, "more than 16 units"),
        (["zyx-anna", "  "], contract(), 1, "not an identifier"),
        (["zyx-anna", "z" * 65], contract(), 1, "not an identifier"),
        (["zyx-anna", None], contract(), 1, "no identifier of dtype string"),
        (["zyx-anna", 7], contract(), 1, "dtype='int64'"),
        ([1, "zyx-anna"], contract(dtype="int64"), 1, "dtype='string'"),
        ([1, 2**63], contract(dtype="int64"), 1, "does not fit"),
        ([1, True], contract(dtype="int64"), 1, "no identifier of dtype int64"),
    ],
)
def test_a_bad_identifier_is_named_by_its_row_and_never_shown(names, declared, row, says):
    dataset = [(*ROWS[index % 3], name) for index, name in enumerate(names)]
    with pytest.raises(RowError, match=says) as raised:
        list(record_batches(dataset, declared))
    assert (raised.value.row, raised.value.column) == (row, "patient_id")
    assert "zyx" not in str(raised.value)


def hospital(seed: int, patients: list[int]) -> TensorDataset:
    x, label = separable(len(patients), seed).tensors
    return TensorDataset(x, label, torch.tensor(patients))


def by_patient(max_records: int) -> DataContract:
    return DataContract(CONTRACT.columns, 512, UnitColumn("patient_id", max_records, "int64"))


@pytest.mark.e2e
def test_patients_of_two_hospitals_are_trained_on_and_accounted_as_one(connect, capfd):
    hospitals = {"ward-north": [i % 150 for i in range(450)], "ward-south": [100 + i % 120 for i in range(480)]}
    for seed, (name, patients) in enumerate(hospitals.items()):
        uploaded = connect(name).RemoteDataset(
            hospital(seed, patients), 6.0, name, delta=1e-4, contract=by_patient(4), may_train="anyone"
        )
        assert uploaded.contract.declared_units == (192 if name == "ward-north" else 128)
        assert "protected" in repr(uploaded)
    assert "declared_units=192" in capfd.readouterr().err
    client = connect("scientist")
    wards = sorted((d for d in client.list_remote_datasets() if d.name in hospitals), key=lambda d: d.name)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    options = {"loss": "cross_entropy", "optimizer": Adam(lr=0.02), "batch_size": 64}
    both = client.RemoteLearner(model, wards, records_per_unit=2, **options)
    assert both.declared_size == 192 + 128
    quote = both.price(steps=60, eps=4.0)
    joined = "per patient_id, joined over datasets ward-north, ward-south"
    assert [charge.privacy_unit for charge in quote.charges] == [joined, joined]
    assert joined in str(quote)
    assert quote.physical_batch_size % 2 == 0
    assert quote.sample_rate == pytest.approx(64 / 320)
    run = both.fit(steps=60, eps=4.0, progress=False)
    assert run.state == "succeeded"
    receipt = both.receipt
    receipt.verify(allow_simulated=True, ledger_key=client.attestation.ledger_key)
    assert [dataset["privacy_unit"] for dataset in receipt.statement["datasets"]] == [joined, joined]
    assert joined in str(receipt)
    x, y = separable(400, seed=9).tensors
    assert float((both.get_model()(x).argmax(1) == y).float().mean()) > 0.7
    assert both.rehearse(steps=3, progress=False).state == "succeeded"
    with pytest.raises(bastionai.BastionError, match="counts records"):
        both.price_test("accuracy", eps=1.0, dataset=wards[0])
    with pytest.raises(bastionai.BastionError, match="from 1 to 8"):
        client.RemoteLearner(model, wards, records_per_unit=9, **options).price(steps=60, eps=4.0)


@pytest.mark.e2e
def test_a_patient_above_the_cap_is_the_owners_error_and_nothing_is_kept(connect):
    owner = connect("ward-east")
    with pytest.raises(RowError, match="more than 3 records") as raised:
        owner.RemoteDataset(
            hospital(5, [77_001] * 4 + [2] * 3), 1.0, "ward-east", contract=by_patient(3), verbose=False
        )
    assert raised.value.row == 3
    assert "77001" not in str(raised.value)
    assert not any(dataset.name == "ward-east" for dataset in owner.list_remote_datasets())
    with pytest.raises(InvalidRequest, match="counted record by record"):
        owner.RemoteDataset(
            hospital(5, [1, 2, 3]), 1.0, "ward-east", contract=by_patient(3), test_fraction=0.3, verbose=False
        )
