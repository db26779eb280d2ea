"""An owner who lends to runs in noise mode hardened alone, through a real server."""

from __future__ import annotations

import pytest
from separable import CONTRACT, separable
from torch import nn

import bastionai
from bastionai import SGD

pytestmark = pytest.mark.e2e


def lend(client: bastionai.Connection, name: str, **terms: object) -> bastionai.RemoteDataset:
    return client.RemoteDataset(
        separable(), 6.0, name, delta=1e-4, contract=CONTRACT, may_train="anyone", verbose=False, **terms
    )


def learner(client: bastionai.Connection, datasets: object, mode: str) -> bastionai.RemoteLearner:
    options = {"loss": "cross_entropy", "optimizer": SGD(lr=0.1), "model_name": "line", "batch_size": 96}
    return client.RemoteLearner(nn.Linear(4, 2), datasets, noise_mode=mode, **options)


def test_runs_in_another_mode_are_refused_when_priced_and_those_in_this_one_train(connect):
    owner, client = connect("owner"), connect("scientist")
    strict, open_to_all = lend(owner, "strict", require_hardened=True), lend(owner, "open")
    assert strict.policy["require_hardened"]
    assert not open_to_all.policy["require_hardened"]
    assert "hardened required" in repr(strict)
    assert "hardened required" not in repr(open_to_all)
    for datasets in (strict, [open_to_all, strict]):
        with pytest.raises(bastionai.PermissionRefused, match="`strict` requires noise_mode hardened"):
            learner(client, datasets, "standard").price(steps=3, eps=1.0)
    assert learner(client, open_to_all, "standard").price(steps=3, eps=1.0).affordable
    training = learner(client, [open_to_all, strict], "hardened")
    assert training.fit(steps=3, eps=1.0, progress=False).state == "succeeded"
    training.receipt.verify(allow_simulated=True, ledger_key=client.attestation.ledger_key)
    assert training.receipt.statement["run"]["noise_mode"] == "hardened"


def test_the_requirement_goes_with_either_currency_and_with_held_out_records(connect):
    owner = connect("owner")
    both = lend(owner, "both", require_hardened=True, composition="renyi", test_fraction=0.2)
    for dataset in (both, both.test):
        assert dataset.policy["require_hardened"]
        assert dataset.renyi_budget is not None


@pytest.mark.parametrize("kind", ["public", "synthetic"])
def test_data_without_a_budget_have_nothing_to_require(connect, kind):
    with pytest.raises(bastionai.InvalidRequest, match="require_hardened"):
        connect("owner").RemoteDataset(
            separable(), name=f"free-{kind}", kind=kind, contract=CONTRACT, require_hardened=True, verbose=False
        )
