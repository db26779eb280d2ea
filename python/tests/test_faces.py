"""What people see of datasets, prices, runs and receipts, whatever names other people chose."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import html.parser
import json
import sys
from decimal import Decimal
from typing import Any

import pandas
import pytest

import bastionai
from bastionai.ledger_types import RenyiBudget
from bastionai.quote import Quote
from bastionai.remote import RemoteDataset
from bastionai.run_list import RunList
from bastionai.runs import Run

HOSTILE = "<script>alert('x')</script>&\"\x1b[2J"
ID = "ab" * 16
BUDGET = {
    "lifetime": {"epsilon": "6", "delta": "0.00001"},
    "committed": {"epsilon": "1", "delta": "0.000001"},
    "reserved": {"epsilon": "0", "delta": "0"},
    "remaining": {"epsilon": "5", "delta": "0.000009"},
}


def charge(**other: Any) -> dict[str, Any]:
    base = {"dataset_id": ID, "dataset_name": HOSTILE, "cost": {"epsilon": "1.999", "delta": "0.000001"}}
    unit = {"privacy_unit": f"per {HOSTILE}, joined over datasets {HOSTILE}, {HOSTILE}"}
    return {**base, **unit, "budget_before": BUDGET, "affordable": True, "by_renyi": False, "renyi": None, **other}


def dataset() -> RemoteDataset:
    contract = bastionai.DataContract([bastionai.Column(HOSTILE[:-4], "float32", range=(0, 1))], declared_size=16)
    document = {
        "id": ID,
        "name": HOSTILE,
        "kind": "private",
        "owner": "cd" * 32,
        "policy": {"evaluation_only": False, "require_hardened": False},
        "budget": BUDGET,
    }
    declared = json.loads(contract.to_json())
    return RemoteDataset.parse(
        {
            **document,
            "contract": declared,
            "trainable_by_caller": True,
            "evaluable_by_caller": True,
            "state": "withdrawn",
            "renyi_budget": None,
        }
    )


def quote(**other: Any) -> Quote:
    document = {
        "run_digest": "ef" * 32,
        "spec": {"steps": 120, "batch_size": 64, "noise_mode": "standard", "bands": {"fixed": 1}},
        "noise_slack": 0.02,
        "noise_ratio": 1.0,
        "sample_rate": 1 / 12,
        "noise_multiplier": 1.25,
        "loss_noise_multiplier": 0.0,
        "declared_size": 768,
        "physical_batch_size": 64,
        "micro_batches": 2,
        "memory_bytes": 600 << 20,
        "trainable_parameters": 1042,
        "charges": [charge(), charge(dataset_name="free", budget_before=None)],
        "expires_unix_ms": 1,
        "warnings": [f"noise drowns the signal in {HOSTILE}"],
        "expected_seconds": 300.0,
        "kept_bytes": 0,
        **other,
    }
    return Quote.parse(document)


def run(**other: Any) -> Run:
    document = {
        "id": ID,
        "kind": "training",
        "state": "succeeded",
        "model_name": HOSTILE,
        "scientist": "cd" * 32,
        "run_digest": "ef" * 32,
        "steps": 120,
        "released_step": 120,
        "queue_position": None,
        "dataset_ids": [ID],
        "dataset_names": [HOSTILE],
        "charges": [charge(budget_before=None)],
        "created_unix_ms": 1_795_410_061_000,
        "ended_unix_ms": 1_795_410_071_000,
        **other,
    }
    return Run(None, document)  # type: ignore[arg-type]


def receipt() -> bastionai.Receipt:
    statement = {
        "run": {
            "id": ID,
            "outcome": HOSTILE,
            "steps": 1,
            "released_step": 1,
            "run_digest": "",
            "graph_digest": "",
            "weights_digest": None,
            "noise_mode": "standard",
        },
        "freshness": "none",
        "datasets": [{"name": HOSTILE, "epsilon": "1", "delta": "0", "budget": None}],
    }
    return bastionai.Receipt(
        json.dumps({"payload": base64.b64encode(json.dumps(statement).encode()).decode()}).encode()
    )


SHOWN = {
    "dataset": dataset,
    "contract": lambda: dataset().contract,
    "price": quote,
    "run": run,
    "runs": lambda: RunList([run(), run(state="failed")]),
    "receipt": receipt,
}


class Tags(html.parser.HTMLParser):
    """Every element of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """Notes an element."""
        self.names.add(tag)

    def handle_data(self, data: str) -> None:
        """Collects the text."""
        self.text += data


@pytest.mark.parametrize("shown", SHOWN)
def test_hostile_names_stay_text_in_notebooks(shown: str) -> None:
    tags = Tags(SHOWN[shown]()._repr_html_())
    assert tags.names <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "b", "pre"}
    assert "<script>alert('x')</script>" in tags.text, "escaped, not dropped"


@pytest.mark.parametrize("shown", ["price", "runs"])
def test_terminals_are_not_driven_by_names(shown: str) -> None:
    text = repr(SHOWN[shown]()) if shown == "runs" else str(SHOWN[shown]())
    assert "\x1b" not in text


def test_a_price_is_a_table_with_everything_that_is_paid() -> None:
    text = str(quote(warnings=[]))
    for fact in ("120", "64", "0.08333", "1.25", "1042", "600 MiB", "about 5 min", "1.999", "0.000001", "3.001"):
        assert fact in text, fact
    page = Tags(quote()._repr_html_()).text
    assert all(fact in page for fact in ("ε left before", "3.001", "no budget needed", "noise drowns"))
    short = quote(charges=[charge(affordable=False)])
    assert "does not suffice" in str(short)
    assert not short.affordable
    assert "about 42 s" in str(quote(expected_seconds=42.0))
    assert quote(expected_seconds=90.0).expected_minutes == 1.5
    unknown = quote(expected_seconds=None)
    assert unknown.expected_minutes is None
    assert "not known" in str(unknown)
    assert "kept on the way" not in text
    assert "standard: rounding adds at most 2% of noise" in text
    spec = {"steps": 120, "batch_size": 64, "noise_mode": "hardened", "bands": {"fixed": 1}}
    assert "hardened: sensitivity is the clipping norm exactly" in str(quote(spec=spec, noise_slack=0.0))
    keeping = quote(kept_bytes=3 << 19)
    assert "kept on the way" in str(keeping)
    assert "1.5 MiB" in str(keeping)
    assert "1.5 MiB" in Tags(keeping._repr_html_()).text


RENYI = {"orders": ["2", "64"], "divergences": ["0.25", None], "epsilon_before": "1.5", "epsilon_after": "2.25"}


def test_a_price_shows_both_currencies_and_the_one_that_decides() -> None:
    priced = quote(charges=[charge(by_renyi=True, renyi=RENYI), charge(renyi=RENYI)])
    by_renyi, by_sums = priced.charges
    assert by_renyi.epsilon_left() == (Decimal("4.5"), Decimal("3.75"))
    assert by_sums.epsilon_left() == (Decimal("5"), Decimal("3.001"))
    assert by_renyi.renyi is not None
    assert by_renyi.renyi.divergences == {Decimal(2): Decimal("0.25"), Decimal(64): None}
    for text in (str(priced), Tags(priced._repr_html_()).text):
        assert all(fact in text for fact in ("rule that decides", "Rényi divergences", "sums", "3.75", "3.001"))


def test_a_dataset_says_what_is_left_by_its_own_rule() -> None:
    orders = [{"order": "8", "budget": "4.4", "committed": "1.1", "reserved": "0.0"}]
    account = {"orders": orders, "used_epsilon": "2.5", "remaining_epsilon": "3.5"}
    held = dataclasses.replace(dataset(), renyi_budget=RenyiBudget.parse(account))
    assert ("budget left", "ε 3.5 of 6 at δ 1e-05, by Rényi divergences") in held._facts()


def test_runs_make_a_data_frame_of_exact_charges() -> None:
    both = run(id="cd" * 16, charges=[charge(dataset_name="north"), charge(dataset_name="south")])
    frame = RunList([run(charges=[], ended_unix_ms=None, state="queued"), both]).to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["dataset"]) == [HOSTILE, "north", "south"]
    assert list(frame["epsilon"])[1:] == [Decimal("1.999"), Decimal("1.999")]
    assert frame["created"][1] == datetime.datetime(2026, 11, 23, 5, 1, 1, tzinfo=datetime.UTC)
    assert pandas.isna(frame["ended"][0])
    assert len(RunList().to_frame()) == 0
    assert "epsilon" in RunList().to_frame()
    assert repr(RunList()) == "no runs"


def test_without_pandas_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(bastionai.MissingPackage, match="pip install pandas"):
        RunList([run()]).to_frame()


def test_a_withdrawn_dataset_says_so() -> None:
    assert ("state", "withdrawn") in dataset()._facts()
    assert "withdrawn" in repr(dataset())
