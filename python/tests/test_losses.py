"""Every loss gives, for sample i, what PyTorch gives for a batch of i alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bastionai import Column
from bastionai.exceptions import LossError
from bastionai.losses import BinaryCrossEntropy, CausalLanguageModel, CrossEntropy, Regression, per_sample_loss

BATCH = 6


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(*shape: int) -> Tensor:
    return torch.randn(BATCH, *shape, generator=rng(1), dtype=torch.float64)


def labels(*shape: int, classes: int = 3, low: int = 0) -> Tensor:
    return torch.randint(low, classes, (BATCH, *shape), generator=rng(2))


def alone(loss: nn.Module, output: Tensor, target: Tensor) -> Tensor:
    return torch.stack([loss(output[i : i + 1], target[i : i + 1]) for i in range(BATCH)])


UNWEIGHTED = [
    ("cross_entropy", nn.CrossEntropyLoss(), logits(3), labels()),
    ("cross_entropy", nn.CrossEntropyLoss(), logits(3, 5), labels(5)),
    ("cross_entropy", nn.CrossEntropyLoss(), logits(3, 4, 2), labels(4, 2)),
    ("cross_entropy", nn.CrossEntropyLoss(), logits(3), torch.softmax(logits(3), 1)),
    ("nll", nn.NLLLoss(), torch.log_softmax(logits(3), 1), labels()),
    ("bce_with_logits", nn.BCEWithLogitsLoss(), logits(), labels(classes=2).double()),
    ("bce_with_logits", nn.BCEWithLogitsLoss(), logits(4), labels(4, classes=2).double()),
    ("bce", nn.BCELoss(), torch.sigmoid(logits(4)), labels(4, classes=2).double()),
    ("mse", nn.MSELoss(), logits(4, 2), logits(4, 2) * 2),
    ("mse", nn.MSELoss(), logits(), logits() * 2),
    ("l1", nn.L1Loss(), logits(4), logits(4) * 3),
    ("huber", nn.HuberLoss(), logits(4), logits(4) * 3),
    ("smooth_l1", nn.SmoothL1Loss(), logits(4), logits(4) * 3),
    (nn.HuberLoss(delta=0.3), nn.HuberLoss(delta=0.3), logits(4), logits(4) * 3),
    (nn.SmoothL1Loss(beta=0.3), nn.SmoothL1Loss(beta=0.3), logits(4), logits(4) * 3),
    (nn.CrossEntropyLoss(label_smoothing=0.2), nn.CrossEntropyLoss(label_smoothing=0.2), logits(3), labels()),
    (nn.CrossEntropyLoss(label_smoothing=0.2), nn.CrossEntropyLoss(label_smoothing=0.2), logits(3, 5), labels(5)),
    (nn.MSELoss(reduction="sum"), nn.MSELoss(reduction="sum"), logits(4), logits(4) * 2),
    (nn.CrossEntropyLoss, nn.CrossEntropyLoss(), logits(3), labels()),
    (F.cross_entropy, nn.CrossEntropyLoss(), logits(3), labels()),
    (nn.MultiMarginLoss(), nn.MultiMarginLoss(), logits(3), labels()),
    (nn.KLDivLoss(reduction="batchmean"), nn.KLDivLoss(reduction="batchmean"), logits(3), torch.softmax(logits(3), 1)),
    (nn.SoftMarginLoss(), nn.SoftMarginLoss(), logits(4), labels(4, classes=2).double() * 2 - 1),
    (lambda o, t: (o - t).abs().amax(dim=1), lambda o, t: (o - t).abs().max(), logits(4), logits(4) * 3),
]


@pytest.mark.parametrize("case", UNWEIGHTED, ids=lambda case: f"{case[0]}-{tuple(case[2].shape)}"[:60])
def test_equals_pytorch_on_a_batch_of_one(case):
    ours, theirs, output, target = case
    torch.testing.assert_close(per_sample_loss(ours)(output, target), alone(theirs, output, target))


@pytest.mark.parametrize("case", UNWEIGHTED, ids=lambda case: f"{case[0]}-{tuple(case[2].shape)}"[:60])
def test_gradients_equal_pytorch_on_a_batch_of_one(case):
    ours, theirs, output, target = case
    mine, other = output.clone().requires_grad_(True), output.clone().requires_grad_(True)
    per_sample_loss(ours)(mine, target).sum().backward()
    alone(theirs, other, target).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad)


def test_class_weights_multiply_and_are_not_divided_by_the_batch():
    weight = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    ours = per_sample_loss(nn.CrossEntropyLoss(weight=weight))(logits(3), labels())
    torch.testing.assert_close(ours, F.cross_entropy(logits(3), labels(), weight=weight, reduction="none"))


def test_class_weights_with_label_smoothing_equal_the_unreduced_loss():
    weight = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    loss = nn.CrossEntropyLoss(weight=weight, label_smoothing=0.3)
    expected = F.cross_entropy(logits(3), labels(), weight=weight, label_smoothing=0.3, reduction="none")
    torch.testing.assert_close(per_sample_loss(loss)(logits(3), labels()), expected)


def test_weights_and_ignored_positions_average_within_a_sample_as_pytorch_does_for_it_alone():
    weight = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    loss = nn.CrossEntropyLoss(weight=weight, ignore_index=-1)
    target = labels(7, low=-1)
    target[:, 0] = 1  # at least one counted position, or PyTorch gives NaN
    torch.testing.assert_close(per_sample_loss(loss)(logits(3, 7), target), alone(loss, logits(3, 7), target))


def test_a_sample_without_counted_positions_costs_nothing_and_has_no_gradient():
    output = logits(3, 7).requires_grad_(True)
    losses = per_sample_loss(nn.CrossEntropyLoss(ignore_index=-1))(output, torch.full((BATCH, 7), -1))
    losses.sum().backward()
    assert torch.equal(losses, torch.zeros_like(losses))
    assert torch.equal(output.grad, torch.zeros_like(output))


def test_an_ignored_label_costs_nothing():
    target = labels()
    target[2] = -100
    losses = per_sample_loss("cross_entropy")(logits(3), target)
    assert losses[2] == 0
    torch.testing.assert_close(losses, F.cross_entropy(logits(3), target, reduction="none"))


def test_pos_weight_and_weight_of_bce():
    weight, pos_weight = torch.rand(4, generator=rng()).double(), torch.rand(4, generator=rng(9)).double() * 5
    loss = nn.BCEWithLogitsLoss(weight=weight, pos_weight=pos_weight)
    target = labels(4, classes=2).double()
    torch.testing.assert_close(per_sample_loss(loss)(logits(4), target), alone(loss, logits(4), target))


def test_integer_targets_of_bce_and_mse_are_converted():
    for name in ("bce_with_logits", "mse"):
        target = labels(classes=2)
        torch.testing.assert_close(
            per_sample_loss(name)(logits(), target), per_sample_loss(name)(logits(), target.double())
        )


@pytest.mark.parametrize("name", ["bce_with_logits", "mse", "l1", "huber"])
def test_a_trailing_axis_of_one_never_broadcasts_sample_against_sample(name):
    output, target = logits(1), labels(classes=2).double()
    losses = per_sample_loss(name)(output, target)
    assert losses.shape == (BATCH,)
    torch.testing.assert_close(losses, per_sample_loss(name)(output[:, 0], target))
    torch.testing.assert_close(losses, per_sample_loss(name)(output[:, 0], target[:, None]))


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_bce_on_certain_probabilities_is_finite_with_finite_gradient(probability):
    output = torch.full((BATCH,), probability, requires_grad=True)
    losses = BinaryCrossEntropy(logits=False)(output, torch.full((BATCH,), 1.0 - probability))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(output.grad).all()


def test_no_sample_influences_another():
    weight = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    for loss in ("cross_entropy", nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1)):
        output, target = logits(3), labels()
        before = per_sample_loss(loss)(output, target)
        output[0], target[0] = 1e6, (target[0] + 1) % 3
        after = per_sample_loss(loss)(output, target)
        assert torch.equal(before[1:], after[1:])


LABELS = {
    "class": Column("label", "int64", classes=10),
    "classes of 12 positions": Column("label", "int64", (3, 4), classes=10),
    "probabilities of 12 positions": Column("label", "float32", (10, 3, 4), range=(0, 1)),
    "tokens": Column("tokens", "int64", (13,), range=(-100, 9)),
    "12 numbers": Column("label", "float32", (12,), range=(0, 1)),
}


@pytest.mark.parametrize(
    ("averaged", "summed", "label", "output"),
    [
        (CrossEntropy(), CrossEntropy(total=True), "classes of 12 positions", (10, 3, 4)),
        (CrossEntropy(), CrossEntropy(total=True), "probabilities of 12 positions", (10, 3, 4)),
        (CausalLanguageModel(), CausalLanguageModel(total=True), "tokens", (13, 10)),
        (BinaryCrossEntropy(True), BinaryCrossEntropy(True, total=True), "12 numbers", (12,)),
    ],
)
def test_the_suggested_clip_is_twice_the_loss_of_guessing_averaged_or_summed(averaged, summed, label, output):
    column = LABELS[label]
    guess = torch.zeros(2, *output)
    target = torch.full((2, *column.shape), 0.1 if column.torch_dtype.is_floating_point else 1)
    for loss in (averaged, summed):
        guessed = loss(guess, target.to(column.torch_dtype))
        assert loss.suggested_max_loss(column) == pytest.approx(2 * float(guessed[0]), rel=1e-5)


def test_without_a_guess_the_suggested_clip_is_1_a_number_that_is_summed():
    assert CrossEntropy(total=True).suggested_max_loss(LABELS["class"]) == pytest.approx(2 * 2.302585, rel=1e-5)
    assert Regression("mse").suggested_max_loss(LABELS["12 numbers"]) == 1.0
    assert Regression("mse", total=True).suggested_max_loss(LABELS["12 numbers"]) == 12.0
    divergence = per_sample_loss(nn.KLDivLoss(reduction="batchmean"))
    assert divergence.suggested_max_loss(LABELS["12 numbers"]) == 1.0, "one distribution, however many its classes"


@pytest.mark.parametrize(
    ("loss", "output", "target", "says"),
    [
        ("no_such_loss", None, None, "no loss named 'no_such_loss'"),
        (42, None, None, "expected a name"),
        (nn.CTCLoss(), None, None, "CTCLoss is not supported"),
        (lambda o, t: (o - t).pow(2).mean(), logits(4), logits(4), "one number for the whole batch"),
        ("mse", logits(3), labels(), "the model gives [batch, 3], the targets are [batch]"),
        ("cross_entropy", logits(), labels(), 'loss="bce_with_logits"'),
        ("cross_entropy", logits(3), labels(5), "class targets must be [batch]"),
    ],
)
def test_what_has_no_per_sample_form_says_why(loss, output, target, says):
    with pytest.raises(LossError) as caught:
        per_sample_loss(loss)(output, target)
    assert says in str(caught.value)
