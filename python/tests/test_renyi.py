"""A dataset whose runs add up in Rényi divergences, through a real server and its trainer: prices, receipts."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from separable import CONTRACT, separable
from torch import nn

import bastionai
from bastionai import SGD, privacy

pytestmark = pytest.mark.e2e

LIFETIME, DELTA = Decimal("3"), 1e-5


def learner(client: bastionai.Connection, datasets: object) -> bastionai.RemoteLearner:
    options = {"loss": "cross_entropy", "optimizer": SGD(lr=0.1), "model_name": "line", "batch_size": 96}
    return client.RemoteLearner(nn.Linear(4, 2), datasets, **options)


def lend(connect, name: str, **terms: object) -> bastionai.RemoteDataset:
    options = {"privacy_limit": float(LIFETIME), "delta": DELTA, "composition": "renyi", "may_train": "anyone"}
    return connect("owner").RemoteDataset(
        separable(), name=name, contract=CONTRACT, verbose=False, **{**options, **terms}
    )


def now(client: bastionai.Connection, name: str) -> bastionai.RemoteDataset:
    return next(dataset for dataset in client.list_remote_datasets() if dataset.name == name)


def noisy(client: bastionai.Connection, datasets: object) -> tuple[bastionai.RemoteLearner, dict[str, object]]:
    """Much noise, few steps: runs of which many fit into a lifetime."""
    return learner(client, datasets), {"steps": 3, "noise_multiplier": 2.0, "delta": 1e-6}


def test_runs_are_admitted_by_divergences_priced_in_both_currencies_and_end_in_a_refusal(connect):
    lend(connect, "many")
    client = connect("scientist")
    scientist, wish = noisy(client, now(client, "many"))
    sums, admitted, quote = Decimal(0), 0, scientist.price(**wish)
    while quote.affordable:
        (charge,) = quote.charges
        assert charge.by_renyi
        assert charge.renyi.epsilon_before < charge.renyi.epsilon_after <= LIFETIME
        before = now(client, "many").renyi_budget
        assert charge.epsilon_left()[0] == before.remaining_epsilon
        run = scientist.fit(**wish, progress=False)
        assert run.state == "succeeded"
        admitted, sums = admitted + 1, sums + charge.cost.epsilon
        after = now(client, "many").renyi_budget
        assert after.used_epsilon == charge.renyi.epsilon_after
        for old, new in zip(before.orders, after.orders, strict=True):
            assert new.committed == old.committed + charge.renyi.divergences[new.order]
            assert new.reserved == 0
        quote = scientist.price(**wish)
    print(f"{admitted} runs of {quote.charges[0].cost}")
    assert sums > LIFETIME, f"{admitted} runs: no more than sums would have admitted"
    (charge,) = quote.charges
    assert charge.renyi.epsilon_after > LIFETIME
    assert charge.epsilon_left()[1] < 0
    assert "does not suffice" in quote._repr_html_()
    with pytest.raises(bastionai.BudgetExceeded, match="many"):
        scientist.fit(**wish, progress=False)
    with pytest.raises(bastionai.BudgetExceeded, match="Rényi divergences would mean"):
        client._start(quote)
    assert now(client, "many").renyi_budget == after
    receipt = scientist.receipt
    receipt.verify(allow_simulated=True, ledger_key=client.attestation.ledger_key)
    account = receipt.statement["datasets"][0]["budget"]
    assert Decimal(account["renyi"]["epsilon"]) == after.used_epsilon
    assert "by Rényi divergences" in str(receipt)


def moment(order: int, rate: float, noise: float) -> float:
    """E[(dP/dQ)^order] under Q of a Poisson-sampled Gaussian: Mironov, Talwar and Zhang 2019, equation 3.3."""
    return sum(
        math.comb(order, k) * (1 - rate) ** (order - k) * rate**k * math.exp((k * k - k) / (2 * noise**2))
        for k in range(order + 1)
    )


def test_the_divergences_of_a_price_are_those_of_its_sample_that_is_cut(connect):
    lend(connect, "checked")
    client = connect("scientist")
    scientist, wish = noisy(client, now(client, "checked"))
    quote = scientist.price(**wish)
    (charge,) = quote.charges
    # Of gradient and loss together.
    noise = quote.document["joint_noise_multiplier"]
    rate, cap = quote.sample_rate, quote.physical_batch_size * quote.micro_batches
    # docs/privacy.md, Truncation: of 511 others at least `cap` are drawn with this probability; then a record moves 2C.
    full = sum(math.comb(511, k) * rate**k * (1 - rate) ** (511 - k) for k in range(cap, 512))
    for order, divergence in charge.renyi.divergences.items():
        if order != int(order) or order > 16:
            continue  # no whole order, or one whose moments are no floats
        of_a_step = (1 - full) * moment(int(order), rate, noise) + full * moment(int(order), rate, noise / 2)
        expected = quote.steps * math.log(of_a_step) / (float(order) - 1)
        assert float(divergence) == pytest.approx(expected, rel=1e-6)
        assert float(divergence) >= expected * (1 - 1e-9)


def test_a_pool_charges_each_dataset_by_its_own_rule_or_none(connect):
    lend(connect, "divergences")
    lend(connect, "sums", composition="basic", privacy_limit=2.0)
    client = connect("scientist")
    scientist, wish = noisy(client, [now(client, "divergences"), now(client, "sums")])
    quote = scientist.price(**wish)
    one, other = sorted(quote.charges, key=lambda charge: charge.dataset_name)
    assert (one.by_renyi, other.by_renyi) == (True, False)
    assert one.renyi.divergences == other.renyi.divergences, "one mechanism, both currencies shown of both"
    assert "by Rényi divergences" in str(quote)
    while scientist.price(**wish).affordable:
        scientist.fit(**wish, progress=False)
    used = now(client, "divergences").renyi_budget.used_epsilon
    assert used < LIFETIME
    with pytest.raises(bastionai.BudgetExceeded, match="sums"):
        scientist.fit(**wish, progress=False)
    assert now(client, "divergences").renyi_budget.used_epsilon == used, "refused on all"


def test_correlated_noise_is_charged_in_divergences_of_a_units_turns_and_its_receipt_recomputed(connect):
    lend(connect, "bands")
    client = connect("scientist")
    options = {"loss": "cross_entropy", "optimizer": SGD(lr=0.1), "model_name": "line", "batch_size": 16}
    scientist = client.RemoteLearner(nn.Linear(4, 2), now(client, "bands"), bands=4, **options)
    wish = {"steps": 10, "noise_multiplier": 4.0, "delta": 1e-6}
    (charge,) = scientist.price(**wish).charges
    assert scientist.fit(**wish, progress=False).state == "succeeded"
    scientist.receipt.verify(allow_simulated=True, ledger_key=client.attestation.ledger_key)
    [dataset] = scientist.receipt.statement["datasets"]
    banded = dataset["event"]["banded"]
    assert (banded["bands"], banded["steps"]) == (4, 10)
    cut = privacy.TruncatedSubsampledGaussian(**banded["event"]["truncated_subsampled_gaussian"])
    assert privacy.Banded(4, 10, cut).epsilon(1e-6) == privacy.SelfComposed(cut, 3).epsilon(1e-6)
    assert float(charge.cost.epsilon) == pytest.approx(privacy.Banded(4, 10, cut).epsilon(1e-6), rel=1e-6)
    after = now(client, "bands").renyi_budget
    assert all(each.committed == charge.renyi.divergences[each.order] for each in after.orders)


def test_a_cancelled_run_is_charged_the_steps_it_started(connect):
    lend(connect, "cut-short")
    client = connect("scientist")
    scientist = learner(client, now(client, "cut-short"))
    wish = {"steps": 20_000, "eps": 2.0}
    quote = scientist.price(**wish)
    (charge,) = quote.charges
    run = client._start(quote)
    next(event for event in run.watch() if event.step >= 3)
    run.cancel()
    assert run.state == "cancelled"
    account = now(client, "cut-short").renyi_budget
    for each in account.orders:
        whole = charge.renyi.divergences[each.order]
        assert each.reserved == 0
        assert whole * run.released_step / run.steps <= each.committed < whole
    assert 0 < account.used_epsilon < charge.renyi.epsilon_after


def test_orders_of_ones_own_are_kept_and_senseless_ones_refused(connect):
    own = lend(connect, "own-orders", renyi_orders={4: 1, 10.5: 3})
    assert [each.order for each in own.renyi_budget.orders] == [Decimal(4), Decimal("10.5")]
    for terms, reason in (
        ({"renyi_orders": [0.5]}, "order"),
        ({"renyi_orders": {4: 0}}, "weight"),
        ({"composition": "basic", "renyi_orders": [4]}, "belongs to"),
        ({"privacy_limit": 0.001}, "none of these orders"),
    ):
        with pytest.raises(bastionai.InvalidRequest, match=reason):
            lend(connect, "senseless", **terms)
