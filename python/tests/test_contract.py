"""Contracts are declared, complete and public."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bastionai import Column, ContractError, DataContract, SyntheticDataset
from bastionai.contract import default_declared_size, dtype_name
from bastionai.records import record_batches

COLUMNS = [
    Column("image", "uint8", (2, 3)),
    Column("ages", np.float32, (2,), range=([0, 18], [17, 120])),
    Column("flag", torch.bool),
    Column("count", np.int32, range=(-3, 3)),
    Column("weight", "f64", range=(0.1, 0.3)),
    Column("label", torch.int64, classes=["benign", "malignant"]),
]


def test_a_contract_survives_its_json():
    contract = DataContract(COLUMNS, declared_size=48)
    again = DataContract.from_json(contract.to_json())
    assert again == contract
    assert again.digest() == contract.digest()
    assert len(contract.digest()) == 64


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float32, "f32"), (np.float32, "f32"), (np.dtype("float64"), "f64"), ("int64", "i64"), ("u8", "u8"),
        (torch.uint8, "u8"), (np.uint8, "u8"), (bool, "bool"), (np.bool_, "bool"), (np.dtype(">i4"), None),
        (torch.float16, None), (np.uint64, None), (np.dtype("uint64"), None), ("complex64", None), (object(), None),
    ],
)  # fmt: skip
def test_dtypes_are_named_or_refused(dtype, name):
    if name is None:
        with pytest.raises(ContractError, match="cannot be stored"):
            dtype_name(dtype)
    else:
        assert dtype_name(dtype) == name


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Column("x", "float32"), "no public range"),
        (lambda: Column("x", "int64"), "classes="),
        (lambda: Column("x", "float32", range=(0, 1), classes=2), "not both"),
        (lambda: Column("x", "float32", classes=2), "integer columns"),
        (lambda: Column("x", "float32", range=(0, float("inf"))), "finite"),
        (lambda: Column("x", "float32", range=(0, float("nan"))), "finite"),
        (lambda: DataContract([], 16), "at least one column"),
        (lambda: DataContract(COLUMNS, 17), "the next one is 24"),
        (lambda: DataContract([COLUMNS[0], COLUMNS[0]], 16), "appears twice"),
        (lambda: DataContract([Column("x", "float32", range=(1, 0))], 16), "x"),
        (lambda: DataContract([Column("x", "float32", (2,), range=([0, 0, 0], 1))], 16), "x"),
        (lambda: DataContract([Column("", "bool")], 16), "name"),
        (lambda: DataContract(COLUMNS).to_json(), "declared_size"),
        (lambda: DataContract(COLUMNS).column("nope"), "no column 'nope'"),
        (lambda: DataContract.from_json("{}"), "contract"),
        (lambda: DataContract.from_json("not json"), "contract"),
    ],
)
def test_incomplete_and_contradictory_contracts_are_refused(build, says):
    with pytest.raises(ContractError, match=says):
        build()


def test_bool_and_bytes_are_their_own_public_range():
    DataContract([Column("flag", "bool"), Column("pixels", "uint8", (8, 8))], 16)


def test_the_size_ladder_rounds_up():
    assert [default_declared_size(rows) for rows in (0, 16, 17, 25, 455, 513)] == [16, 16, 24, 32, 512, 768]
    with pytest.raises(ContractError, match="2\\^31"):
        default_declared_size(2**31 + 1)


def test_representations_show_the_declaration():
    contract = DataContract(COLUMNS, 48)
    text, page = repr(contract), contract._repr_html_()
    for part in ("image: uint8[2, 3]", "2 classes (benign, malignant)", "ranges per element", "48"):
        assert part in text
    assert "<table>" in page
    assert "<script>" not in DataContract([Column("<script>", "bool")], 16)._repr_html_()


@pytest.mark.parametrize("seed", range(5))
def test_synthetic_records_meet_their_contract(seed):
    contract = DataContract(
        [*COLUMNS, Column("tiny", "float32", (50,), range=(0.1, 0.1000001))],
        declared_size=96,
    )
    dataset = SyntheticDataset(contract, 90, seed)
    assert sum(batch.rows for batch in record_batches(dataset, contract)) == 90


def test_synthetic_records_reach_both_ends_and_leave_the_global_generator_alone():
    contract = DataContract([Column("y", "int64", classes=3), Column("x", "float32", range=(-5, 5))], 16)
    before = torch.get_rng_state()
    labels, values = SyntheticDataset(contract, 2000).tensors
    assert torch.equal(before, torch.get_rng_state())
    assert set(labels.tolist()) == {0, 1, 2}
    assert values.min() < -4.5
    assert values.max() > 4.5
