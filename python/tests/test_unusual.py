"""Unusual modules are accepted, or refused with the line of Python and what to do instead; never by a crash."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from bastionai import Column, DataContract, ExportError, ModelRefused, _internal
from bastionai.exporting import prepare

MODULE = """
import random
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2
    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3

def changed(x):
    x[:, 0] = 0.0
    return x

def hooked(x):
    x.register_hook(lambda gradient: gradient * 0)
    return x

class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 1))
    def forward(self, x):
        return F.linear(x.mean(1, keepdim=True), self.weight)

class Unusual(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = PART
        self.head = Head()
    def forward(self, x):
        part = self.part
        inner = EXPRESSION
        return self.head(inner.flatten(1).float())
"""
LINE = 1 + MODULE.split("\n").index("        inner = EXPRESSION")
CONTRACT = DataContract(
    [Column("x", "float32", (4, 6), range=(-1, 1)), Column("label", "int64", classes=3)], declared_size=16
)

#: A layer, and what is computed of it and a [batch, 4, 6] input.
ACCEPTED = {
    "bilinear": ("nn.Bilinear(6, 6, 5)", "part(x[:, 0], x[:, 1])"),
    "attention with its weights": (
        "nn.MultiheadAttention(6, 2, batch_first=True)",
        "torch.cat(part(x, x, x, need_weights=True), -1)",
    ),
    "attention with every head's weights": (
        "nn.MultiheadAttention(6, 2, batch_first=True)",
        "part(x, x, x, average_attn_weights=False)[1]",
    ),
    "bag of embeddings": ("nn.EmbeddingBag(10, 4)", "part((x[:, 0].abs() * 9).long())"),
    "weight norm": ("parametrizations.weight_norm(nn.Linear(6, 5))", "part(x)"),
    "sort": ("None", "x.sort(-1).values"),
    "topk within a sample": ("None", "x.topk(2, -1).values"),
    "cumsum within a sample": ("None", "x.cumsum(1)"),
    "einsum of three": ("None", "torch.einsum('bij,bkj,bkl->bil', x, x, x)"),
    "double": ("None", "x.double()"),
    "whole transformer": ("nn.Transformer(6, 2, 1, 1, 8, batch_first=True)", "part(x, x)"),
    "checkpointing": ("nn.Linear(6, 6)", "torch.utils.checkpoint.checkpoint(part, x, use_reentrant=False)"),
    "gradient stopped": ("nn.Linear(6, 6)", "x + torch.no_grad()(part)(x)"),
    "trained attention mask": (
        "nn.Linear(4, 4)",
        "F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], attn_mask=part.weight[None, None])",
    ),
    "trained table where data say so": ("nn.Linear(6, 4)", "torch.where(x > 0, part.weight[None], 0.0)"),
    "one hot": ("None", "F.one_hot((x[:, 0].abs() * 9).long(), 10)"),
}

REFUSED = {
    "attention over the batch": ("nn.MultiheadAttention(6, 2)", "part(x, x, x)[0]"),
    "fold": ("None", "F.fold(F.unfold(x[:, None], 2, stride=2), (4, 6), 2, stride=2)"),
    "grid sample": ("None", "F.grid_sample(x[:, None], x[:, :, None, :2])"),
    "complex numbers": ("None", "torch.view_as_complex(x.reshape(-1, 12, 2)).abs()"),
    "fourier transform": ("None", "torch.fft.rfft(x).abs()"),
    "branch on values": ("None", "x * 2 if x.sum() > 0 else x"),
    "loop over values": ("None", "x * int(x.abs().sum().item())"),
    "boolean index": ("None", "x[x > 0].sum().expand(x.shape[0], 1)"),
    "input changed in place": ("None", "x.mul_(2.0)"),
    "bags cut by offsets": (
        "nn.EmbeddingBag(10, 4)",
        "part((x[:, 0].abs() * 9).long().flatten(), 6 * torch.arange(len(x)))",
    ),
    "spectral norm": ("parametrizations.spectral_norm(nn.Linear(6, 5))", "part(x)"),
    "orthogonal weight": ("parametrizations.orthogonal(nn.Linear(6, 6))", "part(x)"),
    "topk of the batch": ("None", "x.topk(2, 0).values.sum() * x"),
    "einsum over the batch": ("None", "torch.einsum('bij,bik->jk', x, x).sum() * x"),
    "half": ("None", "x.half()"),
    "bfloat16": ("None", "x.bfloat16()"),
    "int8": ("None", "(x * 10).to(torch.int8)"),
    "quantized": ("None", "torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)"),
    "inverse": ("None", "torch.linalg.inv(x[:, :, :4])"),
    "distances to a parameter": ("nn.Linear(6, 5)", "torch.cdist(x, part.weight)"),
    "samples shuffled": ("None", "x[torch.randperm(x.shape[0])]"),
    "draws that depend on data": ("None", "torch.bernoulli(x.sigmoid())"),
    "cell of a recurrent layer": ("nn.LSTMCell(6, 5)", "part(x[:, 0])[0]"),
    "sparse": ("None", "x.to_sparse().to_dense()"),
    "numpy": ("None", "torch.from_numpy(x.numpy())"),
    "quantile": ("None", "x.quantile(0.5, -1)"),
    "vmap": ("None", "torch.vmap(lambda row: row * 2)(x)"),
    "control flow of torch": ("None", "torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))"),
    "backward of its own": ("nn.Linear(6, 6)", "Doubled.apply(part(x))"),
    "reentrant checkpointing": ("nn.Linear(6, 6)", "torch.utils.checkpoint.checkpoint(part, x, use_reentrant=True)"),
    "batch size fixed": ("None", "x.reshape(3, 24)"),
    "batch size compared": ("None", "x * 2 if x.shape[0] > 5 else x"),
    "rows by a loop": ("None", "torch.stack([row * 2 for row in x])"),
    "wrong width": ("nn.Linear(7, 3)", "part(x)"),
    "sequences packed": (
        "nn.LSTM(6, 5, batch_first=True)",
        "part(nn.utils.rnn.pack_padded_sequence(x, torch.full((3,), 4), batch_first=True))[1][0].transpose(0, 1)",
    ),
    "input assigned to": ("None", "changed(x)"),
    "gradient hook": ("nn.Linear(6, 6)", "hooked(part(x))"),
}
#: What is refused while it is traced, in a function that is called at the line. Nodes of a graph know `forward`'s line.
CALLED = {"gradient hook": "x.register_hook"}


def made(folder: Path, part: str, expression: str) -> nn.Module:
    path = folder / "unusual.py"
    path.write_text(MODULE.replace("PART", part).replace("EXPRESSION", expression))
    return runpy.run_path(str(path))["Unusual"]()


def exported(model: nn.Module) -> str:
    prepared = prepare(model, "cross_entropy", CONTRACT)
    return _internal.check_archive(prepared.archive, CONTRACT.to_json(), prepared.input_columns)


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_unusual_module_that_keeps_samples_apart_is_accepted(name, tmp_path):
    assert "[B" in exported(made(tmp_path, *ACCEPTED[name]))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_proven_is_refused_with_its_line_and_what_to_do_instead(name, tmp_path):
    model = made(tmp_path, *REFUSED[name])
    with pytest.raises((ModelRefused, ExportError)) as caught:
        exported(model)
    text = str(caught.value)
    called = CALLED.get(name)
    line = LINE if called is None else 1 + next(n for n, code in enumerate(MODULE.split("\n")) if called in code)
    assert f"unusual.py:{line}" in text or f'unusual.py", line {line}' in text, text
    if isinstance(caught.value, ModelRefused):
        assert all(refusal.reason and refusal.remedy for refusal in caught.value.refusals)
    else:
        assert any(advice in text for advice in ("se ", "rite ", "instead", "leave it out")), text


def test_what_is_no_module_or_cannot_be_copied_is_an_error_of_the_export():
    old = nn.Sequential(nn.Flatten(), torch.nn.utils.weight_norm(nn.Linear(24, 3)))
    old(torch.rand(3, 4, 6))
    with pytest.raises(ExportError, match=r"parametrizations\.weight_norm"):
        exported(old)
    with pytest.raises(ExportError, match="meta"):
        exported(nn.Sequential(nn.Flatten(), nn.Linear(24, 3, device="meta")))
    with pytest.raises(ExportError, match=r"expected a torch\.nn\.Module"):
        prepare(torch.relu, "cross_entropy", CONTRACT)


@pytest.mark.parametrize("on", ["layer", "parameter"])
def test_a_hook_on_a_gradient_is_refused_by_name(on):
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 3))
    if on == "layer":
        model[1].register_full_backward_hook(lambda *_: None)
    else:
        model[1].weight.register_hook(lambda gradient: gradient * 0)
    with pytest.raises(ExportError, match=r"model\.1.*would be lost"):
        exported(model)


def test_tensors_of_a_dtype_without_rules_are_refused_by_name():
    with pytest.raises(ModelRefused, match=r'"model\.1\.\w+".*float32'):
        exported(nn.Sequential(nn.Flatten(), nn.Linear(24, 3)).bfloat16())
