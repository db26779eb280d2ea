"""Text: encoders for sequences and tokens, decoders with their language-model loss."""

from __future__ import annotations

import transformers

from bastionai import Column, DataContract
from zoo.case import Case, Model

LENGTH, WORDS, CLASSES = 8, 50, 3
_ENCODER = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": LENGTH + 4,
    "num_labels": CLASSES,
}


def contract(*more: Column, mask: bool = True) -> DataContract:
    """Token ids, their mask, and the columns given."""
    ids = Column("input_ids", "int64", (LENGTH,), range=(0, WORDS - 1))
    masks = [Column("attention_mask", "int64", (LENGTH,), range=(0, 1))] if mask else []
    return DataContract([ids, *masks, *more], declared_size=16)


def _bert_without_mask() -> Model:
    module = transformers.BertForSequenceClassification(transformers.BertConfig(**_ENCODER))
    return Model(module, contract(Column("label", "int64", classes=CLASSES), mask=False), "cross_entropy")


CASES = [
    Case(
        "bert-unmasked",
        "`BertForSequenceClassification` without a mask",
        _bert_without_mask,
        opacus="none of position embeddings: the hooks see a batch of one row",
    ),
]
