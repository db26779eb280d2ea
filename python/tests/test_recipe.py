"""Schedules, averages, kept iterates and warm starts against a real server with the real trainer."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

import bastionai
from bastionai import SGD, Adam, Column, DataContract, privacy, schedules

pytestmark = pytest.mark.e2e

CONTRACT = DataContract(
    [Column("x", "float32", (4,), range=(-1, 1)), Column("label", "int64", classes=["no", "yes"])], declared_size=256
)


def mlp(hidden: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 2))


@pytest.fixture
def dataset(connect):
    client = connect("scientist")
    if not any(dataset.name == "practice" for dataset in client.list_remote_datasets()):
        x = torch.rand(250, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
        rows = TensorDataset(x, (x[:, 0] > 0).long())
        client.RemoteDataset(rows, name="practice", kind="synthetic", contract=CONTRACT)
    return next(dataset for dataset in client.list_remote_datasets() if dataset.name == "practice")


def learner(client, dataset, model=None, **changes):
    options = {"loss": "cross_entropy", "optimizer": Adam(lr=0.05), "batch_size": 64, "max_loss": 0}
    return client.RemoteLearner(model or mlp(), dataset, **{**options, **changes})


def train(learner, steps: int):
    return learner.fit(steps=steps, noise_multiplier=1.0, delta=1e-6, progress=False)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_with_a_recipe_gives_its_iterates_and_their_average(connect, dataset, tmp_path):
    client = connect("scientist")
    remote = learner(
        client,
        dataset,
        optimizer=torch.optim.Adam,
        schedule=schedules.Cosine(warmup_ratio=0.1, final_ratio=0.1),
        ema_decay=0.5,
        keep_every=1,
    )
    quote = remote.price(steps=12, noise_multiplier=1.0, delta=1e-6)
    assert quote.document["spec"]["schedule"] == {"decay": {"cosine": {"final_ratio": 0.1}}, "warmup": {"steps": 2}}
    assert quote.document["spec"]["keep_steps"] == list(range(1, 12))
    run = train(remote, 12)
    start = dict(mlp().named_parameters())
    iterates = [run.state_dict(step=step) for step in range(1, 12)] + [run.state_dict()]
    assert torch.equal(iterates[0]["0.weight"], start["0.weight"]), "the first step of a warm-up has rate 0"
    assert not torch.equal(iterates[1]["0.weight"], iterates[0]["0.weight"])
    for step in (1, 5, 12):
        weights = torch.tensor([0.5 ** (step - s) for s in range(1, step + 1)], dtype=torch.float64)
        for name, average in run.state_dict(step=step, ema=True).items():
            stacked = torch.stack([iterate[name].double() for iterate in iterates[:step]])
            mean = (stacked * weights.reshape(-1, *[1] * (stacked.dim() - 1))).sum(0) / weights.sum()
            torch.testing.assert_close(average.double(), mean, atol=1e-6, rtol=0)
    assert equal(dict(run.model(ema=True).named_parameters()), run.state_dict(ema=True))
    assert equal(dict(remote.get_model(step=5).named_parameters()), iterates[4])
    with pytest.raises(bastionai.BastionError, match="no weights of step 13"):
        run.model(step=13)

    folder = run.save(tmp_path / "average", ema=True)
    assert equal(load_file(folder / "model.safetensors"), run.state_dict(ema=True))
    receipt = bastionai.Receipt.load(folder / "receipt.dsse.json")
    receipt.verify(allow_simulated=True, ledger_key=client.attestation.ledger_key)
    kept = receipt.statement["run"]["kept"]
    assert {"step": 12, "ema": True} in [{"step": each["step"], "ema": each["ema"]} for each in kept]
    assert len(kept) == 11 * 2 + 1


def test_the_average_of_the_tail_is_the_mean_of_the_last_iterates(connect, dataset):
    remote = learner(connect("scientist"), dataset, tail_average=0.5, keep_every=1)
    run = train(remote, 7)
    iterates = [run.state_dict(step=step) for step in range(1, 7)] + [run.state_dict()]
    assert equal(run.state_dict(step=2, ema=True), iterates[1]), "before its tail the average is the iterate"
    for step in (5, 7):
        for name, average in run.state_dict(step=step, ema=True).items():
            mean = torch.stack([iterate[name].double() for iterate in iterates[3:step]]).mean(0)
            torch.testing.assert_close(average.double(), mean, atol=1e-6, rtol=0)


def test_noise_is_correlated_over_as_many_steps_as_the_price_says(connect, dataset):
    remote = learner(connect("scientist"), dataset, bands="auto", batch_size=16, optimizer=SGD(lr=0.1))
    quote = remote.price(steps=16, eps=8.0, delta=1e-6)
    assert quote.bands > 2
    assert quote.noise_ratio < 0.9
    assert f"{quote.bands} steps" in str(quote)
    what_if = privacy.plan_bands(8.0, 1e-6, quote.declared_size, 16, steps=16)
    assert quote.bands == what_if.bands
    assert quote.noise_ratio == pytest.approx(what_if.noise_ratio, rel=1e-3)
    plain = learner(connect("scientist"), dataset, batch_size=16, optimizer=SGD(lr=0.1))
    independent = plain.price(steps=16, eps=8.0, delta=1e-6)
    assert (independent.bands, independent.noise_ratio) == (1, 1.0)
    assert quote.run_digest != independent.run_digest
    run = remote.fit(steps=16, eps=8.0, delta=1e-6, progress=False)
    event = run.receipt.statement["datasets"][0]["event"]
    assert event == "no_op", "nobody is charged for synthetic records"
    assert all(torch.isfinite(tensor).all() for tensor in run.state_dict().values())


def test_correlated_noise_goes_with_hardened_sums_and_costs_the_same(connect, dataset):
    def of(mode):
        # A quarter of the records in four classes: everybody at each of their turns.
        return learner(connect("scientist"), dataset, bands=4, noise_mode=mode, batch_size=64, optimizer=SGD(lr=0.1))

    remote = of("hardened")
    hardened, standard = (each.price(steps=8, eps=8.0, delta=1e-6) for each in (remote, of("standard")))
    assert (hardened.bands, hardened.noise_mode, hardened.noise_slack) == (4, "hardened", 0.0)
    assert hardened.noise_multiplier == standard.noise_multiplier
    assert hardened.run_digest != standard.run_digest
    run = remote.fit(steps=8, eps=8.0, delta=1e-6, progress=False)
    assert run.state == "succeeded"
    assert run.receipt.statement["run"]["noise_mode"] == "hardened"
    start = mlp().state_dict()
    assert not any(torch.equal(start[name], each) for name, each in run.state_dict().items())


def test_a_rehearsal_takes_as_many_bands_as_it_has_room_for(connect, dataset):
    remote = learner(connect("scientist"), dataset, bands=8, batch_size=16)
    assert remote.price(steps=12, noise_multiplier=1.0, delta=1e-6).bands == 8
    assert remote.rehearse(steps=3, on=dataset, progress=False).state == "succeeded"
    with pytest.raises(bastionai.BastionError, match="at most 3"):
        remote.price(steps=3, noise_multiplier=1.0, delta=1e-6)


def test_adam_can_be_corrected_for_the_noise(connect, dataset):
    client = connect("scientist")
    quote = learner(client, dataset, optimizer=Adam(lr=0.05, noise_correction=1e-3)).price(
        steps=3, noise_multiplier=1.0, delta=1e-6
    )
    corrected = quote.document["spec"]["optimizer"]["noise_corrected"]
    assert (corrected["floor"], corrected["decoupled"]) == (1e-3, False)
    assert train(learner(client, dataset, optimizer=Adam(lr=0.05, noise_correction=1e-3)), 3).state_dict()
    with pytest.raises(bastionai.InvalidRequest, match="noise_correction"):
        Adam(noise_correction=0.0)


def test_a_run_starts_where_another_was(connect, dataset):
    client = connect("scientist")
    first = train(learner(client, dataset, keep_steps=[3], ema_decay=0.9), 6)
    still = {"optimizer": SGD(lr=0.0)}
    for source, weights in [
        (first, first.state_dict()),
        (first.at(step=3), first.state_dict(step=3)),
        (first.at(ema=True), first.state_dict(ema=True)),
    ]:
        again = train(learner(client, dataset, initial_weights=source, **still), 2)
        assert equal(again.state_dict(), weights)
    # A run found again names its weights too, and knows no module.
    found = client.run(first.id)
    again = train(learner(client, dataset, initial_weights=found, **still), 2)
    assert equal(again.state_dict(), first.state_dict())
    with pytest.raises(bastionai.InvalidRequest, match="give one"):
        found.model()


def test_weights_that_do_not_fit_are_listed(connect, dataset):
    client = connect("scientist")
    first = train(learner(client, dataset), 2)
    wider = learner(client, dataset, mlp(hidden=9), initial_weights=first)
    with pytest.raises(bastionai.BastionError, match=r"3 of 4 tensors.*float32\[8, 4\] there and float32\[9, 4\]"):
        wider.price(steps=2, noise_multiplier=1.0, delta=1e-6)


def test_an_uploaded_archive_is_a_source_too(connect, dataset):
    client = connect("scientist")
    other = mlp()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    digest = (
        learner(client, dataset, other).price(steps=2, noise_multiplier=1.0, delta=1e-6).document["spec"]["model_id"]
    )
    run = train(learner(client, dataset, initial_weights=digest, optimizer=SGD(lr=0.0)), 2)
    assert equal(run.state_dict(), dict(other.named_parameters()))


def test_a_stranger_cannot_start_from_the_weights_of_others(connect, dataset):
    owner, stranger = connect("scientist"), connect("stranger")
    run = train(learner(owner, dataset), 2)
    x = torch.zeros(10, 4)
    rows = TensorDataset(x, x[:, 0].long())
    own = stranger.RemoteDataset(rows, name="strangers", kind="synthetic", contract=CONTRACT)
    with pytest.raises(bastionai.NotFound):
        learner(stranger, own, initial_weights=run).price(steps=2, noise_multiplier=1.0, delta=1e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ema_decay": 1.0}, "between 0 and 1"),
        ({"tail_average": 1.5}, "at most 1"),
        ({"tail_average": 0.5, "ema_decay": 0.9}, "not both"),
        ({"bands": 0}, "from 1"),
        ({"bands": "many"}, "from 1"),
        ({"keep_steps": [1], "keep_every": 2}, "not both"),
        ({"keep_steps": [0]}, "count steps from 1"),
        ({"initial_weights": mlp()}, "not known"),
        ({"schedule": "cosine"}, r"schedules\.Constant"),
    ],
)
def test_senseless_recipes_are_refused_at_once(connect, dataset, options, says):
    with pytest.raises(bastionai.InvalidRequest, match=says):
        learner(connect("scientist"), dataset, **options)


def test_a_warm_up_longer_than_the_run_is_refused_by_the_server(connect, dataset):
    late = learner(connect("scientist"), dataset, schedule=schedules.Linear(warmup_steps=9))
    with pytest.raises(bastionai.BastionError, match="longer than the run"):
        late.price(steps=8, noise_multiplier=1.0, delta=1e-6)
