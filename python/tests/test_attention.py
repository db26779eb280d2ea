"""Attention while it is exported: the same numbers as PyTorch's, and a graph with the batch first throughout."""

from __future__ import annotations

import io
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bastionai.attention import exportable_attention
from bastionai.exporting import export_bytes

KINDS = [
    {},
    {"bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True},
    {"kdim": 5, "vdim": 7},
]


def agree(compute) -> None:
    plain = compute()
    with exportable_attention():
        ours = compute()
    for left, right in zip(plain, ours, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            torch.testing.assert_close(left, right)


def padding(mask: Tensor | None) -> list[Tensor | None]:
    padded = torch.zeros(3, 6, dtype=torch.bool)
    padded[0, 4:], padded[2, 5] = True, True
    if mask is not None and mask.is_floating_point():
        padded = torch.zeros(3, 6).masked_fill(padded, -1e4)
    return [None, padded]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("batch_first", [True, False])
def test_every_form_of_multihead_attention_has_pytorchs_numbers(kind, batch_first):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=batch_first, **kind)
    query, key = torch.randn(3, 4, 8), torch.randn(3, 6, kind.get("kdim", 8))
    value = torch.randn(3, 6, kind.get("vdim", 8))
    if not batch_first:
        query, key, value = (x.transpose(0, 1).contiguous() for x in (query, key, value))
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    allowed = torch.rand(4, 6) > 0.7
    allowed[:, 0] = False
    for weights, average in itertools.product([True, False], repeat=2):
        told = {"need_weights": weights, "average_attn_weights": average}
        for mask in (None, allowed, torch.randn(4, 6), torch.randn(6, 4, 6)):
            for padded in padding(mask):
                more = {"attn_mask": mask, "key_padding_mask": padded, **told}
                agree(lambda more=more: module(query, key, value, **more))
                if "kdim" not in kind:
                    agree(lambda more=more: module(query, key, key, **more))
        if "kdim" not in kind:
            agree(lambda told=told: module(query, query, query, attn_mask=causal, is_causal=True, **told))


def test_dropped_attention_weights_are_scaled_and_zero():
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True).train()
    x = torch.randn(64, 4, 8)
    with exportable_attention():
        _, weights = module(x, x, x, average_attn_weights=False)
        assert 0.4 < (weights == 0).float().mean() < 0.6
        assert abs(weights.sum(-1).mean() - 1) < 0.1
        out, _ = module(x, x, x, need_weights=False)
    assert not torch.allclose(out, module.eval()(x, x, x, need_weights=False)[0])


def test_pytorch_is_as_before_after_an_export_even_one_that_fails():
    before = (F.multi_head_attention_forward, torch.backends.mha.get_fastpath_enabled())
    with exportable_attention():
        assert F.multi_head_attention_forward is not before[0]
        assert not torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(AssertionError), exportable_attention():
        nn.MultiheadAttention(8, 2)(*[torch.zeros(2, 1, 7)] * 3)
    assert (F.multi_head_attention_forward, torch.backends.mha.get_fastpath_enabled()) == before


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.body(x, mask=mask, src_key_padding_mask=(x[:, :, 0] < -1).float() * -1e4).square().mean((1, 2))


def test_an_encoder_exports_what_it_computes_in_training_and_inference():
    torch.manual_seed(0)
    module = Encoder()
    x = torch.randn(5, 6, 8)
    for mode in (module.train(), module.eval()):
        expected = mode(x)
        archive = export_bytes(mode, [x[:3]])
        exported = _load(archive)
        torch.testing.assert_close(exported.module()(x), expected)
        targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
        fused = [name for name in targets if "fast" in name or "native_multi_head" in name or "encoder_layer" in name]
        assert "aten.scaled_dot_product_attention.default" in targets
        assert not fused


def _load(archive: bytes) -> torch.export.ExportedProgram:
    return torch.export.load(io.BytesIO(archive))
