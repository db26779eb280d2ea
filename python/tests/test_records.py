"""Any PyTorch dataset or Arrow stream → canonical bytes, checked before anything is sent."""

from __future__ import annotations

import collections

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from bastionai import Column, ContractError, DataContract, RowError
from bastionai.detect import detect_columns, resolve_contract
from bastionai.records import record_batches, rows_per_batch

CONTRACT = DataContract(
    [Column("x", "float32", (2,), range=(0, 1)), Column("label", "int64", classes=["no", "yes"])], declared_size=16
)
X = [[0.0, 0.25], [0.5, 0.75], [1.0, 0.125]]
Y = [0, 1, 1]


def joined(dataset: object, contract: DataContract = CONTRACT) -> list[bytes]:
    batches = list(record_batches(dataset, contract))
    return [b"".join(batch.columns[i] for batch in batches) for i in range(len(contract.columns))]


EXPECTED = [np.asarray(X, "<f4").tobytes(), np.asarray(Y, "<i8").tobytes()]


class Rows(Dataset):
    def __init__(self, rows: list) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> object:
        return self.rows[index]


class Stream(IterableDataset):
    def __init__(self, rows: list) -> None:
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


Pair = collections.namedtuple("Pair", ["features", "target"])
TUPLES = [(torch.tensor(x), torch.tensor(y)) for x, y in zip(X, Y, strict=True)]
DATASETS = {
    "tensor dataset": TensorDataset(torch.tensor(X), torch.tensor(Y)),
    "subset": Subset(TensorDataset(torch.tensor([*X, [9.0, 9.0]]), torch.tensor([*Y, 7])), [0, 1, 2]),
    "tuples of tensors": Rows(TUPLES),
    "lists": Rows([list(row) for row in TUPLES]),
    "named tuples": Rows([Pair(*row) for row in TUPLES]),
    "python numbers": Rows(list(zip(X, Y, strict=True))),
    "numpy": Rows([(np.asarray(x, np.float32), np.int64(y)) for x, y in zip(X, Y, strict=True)]),
    "narrower ints": Rows([(torch.tensor(x), torch.tensor(y, dtype=torch.uint8)) for x, y in zip(X, Y, strict=True)]),
    "class names": Rows([(torch.tensor(x), ["no", "yes"][y]) for x, y in zip(X, Y, strict=True)]),
    "dicts": Rows([{"label": y, "x": torch.tensor(x), "secret": "never sent"} for x, y in zip(X, Y, strict=True)]),
    "stream of tuples": Stream(TUPLES),
    "stream of dicts": Stream([{"x": x, "label": y} for x, y in zip(X, Y, strict=True)]),
    "plain list": TUPLES,
    "big endian": Rows([(np.asarray(x, ">f4"), np.asarray(y, ">i8")) for x, y in zip(X, Y, strict=True)]),
    "not contiguous": Rows([(torch.tensor([x, x]).t()[:, 0], y) for x, y in zip(X, Y, strict=True)]),
    "needs grad": Rows([(torch.tensor(x, requires_grad=True), y) for x, y in zip(X, Y, strict=True)]),
}


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS.keys())
def test_datasets_become_canonical_bytes(dataset):
    assert joined(dataset) == EXPECTED


def arrow(x: pa.Array, label: pa.Array) -> pa.Table:
    return pa.table({"secret": ["a", "b", "c"], "label": label, "x": x})


FIXED = pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(X, "f4").reshape(-1)), 2)
ARROW = {
    "fixed lists": arrow(FIXED, pa.array(Y)),
    "lists": arrow(pa.array(X, pa.list_(pa.float32())), pa.array(Y, pa.int8())),
    "large lists": arrow(pa.array(X, pa.large_list(pa.float32())), pa.array(Y)),
    "text labels": arrow(FIXED, pa.array(["no", "yes", "yes"])),
    "dictionary labels": arrow(FIXED, pa.array(["no", "yes", "yes"]).dictionary_encode()),
    "fixed shape tensors": arrow(
        pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [2]), FIXED), pa.array(Y)
    ),
    "many chunks": pa.concat_tables([arrow(FIXED, pa.array(Y)).slice(i, 1) for i in range(3)]),
    "sliced": pa.concat_tables([arrow(FIXED, pa.array(Y))] * 2).slice(3, 3),
}


@pytest.mark.parametrize("table", ARROW.values(), ids=ARROW.keys())
def test_arrow_streams_become_canonical_bytes(table):
    assert joined(table) == EXPECTED


def test_nested_lists_of_more_axes():
    contract = DataContract([Column("x", "int64", (2, 3), range=(0, 99))], 16)
    values = np.arange(24).reshape(4, 2, 3)
    table = pa.table({"x": pa.array(values.tolist())})
    assert joined(table, contract) == [values.astype("<i8").tobytes()]


def test_scalars_of_every_dtype_through_arrow():
    contract = DataContract(
        [
            Column("b", "bool"),
            Column("u", "uint8"),
            Column("i", "int32", range=(-9, 9)),
            Column("d", "f64", range=(0, 1)),
        ],
        16,
    )
    table = pa.table({
        "b": [True, False], "u": pa.array([1, 255], pa.uint8()), "i": pa.array([-9, 9], pa.int32()), "d": [0.5, 1.0]
    })  # fmt: skip
    expected = [b"\x01\x00", b"\x01\xff", np.asarray([-9, 9], "<i4").tobytes(), np.asarray([0.5, 1.0], "<f8").tobytes()]
    assert joined(table, contract) == expected


def test_large_datasets_come_in_batches_that_fit_a_message():
    contract = DataContract([Column("x", "float32", (1000,), range=(0, 1))], 4096)
    batches = list(record_batches(TensorDataset(torch.rand(3000, 1000)), contract))
    assert len(batches) > 5
    assert all(len(batch.columns[0]) <= 1 << 20 for batch in batches)
    assert sum(batch.rows for batch in batches) == 3000
    assert rows_per_batch(DataContract([Column("x", "f32", (4000, 4000), range=(0, 1))], 16)) == 1


BAD_ROWS = [
    ("value too large", [*TUPLES, (torch.tensor([0.0, 2.0]), 0)], 3, "x", "above"),
    ("NaN", [*TUPLES, (torch.tensor([0.0, float("nan")]), 0)], 3, "x", "NaN"),
    ("no such class", [*TUPLES, (torch.zeros(2), 2)], 3, "label", "class"),
    ("no such class name", [*TUPLES, (torch.zeros(2), "maybe")], 3, "label", "declared classes"),
    ("wrong shape", [*TUPLES, (torch.zeros(3), 0)], 3, "x", "pad or reshape"),
    ("scalar expected", [(torch.zeros(2), torch.zeros(1, dtype=torch.int64))], 0, "label", "shape"),
    ("float64 narrows", [(torch.zeros(2, dtype=torch.float64), 0)], 0, "x", "without loss"),
    ("float label", [(torch.zeros(2), torch.tensor(0.0))], 0, "label", "without loss"),
    ("python float label", [(torch.zeros(2), 1.0)], 0, "label", "float"),
    ("ragged numbers", [([0.0, [1.0]], 0)], 0, "x", "does not fit"),
    ("missing key", [{"x": torch.zeros(2)}], 0, "label", "no field"),
    ("too few fields", [(torch.zeros(2),)], 0, None, "1 fields"),
    ("too many fields", [(torch.zeros(2), 0, 1)], 0, None, "3 fields"),
    ("an object", [(torch.zeros(2), object())], 0, "label", "neither tensor nor number"),
    ("None", [(torch.zeros(2), None)], 0, "label", "neither tensor nor number"),
]


@pytest.mark.parametrize("case", BAD_ROWS, ids=[case[0] for case in BAD_ROWS])
def test_bad_rows_are_named_and_their_values_are_not(case):
    _, rows, row, column, says = case
    with pytest.raises(RowError, match=says) as caught:
        list(record_batches(Rows(rows), CONTRACT))
    assert (caught.value.row, caught.value.column) == (row, column)
    assert f"row {row}" in str(caught.value)


def test_private_values_appear_in_no_error():
    canary = 0.123456789e9
    for dataset in (
        Rows([(torch.tensor([0.0, canary]), 0)]),
        Rows([([0.0, canary], 0)]),
        TensorDataset(torch.tensor([[0.0, canary]]), torch.tensor([0])),
        arrow(pa.array([[0.0, canary]] * 3, pa.list_(pa.float32())), pa.array(Y)),
        arrow(FIXED, pa.array(["123456789", "no", "no"])),
        Rows([(torch.zeros(2), "123456789")]),
        Rows([(torch.zeros(2), 123456789)]),
    ):
        with pytest.raises(RowError) as caught:
            list(record_batches(dataset, CONTRACT))
        assert "123456789" not in str(caught.value).replace(".", "")


def test_the_row_is_counted_over_batches():
    contract = DataContract([Column("x", "float32", range=(0, 1))], 16384)
    values = torch.zeros(9000)
    values[8999] = -1
    with pytest.raises(RowError) as caught:
        list(record_batches(TensorDataset(values), contract))
    assert caught.value.row == 8999


def test_arrow_nulls_and_ragged_lists_are_refused():
    for table, row in (
        (arrow(FIXED, pa.array([0, None, 1])), 1),
        (arrow(pa.array([[0.0, 1.0], None, [0.0, 0.0]], pa.list_(pa.float32())), pa.array(Y)), 1),
        (arrow(pa.array([[0.0, 1.0], [0.0, 0.0], [0.0]], pa.list_(pa.float32())), pa.array(Y)), 2),
        (arrow(pa.array([[0.0], [0.0, 0.0], [0.0, 0.0]], pa.list_(pa.float32())), pa.array(Y)), 0),
    ):
        with pytest.raises(RowError) as caught:
            list(record_batches(table, CONTRACT))
        assert caught.value.row == row
    with pytest.raises(RowError, match="null"):
        list(record_batches(arrow(pa.array([[0.0, None]] * 3, pa.list_(pa.float32())), pa.array(Y)), CONTRACT))


def test_arrow_columns_that_records_cannot_hold_are_refused():
    with pytest.raises(ContractError, match="no column 'label'; it has x"):
        list(record_batches(pa.table({"x": FIXED}), CONTRACT))
    with pytest.raises(ContractError, match="only labels may"):
        list(record_batches(arrow(pa.array(["a", "b", "c"]), pa.array(Y)), CONTRACT))
    with pytest.raises(ContractError, match="timestamp"):
        list(record_batches(arrow(FIXED, pa.array([0, 1, 1], pa.timestamp("s"))), CONTRACT))


def test_what_is_no_dataset_is_refused():
    with pytest.raises(ContractError, match="int is no dataset"):
        list(record_batches(7, CONTRACT))


def test_a_data_loader_is_refused_before_its_batches_are_taken_for_records():
    with pytest.raises(ContractError, match=r"loader\.dataset"):
        list(record_batches(torch.utils.data.DataLoader(Rows(TUPLES)), CONTRACT))


# ---- declaring ----


def test_a_missing_contract_teaches_how_to_declare_it():
    with pytest.raises(ContractError) as caught:
        resolve_contract(DATASETS["tuples of tensors"], None, None, None)
    lesson = str(caught.value)
    assert "input: float32 of shape (2,)" in lesson
    assert 'bastionai.Column("input", "float32", (2,), range=(..., ...)),' in lesson
    assert 'bastionai.Column("label", "int64", (), classes=[...]),' in lesson
    # The smallest and largest value are private: never suggested.
    assert "0.125" not in lesson
    assert "0.75" not in lesson


def test_ranges_and_classes_are_a_short_declaration():
    contract = resolve_contract(
        DATASETS["tuples of tensors"], None, {"input": (0, 1)}, {"label": ["no", "yes"]}
    ).with_declared_size(16)
    assert joined(DATASETS["tuples of tensors"], contract) == EXPECTED


def test_bools_and_bytes_need_no_declaration():
    images = TensorDataset(torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.bool))
    contract = resolve_contract(images, None, {}, {})
    assert [column.dtype for column in contract.columns] == ["u8", "bool"]


@pytest.mark.parametrize("attribute", ["contract", "bastionai_contract"])
def test_a_dataset_may_bring_its_contract(attribute):
    dataset = Rows(TUPLES)
    setattr(dataset, attribute, CONTRACT)
    assert resolve_contract(dataset, None, None, None) is CONTRACT


def test_contradictory_declarations_are_refused():
    with pytest.raises(ContractError, match="not both"):
        resolve_contract(Rows(TUPLES), CONTRACT, {"x": (0, 1)}, None)
    with pytest.raises(ContractError, match="no column 'y'"):
        resolve_contract(Rows(TUPLES), None, {"y": (0, 1)}, None)
    with pytest.raises(ContractError, match="classes=2"):  # the lesson keeps what was declared
        resolve_contract(Rows(TUPLES), None, None, {"label": 2})


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (DATASETS["tensor dataset"], [("input", "f32", (2,)), ("label", "i64", ())]),
        (DATASETS["named tuples"], [("features", "f32", (2,)), ("target", "i64", ())]),
        (DATASETS["stream of dicts"], [("x", "f32", (2,)), ("label", "i64", ())]),
        ([torch.zeros(3)], [("input", "f32", (3,))]),
        (
            [(torch.zeros(3), torch.zeros(2), 1)],
            [("input_0", "f32", (3,)), ("input_1", "f32", (2,)), ("label", "i64", ())],
        ),
        (ARROW["fixed lists"], [("secret", "i64", ()), ("label", "i64", ()), ("x", "f32", (2,))]),
        (ARROW["fixed shape tensors"], [("secret", "i64", ()), ("label", "i64", ()), ("x", "f32", (2,))]),
    ],
)
def test_columns_are_detected_from_the_first_record(dataset, expected):
    assert [(c.name, c.dtype, c.shape) for c in detect_columns(dataset)] == expected


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        ([], "empty"),
        ([(torch.zeros(2), object())], "is a object"),
        ([torch.zeros(2, dtype=torch.float16)], "float16"),
        (pa.table({"t": pa.array([1], pa.timestamp("s"))}), "timestamp"),
        (pa.table({"t": pa.array([[1, 2]])}), "list"),
    ],
)
def test_what_cannot_be_detected_says_so(dataset, says):
    with pytest.raises(ContractError, match=says):
        detect_columns(dataset)
