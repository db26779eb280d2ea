"""Metrics from histograms against scikit-learn, and evaluations against a real server."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from separable import CONTRACT, separable
from sklearn import metrics as sk
from torch import nn
from torch.utils.data import TensorDataset

import bastionai
from bastionai import Adam, Column, DataContract, _internal
from bastionai.evaluation import Evaluation, checked_metrics
from bastionai.exporting import prepare_scores


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))


def counted(labels: np.ndarray, logits: np.ndarray, bins: int) -> dict[str, object]:
    """The histograms of an evaluation, written again in numpy, without noise."""
    classes = logits.shape[1]
    confusion = np.zeros((classes, classes + 1), dtype=int)
    np.add.at(confusion, (labels, logits.argmax(1)), 1)
    histograms = [("confusion", confusion)]
    edges = np.array(_internal.score_edges(bins))
    for c in [1] if classes == 2 else range(classes):
        others = np.delete(logits, c, axis=1)
        odds = logits[:, c] - np.log(np.exp(others).sum(1))
        scores = np.zeros((2, bins + 1), dtype=int)
        np.add.at(scores, ((labels == c).astype(int), np.searchsorted(edges, odds, side="left")), 1)
        histograms.append((f"scores/{c}", scores))
    return {
        "classes": classes,
        "noise_standard_deviation": 0.0,
        "histograms": [
            {"name": name, "rows": h.shape[0], "columns": h.shape[1], "counts": h.ravel().tolist()}
            for name, h in histograms
        ],
    }


def estimates(histograms: dict[str, object], *names: str) -> dict[str, dict]:
    return json.loads(_internal.estimate_metrics(json.dumps(histograms), list(names)))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_without_noise_metrics_are_scikit_learns(classes):
    rng = np.random.default_rng(classes)
    labels = rng.integers(classes, size=700)
    logits = rng.normal(size=(700, classes)) * 2
    logits[np.arange(700), labels] += 1.5
    found = estimates(counted(labels, logits, 64), "accuracy", "f1", "f1_macro", "auroc")
    predicted = logits.argmax(1)
    assert found["accuracy"]["value"] == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-12)
    assert found["f1_macro"]["value"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"), abs=1e-12)
    f1 = sk.f1_score(labels, predicted, average="binary" if classes == 2 else "macro")
    assert found["f1"]["value"] == pytest.approx(f1, abs=1e-12)
    probabilities = torch.softmax(torch.tensor(logits), 1).numpy()
    scores = probabilities[:, 1] if classes == 2 else probabilities
    exact = sk.roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    auroc = found["auroc"]
    assert abs(auroc["value"] - exact) <= auroc["discretisation"] < 0.03
    assert auroc["std_error"] == 0.0
    if classes == 2:
        # On the bins themselves there is nothing to bound: the areas agree.
        edges = np.array(_internal.score_edges(64))
        binned = np.searchsorted(edges, logits[:, 1] - logits[:, 0], side="left")
        assert auroc["value"] == pytest.approx(sk.roc_auc_score(labels, binned), abs=1e-12)


def test_sampling_errors_are_those_of_a_bootstrap():
    rng = np.random.default_rng(7)
    labels = rng.integers(2, size=400)
    logits = np.stack([np.zeros(400), rng.normal(size=400) + 1.2 * labels - 0.6], axis=1)
    names = ("accuracy", "f1", "auroc")
    found = estimates(counted(labels, logits, 32), *names)
    resampled = {name: [] for name in names}
    for _ in range(400):
        chosen = rng.integers(400, size=400)
        again = estimates(counted(labels[chosen], logits[chosen], 32), *names)
        for name in names:
            resampled[name].append(again[name]["value"])
    for name in names:
        assert found[name]["sampling_error"] == pytest.approx(np.std(resampled[name]), rel=0.15), name


def test_unknown_metrics_and_impossible_ones_are_refused_with_the_choices():
    for wrong in ("precision", ["accuracy", "recall"], []):
        with pytest.raises(bastionai.InvalidRequest, match="choose from accuracy, auroc"):
            checked_metrics(wrong)
    with pytest.raises(bastionai.InvalidRequest, match="choose from"):
        estimates(counted(np.array([0, 1]), np.eye(2), 8), "precision")
    only_confusion = counted(np.array([0, 1]), np.eye(2), 8)
    only_confusion["histograms"] = only_confusion["histograms"][:1]
    with pytest.raises(bastionai.InvalidRequest, match="do not allow `auroc`"):
        estimates(only_confusion, "auroc")
    with pytest.raises(bastionai.InvalidRequest, match="even number"):
        _internal.score_edges(7)


def test_a_model_is_exported_to_scores_and_label():
    logits = prepare_scores(mlp(), "cross_entropy", CONTRACT)
    text = _internal.check_scores_archive(logits.archive, CONTRACT.to_json(), logits.input_columns)
    assert logits.input_columns == ["x", "label"]
    assert "dropout" not in text
    assert "f32[B, 2]" in text

    # One logit with float labels, as bce_with_logits wants them; and probabilities, as bce does.
    soft = DataContract([CONTRACT.columns[0], Column("y", "float32", range=(0, 1))], declared_size=64)
    single = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    for loss, model in (("bce_with_logits", single), ("bce", nn.Sequential(single, nn.Sigmoid()))):
        prepared = prepare_scores(model, loss, soft)
        text = _internal.check_scores_archive(prepared.archive, soft.to_json(), prepared.input_columns)
        assert ("log1p" in text) == (loss == "bce")


def test_a_model_that_mixes_samples_or_gives_no_scores_is_refused():
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x):
            scores = self.linear(x)
            return scores - scores.mean(dim=0)

    prepared = prepare_scores(Centred(), "cross_entropy", CONTRACT)
    with pytest.raises(bastionai.ModelRefused) as refused:
        _internal.check_scores_archive(prepared.archive, CONTRACT.to_json(), prepared.input_columns)
    assert any("mean" in refusal.operator for refusal in refused.value.refusals)
    with pytest.raises(bastionai.ExportError, match="returns 3 dimensions"):
        prepare_scores(nn.Unflatten(1, (2, 2)), "cross_entropy", CONTRACT)
    loss = bastionai.exporting.prepare(mlp(), "cross_entropy", CONTRACT)
    with pytest.raises(bastionai.ModelRefused, match="scores and label"):
        _internal.check_scores_archive(loss.archive, CONTRACT.to_json(), loss.input_columns)


def test_dropout_and_the_users_mode_are_left_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    prepared = prepare_scores(model, "cross_entropy", CONTRACT)
    assert model.training
    text = _internal.check_scores_archive(prepared.archive, CONTRACT.to_json(), prepared.input_columns)
    assert "train=True" not in text


def test_held_out_records_are_split_off_once_and_at_random():
    from bastionai.records import split_off

    whole = TensorDataset(torch.arange(100), torch.arange(100))
    train, test = split_off(whole, None, 0.2)
    assert (len(train), len(test)) == (80, 20)
    together = sorted([*train.tensors[0].tolist(), *test.tensors[0].tolist()])
    assert together == list(range(100))
    _, again = split_off(whole, None, 0.2)
    assert test.tensors[0].tolist() != again.tensors[0].tolist()
    records = [(torch.tensor([float(i)]), i % 2) for i in range(10)]
    train, test = split_off(records, None, 0.3)
    assert sorted(int(x) for part in (train, test) for x, _ in part) == list(range(10))
    for wrong in (0.0, 1.0, -0.5, None):
        with pytest.raises(bastionai.InvalidRequest, match="between 0 and 1"):
            split_off(whole, None, wrong)
    with pytest.raises(bastionai.InvalidRequest, match="not both"):
        split_off(whole, whole, 0.2)
    with pytest.raises(bastionai.ContractError, match="map-style"):
        split_off(iter(records), None, 0.2)


# ---- against a real server ----


@pytest.fixture(scope="module")
def trained(server, people):
    """An owner's dataset with a held-out part, and a scientist's learner that has trained on it."""
    owner = bastionai.Connection(server.address, identity=people("owner"), allow_simulated=True)
    scientist = bastionai.Connection(server.address, identity=people("scientist"), allow_simulated=True)
    kept = owner.RemoteDataset(
        separable(),
        privacy_limit=20.0,
        delta=1e-4,
        name="clinic",
        contract=CONTRACT,
        may_train=[scientist.principal],
        test_dataset=separable(450, seed=5),
        test_privacy_limit=40.0,
        verbose=False,
    )
    dataset = next(each for each in scientist.list_remote_datasets() if each.name == "clinic")
    learner = scientist.RemoteLearner(
        mlp(), dataset, loss="cross_entropy", optimizer=Adam(lr=0.02), model_name="mlp", batch_size=96
    )
    learner.fit(nb_epochs=15, eps=4.0, progress=False)
    yield kept, learner, scientist
    owner.close()
    scientist.close()


def held_out(client: bastionai.Connection):
    return next(each for each in client.list_remote_datasets() if each.name == "clinic.test")


@pytest.mark.e2e
def test_a_test_tells_the_metrics_of_the_held_out_records_within_its_error_bars(trained):
    kept, learner, scientist = trained
    assert kept.test is not None
    assert kept.test.evaluation_only
    assert kept.test.budget.lifetime.epsilon == 40
    before = held_out(scientist).budget.committed.epsilon
    result = learner.test(metrics=["accuracy", "auroc", "f1", "confusion"], eps=8.0)
    x, y = separable(450, seed=5).tensors
    with torch.no_grad():
        logits = learner.get_model()(x)
    truth = {
        "accuracy": sk.accuracy_score(y, logits.argmax(1)),
        "f1": sk.f1_score(y, logits.argmax(1)),
        "auroc": sk.roc_auc_score(y, (logits[:, 1] - logits[:, 0])),
    }
    assert set(result) == set(truth)
    for name, exact in truth.items():
        estimate = result[name]
        # Five standard errors, for three metrics: a false alarm in a million.
        assert abs(estimate.value - exact) <= 5 * estimate.std_error + estimate.discretisation, name
        assert estimate.interval[0] <= estimate.value <= estimate.interval[1]
        assert 0 < estimate.sampling_error < 0.05
    exact_confusion = sk.confusion_matrix(y, logits.argmax(1))
    assert np.abs(result.confusion - exact_confusion).max() <= 6 * result.noise_standard_deviation
    assert result.class_names == ["no", "yes"]
    assert abs(result.records.value - 450) <= 5 * result.records.std_error
    assert result.receipt.statement["run"]["kind"] == "evaluation"
    result.receipt.verify(allow_simulated=True)
    charged = held_out(scientist).budget.committed.epsilon - before
    assert 7.9 < charged <= 8
    for text in (str(result), result._repr_html_()):
        assert "accuracy" in text
        assert "clinic.test" in text
    assert list(result.to_frame().index) == ["accuracy", "auroc", "f1"]
    assert result.confusion_frame().loc["yes", "yes"] == result.confusion[1, 1]


@pytest.mark.e2e
def test_an_evaluation_is_found_again_and_two_are_two_charges(trained):
    _, learner, scientist = trained
    first = learner.test("accuracy", eps=3.0)
    spent = held_out(scientist).budget.committed.epsilon
    second = learner.test("accuracy", eps=3.0)
    assert held_out(scientist).budget.committed.epsilon - spent > 2.9
    assert first.run_id != second.run_id
    run = scientist.run(first.run_id)
    assert (run.kind, run.steps, run.state) == ("evaluation", 1, "succeeded")
    again = run.evaluation()
    assert isinstance(again, Evaluation)
    assert again["accuracy"] == first["accuracy"]
    with pytest.raises(KeyError, match="was not asked for"):
        first["auroc"]
    with pytest.raises(bastionai.InvalidRequest, match="did not release"):
        run.evaluation("auroc")


@pytest.mark.e2e
def test_weights_on_the_server_are_evaluated_without_fetching_them(trained):
    _, learner, _ = trained
    own = learner.price_test("accuracy", eps=2.0)
    same = learner.price_test("accuracy", eps=2.0, weights=learner.run)
    untrained = learner.price_test("accuracy", eps=2.0, model=mlp())
    assert len({own.run_digest, same.run_digest, untrained.run_digest}) == 3
    result = learner.test("accuracy", eps=6.0, weights=learner.run)
    assert result["accuracy"].value > 0.75


@pytest.mark.e2e
def test_what_cannot_be_evaluated_is_refused_before_anything_is_charged(trained, connect):
    _, learner, scientist = trained
    before = held_out(scientist).budget.committed
    with pytest.raises(bastionai.InvalidRequest, match="choose from"):
        learner.test("precision", eps=1.0)
    for eps in (0.0, -1.0, float("nan")):
        with pytest.raises(bastionai.InvalidRequest, match="positive"):
            learner.test("accuracy", eps=eps)
    with pytest.raises(bastionai.InvalidRequest, match="either eps= or"):
        learner.test("accuracy")
    with pytest.raises(bastionai.BudgetExceeded, match=r"clinic\.test"):
        learner.test("accuracy", eps=1000.0)
    with pytest.raises(bastionai.InvalidRequest, match="score bins"):
        learner.test("auroc", eps=1.0, score_bins=5)
    with pytest.raises(bastionai.PermissionRefused, match="held out"):
        scientist.RemoteLearner(mlp(), held_out(scientist), loss="cross_entropy", optimizer=Adam())
    untrained = scientist.RemoteLearner(mlp(), learner.datasets, loss="cross_entropy", optimizer=Adam())
    with pytest.raises(bastionai.InvalidRequest, match="nothing was trained yet"):
        untrained.test("accuracy", eps=1.0)
    stranger = connect("stranger")
    mine = stranger.RemoteDataset(separable(60), privacy_limit=1.0, name="mine", contract=CONTRACT, verbose=False)
    other = stranger.RemoteLearner(mlp(), mine, loss="cross_entropy", optimizer=Adam())
    with pytest.raises(bastionai.PermissionRefused, match="does not let you evaluate"):
        other.test("accuracy", eps=1.0, dataset=held_out(stranger), model=mlp())
    with pytest.raises(bastionai.InvalidRequest, match="no held-out dataset belongs to mine"):
        other.test("accuracy", eps=1.0, model=mlp())
    assert held_out(scientist).budget.committed == before


@pytest.mark.e2e
def test_labels_outside_the_models_classes_are_refused(connect):
    client = connect("owner")
    contract = DataContract([CONTRACT.columns[0], Column("label", "int64", classes=["a", "b", "c"])], declared_size=64)
    rows = TensorDataset(torch.zeros(40, 4), torch.arange(40) % 3)
    dataset = client.RemoteDataset(rows, privacy_limit=9.0, name="three", contract=contract, test_fraction=0.25)
    assert dataset.test.name == "three.test"
    learner = client.RemoteLearner(nn.Linear(4, 3), dataset, loss="cross_entropy", optimizer=Adam())
    with pytest.raises(bastionai.InvalidRequest, match="labels of column `label` go from 0 to 2"):
        learner.price_test("accuracy", eps=1.0, model=nn.Linear(4, 2))
    with pytest.warns(bastionai.NoiseWarning, match="drowns"):
        quote = learner.price_test("accuracy", eps=1.0, model=nn.Linear(4, 3))
    assert quote.classes == 3
    with pytest.warns(bastionai.NoiseWarning, match="not held out"):
        learner.price_test("accuracy", eps=1.0, model=nn.Linear(4, 3), dataset=dataset)
    with pytest.raises(bastionai.AlreadyExists, match=r"three\.test"):
        client.RemoteDataset(rows, privacy_limit=9.0, name="three", contract=contract, test_fraction=0.25)
