"""Optimizers, policies, batch sizes: what is understood, planned, and refused."""

from __future__ import annotations

import datetime
import functools
from decimal import Decimal

import pytest
import torch

from bastionai import SGD, Adam, AdamW, InvalidRequest, schedules
from bastionai.optimizers import as_optimizer
from bastionai.planning import plan_batch_size, plan_steps
from bastionai.policy import decimal, policy_document, principal

WEIGHTS = [torch.nn.Parameter(torch.zeros(2))]


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        (SGD(lr=0.1), SGD(0.1)),
        (Adam(lr=5e-5), Adam(lr=5e-5)),
        (AdamW(lr=1e-3), AdamW(1e-3)),
        (Adam, Adam(1e-3)),
        (functools.partial(SGD, lr=0.2, momentum=0.9), SGD(0.2, 0.9)),
        (torch.optim.Adam, Adam(1e-3)),
        (torch.optim.AdamW, AdamW(1e-3)),
        (torch.optim.SGD, SGD(1e-3)),
        (functools.partial(torch.optim.Adam, lr=3e-4, betas=(0.5, 0.9)), Adam(3e-4, (0.5, 0.9), 1e-8, 0.0)),
        (torch.optim.Adam(WEIGHTS, weight_decay=0.1), Adam(weight_decay=0.1)),
        (torch.optim.Adam(WEIGHTS, weight_decay=0.1, decoupled_weight_decay=True), AdamW(weight_decay=0.1)),
        (torch.optim.SGD(WEIGHTS, lr=0.1, momentum=0.9, nesterov=True), SGD(0.1, 0.9, 0.0, 0.0, True)),
        (torch.optim.AdamW(WEIGHTS, lr=0.1, weight_decay=0.2), AdamW(0.1, weight_decay=0.2)),
    ],
)
def test_optimizers_are_understood(given, understood):
    assert as_optimizer(given) == understood


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("adam", "is not known"),
        (torch.optim.RMSprop, "is not known"),
        (torch.optim.Adam(WEIGHTS, amsgrad=True), "amsgrad"),
        (torch.optim.SGD(WEIGHTS, lr=0.1, maximize=True), "maximize"),
        (torch.optim.SGD([{"params": WEIGHTS, "lr": 1.0}, {"params": [torch.nn.Parameter(torch.ones(1))]}], lr=0.1),
         "parameter groups"),
    ],
)  # fmt: skip
def test_other_optimizers_say_why_not(given, says):
    with pytest.raises(InvalidRequest, match=says):
        as_optimizer(given)


@pytest.mark.parametrize("build", [
    lambda: SGD(lr=-1), lambda: SGD(lr=float("nan")), lambda: SGD(lr=0.1, nesterov=True),
    lambda: AdamW(betas=(1.0, 0.9)), lambda: Adam(lr=float("inf")),
])  # fmt: skip
def test_senseless_hyper_parameters_are_refused(build):
    with pytest.raises(InvalidRequest):
        build()


def test_schedules_are_what_the_server_reads():
    warmed = schedules.as_schedule(schedules.Cosine(warmup_ratio=0.1, final_ratio=0.05))
    assert schedules.document(warmed) == {"decay": {"cosine": {"final_ratio": 0.05}}, "warmup": {"ratio": 0.1}}
    linear = schedules.Linear(warmup_steps=7)
    assert schedules.document(linear) == {"decay": {"linear": {"final_ratio": 0.0}}, "warmup": {"steps": 7}}
    assert schedules.document(schedules.as_schedule(None)) == {"decay": "constant", "warmup": {"steps": 0}}


@pytest.mark.parametrize("build", [
    lambda: schedules.Linear(warmup_steps=1, warmup_ratio=0.1), lambda: schedules.Constant(warmup_steps=-1),
    lambda: schedules.Constant(warmup_ratio=1.5), lambda: schedules.Cosine(final_ratio=float("nan")),
    lambda: schedules.as_schedule("cosine"), lambda: schedules.as_schedule(torch.optim.lr_scheduler.LinearLR),
])  # fmt: skip
def test_senseless_schedules_are_refused(build):
    with pytest.raises(InvalidRequest):
        build()


ALICE, BOB = "a" * 64, "B" * 64


def document(**changes):
    given = {
        "kind": "private", "privacy_limit": 6.0, "delta": 1e-5, "may_train": [ALICE], "recipients": (),
        "scientist_receives": True, "expires": None,
    }  # fmt: skip
    return policy_document(**{**given, **changes})


def test_policies_are_exact():
    assert document(privacy_limit=0.1)["lifetime"] == {"epsilon": "0.1", "delta": "0.00001"}
    assert document(privacy_limit="6", delta=Decimal("1e-9"))["lifetime"] == {"epsilon": "6", "delta": "0.000000001"}
    assert document(may_train="anyone")["may_train"] == "anyone"
    assert document(may_train=[ALICE, BOB])["may_train"] == {"only": [ALICE, BOB.lower()]}
    assert document(may_train=ALICE)["may_train"] == {"only": [ALICE]}
    assert document(kind="public", privacy_limit=None)["lifetime"] is None
    expires = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
    assert document(expires=expires)["expires_unix_ms"] == int(expires.timestamp()) * 1000


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"privacy_limit": None}, "needs privacy_limit"),
        ({"kind": "public"}, "no privacy limit"),
        ({"kind": "secret"}, "expected one of"),
        ({"privacy_limit": -1.0}, "positive"),
        ({"privacy_limit": float("inf")}, "positive"),
        ({"privacy_limit": "much"}, "positive"),
        ({"delta": 0}, "positive"),
        ({"may_train": ["hospital-1"]}, "no principal"),
        ({"may_train": "everybody"}, "no principal"),
        ({"recipients": ["00"]}, "no principal"),
        ({"expires": datetime.datetime(2030, 1, 1)}, "time zone"),
    ],
)
def test_contradictory_policies_are_refused(changes, says):
    with pytest.raises(InvalidRequest, match=says):
        document(**changes)


def test_decimals_are_what_was_written():
    assert decimal("x", 0.3) == "0.3"
    assert decimal("x", 1e-18) == "0.000000000000000001"
    assert principal(f" {ALICE.upper()} ") == ALICE


def test_planned_batches_leave_enough_steps_and_enough_records():
    for size in (16, 24, 512, 768, 6144, 98304, 2**31):
        for epochs in (0.5, 2, 20, 500):
            batch = plan_batch_size(size, epochs, None)
            assert 16 <= batch <= max(16, size // 4)
            assert batch == 16 or plan_steps(size, batch, epochs, None) >= 60
    assert plan_batch_size(6144, 2, None) == 128  # the brief's tour: 5574 messages, two epochs
    assert plan_batch_size(768, None, 100) == 128


def test_steps_are_epochs_of_the_declared_size():
    assert plan_steps(768, 64, 10, None) == 120
    assert plan_steps(768, 64, None, 7) == 7
    assert plan_steps(16, 16, 0.01, None) == 1
    for epochs, steps in ((None, None), (1, 1), (0, None), (float("nan"), None), (None, 0)):
        with pytest.raises(InvalidRequest):
            plan_steps(16, 16, epochs, steps)
