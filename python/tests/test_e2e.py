"""Owner and scientist against a real server process over a real socket."""

from __future__ import annotations

import datetime
import re
import time
import warnings
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from separable import CONTRACT, separable
from torch import nn
from torch.utils.data import TensorDataset

import bastionai
from bastionai import Adam, Column, DataContract

pytestmark = pytest.mark.e2e


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 2))


def accuracy(model: nn.Module) -> float:
    x, y = separable(400, seed=9).tensors
    return float((model(x).argmax(1) == y).float().mean())


def learner(client: bastionai.Connection, datasets, model: nn.Module | None = None, **changes):
    options = {"loss": "cross_entropy", "optimizer": Adam(lr=0.02), "model_name": "mlp", "batch_size": 96}
    return client.RemoteLearner(model or mlp(), datasets, **{**options, **changes})


def test_the_quick_tour_trains_a_model(connect, capfd):
    with connect("owner") as client:
        scientist = connect("scientist").principal
        client.RemoteDataset(
            separable(), privacy_limit=6.0, name="tour", contract=CONTRACT, may_train=[scientist], delta=1e-4
        )
    with connect("scientist") as client:
        remote_dataset = next(d for d in client.list_remote_datasets() if d.name == "tour")
        model = mlp()
        before = accuracy(model)
        remote_learner = learner(client, remote_dataset, model, max_batch_size=32)
        quote = remote_learner.price(nb_epochs=15, eps=3.0)
        assert quote.affordable
        assert quote.charges[0].cost.epsilon <= Decimal("3.0")
        assert 16 < quote.physical_batch_size <= 32  # the cap, divided evenly into the fewest batches of at most 32
        run = remote_learner.fit(nb_epochs=15, eps=3.0)
        assert run.state == "succeeded"
        trained = remote_learner.get_model()
        assert accuracy(trained) > max(0.8, before + 0.1)
        assert torch.equal(model[0].weight, mlp()[0].weight)  # the user's own module is as it was
        after = next(d for d in client.list_remote_datasets() if d.name == "tour").budget
        assert after.committed.epsilon == quote.charges[0].cost.epsilon
        assert after.remaining.epsilon == after.lifetime.epsilon - after.committed.epsilon
        receipt = remote_learner.receipt
        receipt.verify(allow_simulated=True, ledger_key=client.attestation.ledger_key)
        assert receipt.statement["run"]["id"] == run.id
        assert Decimal(receipt.statement["datasets"][0]["epsilon"]) == quote.charges[0].cost.epsilon
    assert "noisy loss" in capfd.readouterr().err


def test_several_owners_are_pooled_and_each_is_charged(connect):
    names = ["north", "south"]
    for index, name in enumerate(names):
        connect(name).RemoteDataset(
            separable(200, index), 2.5, name, delta=1e-4, contract=CONTRACT.with_declared_size(256), may_train="anyone"
        )
    client = connect("scientist")
    pooled = [d for d in client.list_remote_datasets() if d.name in names]
    both = learner(client, pooled)
    assert both.declared_size == 512
    run = both.fit(steps=20, eps=1.0, progress=False)
    assert sorted(charge.dataset_name for charge in run.charges) == names
    spent = {d.name: d.budget.committed.epsilon for d in client.list_remote_datasets() if d.name in names}
    assert all(0 < epsilon <= 1 for epsilon in spent.values())
    assert client.ledger(run)


@pytest.fixture
def small(connect):
    """A dataset with little budget, uploaded once."""
    owner = connect("small-owner")
    if not any(dataset.name == "small" for dataset in owner.list_remote_datasets()):
        owner.RemoteDataset(separable(), 1.0, "small", delta=1e-4, contract=CONTRACT, may_train="anyone")
    return next(dataset for dataset in owner.list_remote_datasets() if dataset.name == "small")


def test_a_budget_cannot_be_overdrawn_not_even_by_a_client_that_does_not_ask(connect, small):
    client = connect("scientist")
    greedy = learner(client, small)
    with pytest.raises(bastionai.BudgetExceeded, match="small: needs"):
        greedy.fit(steps=20, eps=2.0)
    quote = greedy.price(steps=20, eps=2.0)
    assert not quote.affordable
    with pytest.raises(bastionai.BudgetExceeded):
        client._start(quote)
    left = next(d for d in client.list_remote_datasets() if d.name == "small").budget
    assert left.committed.epsilon == left.reserved.epsilon == 0


def test_rehearsals_cost_nothing(connect, small):
    client = connect("scientist")
    rehearsed = learner(client, small).rehearse(steps=5, progress=False)
    assert rehearsed.state == "succeeded"
    again = learner(client, small).rehearse(steps=5, progress=False)
    assert again.dataset_ids == rehearsed.dataset_ids
    now = next(d for d in client.list_remote_datasets() if d.name == "small")
    assert now.budget.committed.epsilon == 0
    # The tour's `list_remote_datasets()[0]` is never rehearsal data.
    assert not client.list_remote_datasets()[0].name.startswith("rehearsal-")


@pytest.mark.parametrize("kind", ["public", "synthetic"])
def test_public_and_synthetic_datasets_need_no_budget(connect, kind):
    client = connect("owner")
    dataset = client.RemoteDataset(separable(), name=f"free-{kind}", kind=kind, contract=CONTRACT)
    assert dataset.budget is None
    run = learner(client, dataset).fit(steps=5, noise_multiplier=1.0, delta=1e-6, progress=False)
    assert run.state == "succeeded"


UPLOADS = {
    "dicts": [{"label": i % 2, "x": torch.full((4,), i / 20)} for i in range(16)],
    "arrow": pa.table({
        "x": pa.array((np.arange(64).reshape(16, 4) / 64).astype("f4").tolist(), pa.list_(pa.float32())),
        "label": pa.array(["no", "yes"] * 8).dictionary_encode(),
    }),
    "stream": iter([(torch.zeros(4), 1)] * 16),
}  # fmt: skip


@pytest.mark.parametrize("form", UPLOADS)
def test_every_form_of_dataset_can_be_lent(connect, form):
    client = connect("owner")
    dataset = client.RemoteDataset(
        UPLOADS[form], 1.0, f"form-{form}", contract=CONTRACT.with_declared_size(16), verbose=False
    )
    assert dataset.trainable
    assert dataset.contract.columns == CONTRACT.columns


def test_the_declared_size_is_announced_as_public(connect, capfd):
    columns = DataContract(CONTRACT.columns)
    dataset = connect("owner").RemoteDataset(separable(100), 1.0, "announced", contract=columns)
    assert dataset.contract.declared_size == 128
    assert "declared_size=128" in capfd.readouterr().err


def test_bad_rows_are_refused_locally_and_nothing_is_kept(connect):
    client = connect("owner")
    x, y = separable(100).tensors
    x[70, 2] = 777.0
    with pytest.raises(bastionai.RowError) as caught:
        client.RemoteDataset(TensorDataset(x, y), 1.0, "bad", contract=CONTRACT)
    assert caught.value.row == 70
    assert "777" not in str(caught.value)
    assert not [d for d in client.list_remote_datasets() if d.name == "bad"]
    client.RemoteDataset(separable(100), 1.0, "bad", contract=CONTRACT)  # the name is free


def test_more_rows_than_declared_are_refused_and_nothing_is_kept(connect):
    client = connect("owner")
    with pytest.raises(bastionai.RowError, match="size class 16"):
        client.RemoteDataset(separable(20), 1.0, "large", contract=CONTRACT.with_declared_size(16))
    assert not [d for d in client.list_remote_datasets() if d.name == "large"]


def test_a_taken_name_is_refused(connect):
    client = connect("owner")
    client.RemoteDataset(separable(20), 1.0, "taken", contract=CONTRACT)
    for name in ("owner", "somebody-else"):
        with pytest.raises(bastionai.AlreadyExists):
            connect(name).RemoteDataset(separable(20), 1.0, "taken", contract=CONTRACT)


def test_only_those_whom_the_owner_names_may_train(connect):
    owner, friend, stranger = connect("owner"), connect("friend"), connect("stranger")
    owner.RemoteDataset(separable(), 2.0, "closed", delta=1e-4, contract=CONTRACT, may_train=[friend.principal])

    def seen_by(client):
        return next(d for d in client.list_remote_datasets() if d.name == "closed")

    assert [seen_by(client).trainable for client in (owner, friend, stranger)] == [True, True, False]
    with pytest.raises(bastionai.PermissionRefused, match=stranger.principal):
        learner(stranger, seen_by(stranger))
    # A client of their own making does not ask either; the server refuses all the same.
    forged = bastionai.RemoteDataset(**{**vars(seen_by(stranger)), "trainable": True})
    with pytest.raises(bastionai.PermissionRefused):
        stranger._start(learner(stranger, forged).price(steps=5, eps=0.5))


def test_an_expired_dataset_trains_no_more(connect):
    client = connect("owner")
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2)
    dataset = client.RemoteDataset(separable(), 2.0, "expiring", delta=1e-4, contract=CONTRACT, expires=soon)
    time.sleep(2.5)
    with pytest.raises(bastionai.BastionError, match="expire"):
        learner(client, dataset).fit(steps=5, eps=0.5, progress=False)


def test_a_leaky_model_is_refused_before_anything_is_sent(connect, small):
    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x - x.mean(dim=0))

    client = connect("scientist")
    with pytest.raises(bastionai.ModelRefused, match=r"test_e2e\.py:\d+") as caught:
        learner(client, small, Leaky()).price(steps=5, eps=0.5)
    assert caught.value.refusals[0].operator.startswith("aten.mean")


def test_the_server_refuses_what_a_client_of_their_own_making_sends(connect, small, monkeypatch):
    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.linear(x), dim=0)

    monkeypatch.setattr(bastionai._internal, "check_archive", lambda *_: "", raising=True)
    with pytest.raises(bastionai.ModelRefused) as caught:
        learner(connect("scientist"), small, Leaky()).price(steps=5, eps=0.5)
    assert caught.value.refusals


def test_pricing_warns_when_noise_would_drown_the_model(connect, small):
    wide = nn.Sequential(nn.Linear(4, 4000), nn.ReLU(), nn.Linear(4000, 2))
    with pytest.warns(bastionai.NoiseWarning, match="noise drowns the signal"):
        learner(connect("scientist"), small, wide, batch_size=1).price(steps=100, eps=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner(connect("scientist"), small, batch_size=None).price(nb_epochs=15, eps=1.0)


def test_runs_are_found_again_and_their_model_and_receipt_with_them(connect):
    client = connect("owner")
    dataset = client.RemoteDataset(separable(), 2.0, "again", delta=1e-4, contract=CONTRACT)
    first = learner(client, dataset)
    run = first.fit(steps=10, eps=1.0, progress=False)
    found = connect("owner").run(run.id[:8])
    assert (found.id, found.state, found.steps) == (run.id, "succeeded", 10)
    mine, theirs = first.get_model(), found.get_model(mlp())
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    assert [progress.step for progress in found.watch()][-1] == 10
    with pytest.raises(bastionai.InvalidRequest, match="this module has none"):
        found.get_model(nn.Linear(4, 2))
    with pytest.raises(bastionai.NotFound):
        client.run("ffffffffffffffff0")


def test_watching_again_replays_the_same_losses(connect):
    client = connect("owner")
    dataset = client.RemoteDataset(separable(), 2.0, "replayed", delta=1e-4, contract=CONTRACT)
    run = learner(client, dataset).fit(steps=10, eps=1.0, progress=False)
    first = [(each.step, each.noisy_loss) for each in client.run(run.id).watch()]
    second = [(each.step, each.noisy_loss) for each in connect("owner").run(run.id).watch()]
    assert first == second
    assert [loss for _, loss in first if loss is not None]


def test_losses_are_shown_only_when_paid_for(connect):
    client = connect("owner")
    dataset = client.RemoteDataset(separable(), 2.0, "silent", delta=1e-4, contract=CONTRACT)
    silent = learner(client, dataset, max_loss=0)
    assert silent.price(steps=5, eps=1.0).loss_noise_multiplier == 0
    run = silent.fit(steps=5, eps=1.0, progress=False)
    assert all(each.noisy_loss is None for each in run.watch())


def test_a_tampered_receipt_does_not_verify(connect, tmp_path):
    client = connect("owner")
    dataset = client.RemoteDataset(separable(), 2.0, "receipted", delta=1e-4, contract=CONTRACT)
    trained = learner(client, dataset)
    trained.fit(steps=5, eps=1.0, progress=False)
    path = trained.receipt.save(tmp_path / "receipt.json")
    bastionai.Receipt.load(path).verify(allow_simulated=True, ledger_key=client.attestation.ledger_key)
    with pytest.raises(bastionai.ReceiptError, match="not by the one expected"):
        bastionai.Receipt.load(path).verify(allow_simulated=True, ledger_key="00" * 32)
    with pytest.raises(bastionai.AttestationError, match="simulated"):
        bastionai.Receipt.load(path).verify()
    data = path.read_bytes()
    position = data.index(b'"payload"') + 40
    flipped = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
    with pytest.raises(bastionai.ReceiptError):
        bastionai._internal.verify_receipt(flipped, None, None, [])


def test_simulated_evidence_is_refused_unless_asked_for_by_name(server, people):
    with pytest.raises(bastionai.AttestationError, match="simulated"):
        bastionai.Connection(server.address, identity=people("alice"))
    everything = bastionai.AppraisalPolicy(
        "any",
        "any",
        "any",
        "any",
        "any",
        allowed_insecure_flags=["insecure-simulated-evidence"],
        minimum_freshness="none",
    )
    with pytest.raises(bastionai.AttestationError, match="simulated"):
        bastionai.Connection(server.address, identity=people("alice"), policy=everything)


def test_the_attestation_is_shown(connect):
    client = connect()
    assert client.attestation.simulated
    assert "SIMULATED" in str(client.attestation)
    assert client.server["protocol_version"] == 1
    assert re.fullmatch("[0-9a-f]{64}", client.attestation.ledger_key)


def test_a_closed_session_is_never_reopened(connect):
    client = connect()
    client.close()
    with pytest.raises(bastionai.ConnectionFailed, match="session ended"):
        client.list_remote_datasets()


def test_nobody_there_is_said_plainly(people):
    with pytest.raises(bastionai.ConnectionFailed, match=r"cannot reach the server at 127\.0\.0\.1:1"):
        bastionai.Connection("127.0.0.1", 1, identity=people("alice"), allow_simulated=True)
    with pytest.raises(bastionai.InvalidRequest, match="names a port already"):
        bastionai.Connection("127.0.0.1:1", 2, identity=people("alice"))


def test_the_default_identity_is_made_on_first_use(server, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("BASTIONAI_HOST", server.address)
    with bastionai.Connection(allow_simulated=True) as client:
        principal = client.principal
    path = tmp_path / "bastionai" / "identity.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    assert principal in capfd.readouterr().err
    with bastionai.Connection(allow_simulated=True) as client:
        assert client.principal == principal
    assert "made your identity" not in capfd.readouterr().err
    with pytest.raises(bastionai.InvalidRequest, match="exists already"):
        bastionai.keygen(path)


def test_representations_for_notebooks(connect, small):
    client = connect("scientist")
    quote = learner(client, small).price(steps=5, eps=0.5)
    for shown in (small, quote, small.contract, client.attestation, *client.runs()[:1]):
        page = shown._repr_html_()
        assert page.startswith(("<table>", "<pre>"))
    assert "small" in repr(small)
    assert "noise multiplier" in str(quote)


def test_training_equals_what_the_losses_promise_without_noise(connect):
    """Little noise, every record in every step, nothing clipped: ordinary SGD on the mean of the gradients."""
    client = connect("owner")
    contract = DataContract([Column("x", "float32", (3,), range=(-1, 1)), Column("label", "f32", range=(-9, 9))], 16)
    x = torch.rand(16, 3, generator=torch.Generator().manual_seed(1))
    y = x.sum(1) / 3
    dataset = client.RemoteDataset(TensorDataset(x, y), name="exact", kind="synthetic", contract=contract)
    torch.manual_seed(3)
    model = nn.Linear(3, 1)
    sgd = bastionai.SGD(lr=0.2)
    options = {"loss": "mse", "optimizer": sgd, "batch_size": 16, "max_grad_norm": 8.0, "max_loss": 0}
    remote = learner(client, dataset, model, **options)
    remote.fit(steps=20, noise_multiplier=0.05, delta=1e-6, progress=False)
    expected = nn.Linear(3, 1)
    expected.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.2)
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(expected(x).squeeze(-1), y).backward()
        optimizer.step()
    # Noise per weight: at most 0.2·√20·0.05·8/16 = 0.022; the weights move by half a unit.
    assert any((a - b).abs().max() > 0.3 for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    for mine, theirs in zip(remote.get_model().parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=0.12, rtol=0)


def test_an_owner_withdraws_and_removes_what_only_they_may(connect):
    owner, scientist = connect("lender"), connect("borrower")
    dataset = owner.RemoteDataset(
        separable(), 3.0, "leaving", contract=CONTRACT, may_train="anyone", scientist_receives=True
    )
    run = learner(scientist, dataset).fit(steps=5, eps=1.0, progress=False)
    for action in (scientist.withdraw, scientist.remove):
        with pytest.raises(bastionai.NotFound, match="you have lent no such dataset"):
            action(dataset)
    assert owner.withdraw(dataset).state == "withdrawn"
    assert "leaving" not in [seen.name for seen in scientist.list_remote_datasets()]
    with pytest.raises(bastionai.PermissionRefused, match="withdrawn"):
        learner(scientist, dataset).price(steps=5, eps=0.5)
    withdrawn = next(seen for seen in owner.list_remote_datasets() if seen.name == "leaving")
    with pytest.raises(bastionai.PermissionRefused, match="was withdrawn by its owner"):
        learner(owner, withdrawn)
    assert owner.remove(dataset).state == "removed"
    assert next(seen for seen in owner.list_remote_datasets() if seen.name == "leaving").budget.committed.epsilon > 0
    # The receipt of the run that charged them, without its weights.
    received = owner.run(run.id).receipt
    received.verify(allow_simulated=True)
    assert received.statement["run"]["id"] == run.id


def test_owners_without_weights_and_failed_runs_have_receipts(connect):
    owner, scientist = connect("lender"), connect("borrower")
    dataset = owner.RemoteDataset(separable(), 3.0, "charged-owner", contract=CONTRACT, may_train="anyone")
    start = learner(scientist, dataset).price(steps=100_000, eps=1.0)
    run = scientist._start(start)
    with pytest.raises(bastionai.NotReleasable, match="not over"):
        owner.run(run.id).receipt  # noqa: B018
    with pytest.raises(bastionai.DatasetInUse, match=run.id):
        owner.remove(dataset)
    next(run.watch())
    while run.refresh().released_step == 0:
        time.sleep(0.05)
    run.cancel()
    receipt = owner.run(run.id).receipt
    assert receipt.statement["run"]["outcome"] == "cancelled"
    assert receipt.statement["run"]["weights_digest"] is None
    with pytest.raises(bastionai.PermissionRefused):
        owner.run(run.id).state_dict()


def test_a_run_is_planned_when_nothing_is_said_and_rehearsed_on_public_records(connect):
    client = connect("planner")
    public = client.RemoteDataset(separable(), name="anyones", kind="public", contract=CONTRACT)
    private = client.RemoteDataset(separable(), 3.0, "planned", contract=CONTRACT)
    open_learner = learner(client, private, batch_size=None)
    quote = open_learner.price(eps=1.0)
    assert quote.steps == 200
    assert 16 <= quote.batch_size <= quote.declared_size
    rehearsal = open_learner.rehearse(steps=5, on=public, progress=False)
    assert rehearsal.dataset_names == ["anyones"]
    with pytest.raises(bastionai.InvalidRequest, match="is private"):
        open_learner.rehearse(on=private)
    frame = client.runs().to_frame()
    assert rehearsal.id in set(frame["run"])


def test_the_expected_time_is_of_the_right_order(connect):
    client = connect("clock-watcher")
    dataset = client.RemoteDataset(separable(), name="timed", kind="synthetic", contract=CONTRACT)
    deadline = time.monotonic() + 60
    while (quote := learner(client, dataset).price(steps=400, eps=1.0)).expected_seconds is None:
        assert time.monotonic() < deadline, "the server never measured its machine"
        time.sleep(1)
    started = time.monotonic()
    client._start(quote).wait(False)
    took = time.monotonic() - started
    # An order of magnitude: the machine of a test is busy with other things.
    assert quote.expected_seconds / 20 < took < 20 * quote.expected_seconds
