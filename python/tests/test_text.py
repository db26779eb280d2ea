"""Language models: losses within each sample, and bags that are visibly one sample's."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bastionai import Column, DataContract
from bastionai.bags import BagsWithinSample
from bastionai.exceptions import LossError
from bastionai.exporting import prepare, target_column
from bastionai.losses import CausalLanguageModel, per_sample_loss

BATCH, TOKENS, WORDS = 5, 7, 11


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits() -> torch.Tensor:
    return torch.randn(BATCH, TOKENS, WORDS, generator=rng(1), dtype=torch.float64)


def tokens(low: int = 0) -> torch.Tensor:
    return torch.randint(low, WORDS, (BATCH, TOKENS), generator=rng(2))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_causal_lm_is_the_shifted_cross_entropy_of_each_sample_alone(smoothing):
    target = tokens()
    target[1, 3:] = target[2, 0] = target[3, 1:-1] = -100
    ours = CausalLanguageModel(label_smoothing=smoothing)(logits(), target)
    for i in range(BATCH):
        alone = F.cross_entropy(logits()[i, :-1], target[i, 1:], label_smoothing=smoothing)
        torch.testing.assert_close(ours[i], alone)


def test_a_sample_of_ignored_tokens_only_has_loss_and_gradient_zero():
    output, target = logits().requires_grad_(True), tokens()
    target[2, 1:] = 0
    losses = CausalLanguageModel(ignore_index=0)(output, target)
    losses.sum().backward()
    assert losses[2] == 0
    assert torch.all(output.grad[2] == 0)
    assert torch.isfinite(output.grad).all()


def test_the_other_samples_lengths_do_not_change_a_samples_loss():
    # HuggingFace's loss divides by the tokens of the whole batch; Opacus' ghost clipping forgot ignore_index (#792).
    target = tokens()
    before = per_sample_loss("causal_lm")(logits(), target)
    target[0, 2:] = -100
    after = per_sample_loss("causal_lm")(logits(), target)
    assert torch.equal(before[1:], after[1:])


def test_targets_of_another_length_are_refused():
    with pytest.raises(LossError, match=r"\[batch, 7, 11\]"):
        CausalLanguageModel()(logits(), tokens()[:, :-1])


class Tied(nn.Module):
    """A language model in small: the table is the last layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 4)
        self.head = nn.Linear(4, WORDS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.table(tokens)))


def test_a_column_of_tokens_is_input_and_target_of_a_language_model():
    contract = DataContract([Column("tokens", "int64", (TOKENS,), range=(0, WORDS - 1))], declared_size=64)
    prepared = prepare(Tied(), "causal_lm", contract)
    assert prepared.input_columns == ["tokens"]


def test_the_shown_loss_of_a_language_model_is_clipped_at_twice_that_of_guessing_a_word_of_its_vocabulary():
    tokens = Column("tokens", "int64", (TOKENS,), range=(0, 30_521))
    padded = Column("tokens", "int64", (TOKENS,), range=(-100, 30_521))
    for column in (tokens, padded):
        assert per_sample_loss("causal_lm").suggested_max_loss(column) == pytest.approx(2 * math.log(30_522))


def test_the_tokens_are_compared_with_and_not_their_mask_which_is_the_last_column():
    tokens = Column("input_ids", "int64", (TOKENS,), range=(0, WORDS - 1))
    mask = Column("attention_mask", "int64", (TOKENS,), range=(0, 1))
    contract = DataContract([tokens, mask], declared_size=64)
    assert target_column(contract, per_sample_loss("causal_lm")) == "input_ids"
    assert target_column(contract, per_sample_loss("cross_entropy")) == "attention_mask"


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 0, -1])
def test_bags_equal_pytorchs(mode, padding_idx):
    table = torch.randn(WORDS, 3, generator=rng(3), dtype=torch.float64, requires_grad=True)
    ids = tokens()
    ids[1], ids[2] = 0, WORDS - 1  # bags of padding only
    theirs = F.embedding_bag(ids, table, mode=mode, padding_idx=padding_idx)
    with BagsWithinSample():
        ours = F.embedding_bag(ids, table, mode=mode, padding_idx=padding_idx)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn(theirs.shape, generator=rng(4), dtype=torch.float64)
    gradients = [torch.autograd.grad((bags * weights).sum(), table)[0] for bags in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_weighted_bags_equal_pytorchs():
    table = torch.randn(WORDS, 3, generator=rng(3))
    weights = torch.rand(BATCH, TOKENS, generator=rng(5))
    theirs = F.embedding_bag(tokens(), table, mode="sum", per_sample_weights=weights)
    with BagsWithinSample():
        ours = F.embedding_bag(tokens(), table, mode="sum", per_sample_weights=weights)
    torch.testing.assert_close(ours, theirs)


def test_bags_cut_by_offsets_are_left_for_the_server_to_refuse():
    table, ids = torch.randn(WORDS, 3), torch.tensor([1, 2, 3, 4])
    called = []

    class Watch(BagsWithinSample):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            called.append(func)
            return super().__torch_function__(func, types, args, kwargs)

    with Watch():
        F.embedding_bag(ids, table, offsets=torch.tensor([0, 2]))
    assert F.embedding not in called


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(WORDS, 4, mode="mean", padding_idx=0)
        self.head = nn.Linear(4, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.bag(tokens))


def test_an_exported_bag_holds_no_offsets():
    from bastionai.exporting import _trace, _training_copy

    program = _trace(_training_copy(Bag(), (tokens(),)), (tokens(),))
    operators = {str(node.target) for node in program.graph.nodes}
    assert "aten.embedding.default" in operators
    assert not any("embedding_bag" in operator for operator in operators)
