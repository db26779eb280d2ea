#!/usr/bin/env python3
"""Exports the small models of crates/graph/tests/fixtures with the pinned torch.

Each module maps its inputs (batch axis 0, dynamic) to one loss per sample, as `bastionai.export` sends it.
Run with the project's .venv; the archives are committed. Names as arguments write only those.
"""

import io
import pathlib
import sys
import zipfile

import torch
import torch.nn.functional as F
from torch import nn

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "crates/graph/tests/fixtures"


class Classifier(nn.Module):
    """MLP with public scaling, layer_norm, dropout and a per-sample cross-entropy by gather."""

    def __init__(self):
        super().__init__()
        self.register_buffer("low", torch.zeros(8))
        self.register_buffer("width", torch.full((8,), 4.0))
        self.body = nn.Sequential(
            nn.Linear(8, 16),
            nn.LayerNorm(16),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(16, 3),
        )

    def forward(self, x, y):
        logits = self.body((x - self.low) / self.width)
        return -F.log_softmax(logits, dim=-1).gather(1, y.unsqueeze(1)).squeeze(1)


class CrossEntropy(nn.Module):
    """F.cross_entropy, whose recorded metadata is wrong after run_decompositions in torch 2.11."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x, y):
        return F.cross_entropy(self.last(torch.tanh(self.first(x))), y, reduction="none") * 0.5


class Regressor(nn.Module):
    """MLP regressor with several outputs and an in-place activation."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 12), nn.ReLU(inplace=True), nn.Linear(12, 2))

    def forward(self, x, y):
        return F.mse_loss(self.body(x), y, reduction="none").mean(dim=1)


class Binary(nn.Module):
    """Binary classifier: bool labels, BCE with logits."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 7), nn.Linear(7, 1)

    def forward(self, x, y):
        logits = self.last(F.silu(self.first(x))).squeeze(-1)
        return F.binary_cross_entropy_with_logits(logits, y.float(), reduction="none")


class Broadcast(nn.Module):
    """Hand-written layers: matmul and broadcast parameters, tied weights, a frozen one, an unused one."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))
        self.shift, self.scale = (
            nn.Parameter(torch.zeros(4)),
            nn.Parameter(torch.ones(1, 4)),
        )
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
        self.unused = nn.Parameter(torch.randn(3))
        self.decode = nn.Linear(4, 6, bias=False)
        self.encode = nn.Linear(6, 4, bias=False)
        self.tied = nn.Linear(6, 4, bias=False)
        self.tied.weight = self.encode.weight

    def forward(self, x):
        h = (x @ self.weight - self.shift) * self.scale + self.frozen
        h = h + self.encode(x) + self.tied(torch.tanh(x))
        constant = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        return ((self.decode(F.elu(h)) - x).abs() * constant).view(x.size(0), -1, 2).sum(dim=(1, 2))


class BatchNorm(nn.Module):
    """Must be refused: BatchNorm mixes the samples and writes buffers."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 1))

    def forward(self, x, y):
        return F.mse_loss(self.body(x).squeeze(1), y, reduction="none")


class MeanOfBatch(nn.Module):
    """Must be refused: centred by the batch, twice, and one loss for all."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, x, y):
        centred = x - x.mean(dim=0)
        scaled = y / x.shape[0]
        return F.mse_loss(self.layer(centred).squeeze(1), scaled, reduction="mean")


ZOO_INPUTS = (
    torch.randn(4, 8),
    torch.randint(0, 3, (4,)),
    torch.rand(4),
    torch.rand(4) > 0.5,
)


class Zoo(nn.Module):
    """Every further operator with a rule that exported MLPs are likely to hold."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(8, 3), nn.Linear(8, 1)
        self.register_buffer("weights", torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("table", torch.randn(3, 2))

    def activations(self, h):
        functions = [
            F.relu,
            F.gelu,
            torch.tanh,
            torch.sigmoid,
            F.silu,
            F.elu,
            F.leaky_relu,
            F.softplus,
            F.hardtanh,
            F.hardswish,
            F.hardsigmoid,
            F.selu,
            F.celu,
            F.mish,
            F.relu6,
            F.logsigmoid,
            F.softsign,
            F.hardshrink,
            F.softshrink,
            torch.sin,
            torch.cos,
            torch.erf,
            torch.expm1,
            torch.abs,
            torch.square,
            torch.sign,
        ]
        total = F.gelu(h, approximate="tanh")
        for function in functions:
            total = total + function(h)
        positive = h.abs() + 1
        return total + positive.log() + positive.sqrt() + positive.rsqrt() + positive.log1p() + 1 / positive + 2**h

    def reductions(self, h):
        values, _ = h.max(dim=1)
        least, _ = h.min(dim=-1)
        total = values + least + h.amax(dim=1) + h.amin(dim=1) + h.logsumexp(dim=1) + h.var(dim=1) + h.std(dim=1)
        total = total + F.normalize(h, dim=1).sum(1) + h.pow(2).mean(-1) + torch.softmax(h, -1)[:, 0]
        return total + (h > 0).any(dim=1).float() + h.argmax(dim=1).float() + torch.linalg.vector_norm(h, dim=1)

    def shapes(self, x, y):
        size = x.shape[0]
        left, right = x.split([3, 5], dim=1)
        one, two = x.chunk(2, dim=1)
        total = left.sum(1) + right.mean(1) + (one + two).flatten(1).sum(1) + x.unbind(1)[3]
        total = total + torch.cat([x, x[:, 1:3]], dim=1).sum(1) + torch.stack([x, x], dim=1).sum((1, 2))
        total = (
            total
            + x.view(-1, 2).sum(1).view(size, 4).sum(1)
            + x.t().contiguous().t().reshape(size, 2, 4).permute(0, 2, 1).sum((1, 2))
        )
        total = (
            total + torch.zeros(size) + x.new_ones(size, 2).sum(1) + torch.full((size,), 2.0) + torch.zeros_like(total)
        )
        total = total + self.weights.unsqueeze(0).expand(size, 3).sum(1) + torch.zeros(size * 2).view(size, 2).sum(1)
        return total + self.weights[y] + self.table[y].sum(1) + F.embedding(y, self.table).sum(1)

    def losses(self, h, y, t, flag):
        p, q = h[:, 0], torch.sigmoid(h[:, 1])
        total = F.smooth_l1_loss(p, t, reduction="none") + F.huber_loss(p, t, reduction="none")
        total = total + F.l1_loss(p, t, reduction="none") + F.poisson_nll_loss(p, t, reduction="none")
        total = total + F.soft_margin_loss(p, t, reduction="none") + F.kl_div(p, q, reduction="none")
        total = total + F.cross_entropy(h, y, reduction="none", label_smoothing=0.1)
        total = total + torch.where(flag, p, -p) + p.masked_fill(flag, 0.0) + (flag & (t > 0.5)).float()
        total = total + F.log_softmax(h, 1)[torch.arange(h.shape[0]), y] + torch.maximum(p, t) + p.clamp(-1, 1)
        total = total + F.binary_cross_entropy_with_logits(
            h, F.one_hot(y, 3).float(), pos_weight=self.weights, reduction="none"
        ).sum(1)
        return (
            total
            + F.nll_loss(F.log_softmax(h, 1), y, reduction="none")
            + F.cross_entropy(h, y, weight=self.weights, reduction="none")
        )

    def forward(self, x, y, t, flag):
        h = self.activations(self.layer(F.rms_norm(F.layer_norm(x, [8]), [8])))
        h = h + F.dropout(h, 0.2) + F.group_norm(h, 3)
        return self.losses(h, y, t, flag) + self.reductions(h) + self.shapes(x, y) + self.out(x).squeeze(1).detach()


class Encoder(nn.Module):
    """PyTorch's encoder layer with padded keys, and attention whose weights are asked for."""

    def __init__(self):
        super().__init__()
        self.body = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
        )
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)

    def forward(self, x):
        h = self.body(x, src_key_padding_mask=x[:, :, 0] < -0.9)
        return self.attention(h, h, h)[0].square().mean((1, 2))


class Text(nn.Module):
    """Token and position embeddings, a class token, and the table again as the last layer; padding is word 0."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 6, padding_idx=0)
        self.positions = nn.Embedding(9, 6)
        self.first = nn.Parameter(torch.randn(1, 1, 6))
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        hidden = self.table(ids) + self.positions(torch.arange(ids.shape[1]).unsqueeze(0))
        hidden = torch.cat([self.first.expand(ids.shape[0], -1, -1), hidden], dim=1)
        log_p = self.head(torch.tanh(hidden[:, :-1])).log_softmax(-1)
        losses = -log_p.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        kept = (ids != 0).to(losses.dtype)
        return (losses * kept).sum(1) / kept.sum(1).clamp(min=1.0)


class Functions(nn.Module):
    """Functions of parameters: normalised, merged, scaled, sliced, and a decoder whose projections are slices."""

    def __init__(self):
        super().__init__()
        self.normalised = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.base = nn.Parameter(torch.randn(8, 8), requires_grad=False)
        self.down, self.up = nn.Parameter(torch.randn(8, 2) * 0.3), nn.Parameter(torch.randn(2, 8) * 0.3)
        self.log_scale, self.gate = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(5, 1))
        self.rows = nn.Parameter(torch.randn(12, 8) * 0.3)
        self.places = nn.Embedding(5, 8, padding_idx=0)
        self.decoder = nn.TransformerDecoderLayer(8, 2, 12, dropout=0.0, batch_first=True)

    def forward(self, x):
        h = torch.tanh(self.normalised(x + self.places(torch.arange(5))))
        h = F.linear(h, self.base + self.down @ self.up) * self.log_scale.exp()
        h = h + h @ self.down @ self.up + F.softplus(self.gate) * F.linear(h, self.rows[1:9]) + self.rows[::3][1]
        causal = nn.Transformer.generate_square_subsequent_mask(5)
        return self.decoder(torch.tanh(h), x, tgt_mask=causal).square().mean((1, 2))


class Composed(nn.Module):
    """Operators that the client composes from simpler ones."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Parameter(torch.randn(3, 4))
        self.heads, self.both = nn.Parameter(torch.randn(4, 4, 3)), nn.Bilinear(4, 4, 2)

    def forward(self, x):
        h = F.glu(self.first(x), -1)
        scores = torch.einsum("bqd,bkd->bqk", h, h)
        mixed = torch.einsum("bqk,bkd->bqd", scores.softmax(-1), h)
        each = torch.einsum("bhd,hde->bhe", mixed, self.heads)
        total = torch.einsum("eo,bhe->bho", self.last, each).flip(1).roll(1, -1)
        total = total + self.both(h, mixed).repeat(1, 1, 2) + total.repeat_interleave(2, dim=1).unfold(1, 4, 1)[:, 1].mT
        total = total + h.index_select(1, torch.tensor([0, 2, 2, 1])) + h.mT.unflatten(1, (2, 2)).flatten(1, 2)
        return total.square().mean((1, 2)) + F.cosine_similarity(h, mixed, dim=-1).sum(1)


class Images(nn.Module):
    """Convolutions with stride, padding, dilation and groups, transposed ones, pooling, group_norm; in float64."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.GroupNorm(2, 4)
        self.grouped = nn.Conv2d(4, 4, (3, 2), padding=(2, 1), dilation=(2, 1), groups=2, bias=False)
        self.up = nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.signal = nn.Conv1d(2, 4, 5, stride=3, padding=2, dilation=2, groups=2)
        self.back = nn.ConvTranspose1d(4, 2, 3, dilation=2)
        self.head = nn.Linear(12, 3)
        self.double()

    def forward(self, x, y):
        h = F.max_pool2d(torch.tanh(self.norm(self.first(x))), 2, stride=1, padding=1)
        h = torch.tanh(self.up(F.avg_pool2d(torch.tanh(self.grouped(h)), 2)))
        signal = F.max_pool1d(torch.tanh(self.signal(x.flatten(2))), 3, stride=2)
        signal = F.adaptive_max_pool1d(torch.tanh(self.back(signal)), 2)
        features = torch.cat([F.adaptive_avg_pool2d(h, 2).flatten(1), signal.flatten(1)], dim=1)
        return F.cross_entropy(self.head(features), y, reduction="none")


class Plain(nn.Module):
    """What plain torch.export leaves as it is: BatchNorm in evaluation mode under its core name, repeat, flip, roll."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)
        self.token, self.head = nn.Parameter(torch.randn(1, 1, 3)), nn.Linear(3, 1)

    def forward(self, x):
        h = torch.tanh(self.norm(self.first(x)))
        h = h.masked_fill(h > 0.5, torch.tensor(0.25)).flip(2).roll(1, 3)
        h = h.repeat(1, 1, 2, 1).repeat_interleave(2, dim=3).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.repeat(x.shape[0], 1, 1), h], dim=1)
        return torch.tanh(self.head(h)).square().mean((1, 2))


class SequenceFirst(nn.Module):
    """Must be refused: attention told that the sequence comes first, and given the batch first."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0].square().mean((1, 2))


#: Exported as the client does it (`bastionai.export`), where that is not plain torch.export.
BY_CLIENT = {
    "encoder": (Encoder, (torch.randn(4, 5, 8),)),
    "functions": (Functions, (torch.randn(4, 5, 8),)),
    "composed": (Composed, (torch.randn(4, 4, 6),)),
    "refused_sequence_first": (SequenceFirst, (torch.randn(4, 5, 8),)),
}

#: Exported as a user does it who has never heard of us: `module.eval()`, then plain torch.export.
EVALUATED = {"plain"}

MODELS = {
    **BY_CLIENT,
    "classifier": (Classifier, (torch.randn(4, 8), torch.randint(0, 3, (4,)))),
    "cross_entropy": (CrossEntropy, (torch.randn(4, 8), torch.randint(0, 3, (4,)))),
    "regressor": (Regressor, (torch.randn(4, 6), torch.randn(4, 2))),
    "binary": (Binary, (torch.randn(4, 5), torch.rand(4) > 0.5)),
    "broadcast": (Broadcast, (torch.randn(4, 6),)),
    "zoo": (Zoo, ZOO_INPUTS),
    "text": (Text, (torch.randint(0, 7, (4, 5)),)),
    "images": (Images, (torch.randn(4, 2, 9, 9, dtype=torch.float64), torch.randint(0, 3, (4,)))),
    "plain": (Plain, (torch.randn(4, 2, 5, 4),)),
    "refused_batch_norm": (BatchNorm, (torch.randn(4, 6), torch.randn(4))),
    "refused_batch_mean": (MeanOfBatch, (torch.randn(4, 6), torch.randn(4))),
}


def without_samples(archive: bytes) -> bytes:
    """The archive without its pickled sample inputs, and with no path of this machine but /models."""
    source, target = zipfile.ZipFile(io.BytesIO(archive)), io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as out:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith(("sample_inputs/model.pt", "serialization_id")):
                continue
            if name.endswith("model.json"):
                data = data.replace(str(pathlib.Path(__file__).resolve().parent).encode(), b"/models")
                data = data.replace(
                    str(pathlib.Path(torch.__file__).resolve().parent.parent).encode(),
                    b"/site-packages",
                )
            out.writestr(zipfile.ZipInfo(name), data)
    return target.getvalue()


def main() -> int:
    """Writes every fixture, or those named on the command line."""
    torch.manual_seed(0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    batch = torch.export.Dim("batch")
    for name, (module, inputs) in MODELS.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        if name in BY_CLIENT:
            from bastionai.exporting import export_bytes

            (FOLDER / f"{name}.pt2").write_bytes(without_samples(export_bytes(module(), inputs)))
            continue
        shapes = tuple({0: batch} for _ in inputs)
        program = torch.export.export(
            module().train(name not in EVALUATED), inputs, dynamic_shapes=shapes
        ).run_decompositions({})
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        (FOLDER / f"{name}.pt2").write_bytes(without_samples(buffer.getvalue()))
        print(name, sum(1 for _ in program.graph.nodes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
