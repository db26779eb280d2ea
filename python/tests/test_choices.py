"""Optimizers, policies, batch sizes: what is understood, planned, and refused."""

from __future__ import annotations

import datetime
import functools
from decimal import Decimal

import pytest
import torch

from bastionai import SGD, Adam, AdamW, InvalidRequest, schedules
from bastionai.optimizers import as_optimizer
from bastionai.planning import Plan, plan
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


def test_policies_say_how_runs_add_up():
    assert document()["composition"] == "basic"
    assert document(composition="renyi")["composition"] == {"renyi": None}
    equal = document(composition="renyi", renyi_orders=[1.5, "8"])["composition"]
    assert equal == {"renyi": [{"order": "1.5", "weight": 1}, {"order": "8", "weight": 1}]}
    weighted = document(composition="renyi", renyi_orders={4: 1, 16: 3})["composition"]
    assert weighted == {"renyi": [{"order": "4", "weight": 1}, {"order": "16", "weight": 3}]}


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
        ({"composition": "advanced"}, "basic"),
        ({"renyi_orders": [2, 4]}, 'belongs to composition="renyi"'),
        ({"composition": "renyi", "renyi_orders": {2: 0}}, "whole number"),
        ({"composition": "renyi", "renyi_orders": [-2]}, "positive"),
        ({"kind": "public", "privacy_limit": None, "composition": "renyi"}, "leave composition out"),
    ],
)
def test_contradictory_policies_are_refused(changes, says):
    with pytest.raises(InvalidRequest, match=says):
        document(**changes)


def test_decimals_are_what_was_written():
    assert decimal("x", 0.3) == "0.3"
    assert decimal("x", 1e-18) == "0.000000000000000001"
    assert principal(f" {ALICE.upper()} ") == ALICE


def test_what_is_open_is_planned_and_what_is_given_is_kept():
    assert plan(6144, eps=3.0, nb_epochs=2) == Plan(128, 96)  # the brief's tour: 5574 messages, two epochs
    assert plan(768, eps=2.0, batch_size=64, nb_epochs=10) == Plan(64, 120)
    assert plan(768, eps=2.0, batch_size=64, steps=7) == Plan(64, 7)
    assert plan(16, eps=2.0, nb_epochs=0.01) == Plan(16, 1)
    for size in (16, 24, 512, 768, 6144, 98304, 2**31):
        for epochs in (0.5, 2, 20, 500):
            planned = plan(size, eps=1.0, nb_epochs=epochs)
            assert 16 <= planned.batch_size <= size
            assert planned.batch_size == 16 or planned.steps >= 60
        open_plan = plan(size, eps=1.0, delta=1e-6)
        assert open_plan.steps == 200
        assert 16 <= open_plan.batch_size <= size
    assert plan(98304, eps=8.0).batch_size > plan(98304, eps=0.5).batch_size


def test_a_plan_asked_for_in_contradictions_is_refused_by_name():
    for asked, named in (
        ({"eps": 1.0, "steps": 1, "nb_epochs": 1}, "both given"),
        ({"eps": 1.0, "nb_epochs": 0}, "nb_epochs=0"),
        ({"eps": 1.0, "nb_epochs": float("nan")}, "nb_epochs=NaN"),
        ({"eps": 1.0, "steps": 0}, "steps=0"),
        ({"eps": 1.0, "batch_size": 17}, "batch_size=17"),
        ({"noise_multiplier": 1.0}, "nothing else bounds the work"),
        ({"eps": 1.0, "noise_multiplier": 1.0}, "either eps"),
        ({}, "either eps"),
    ):
        with pytest.raises(InvalidRequest, match=named):
            plan(16, **asked)
