"""Fine-tuning of a part: adapters of the PEFT library, heads on frozen backbones, biases only."""

from __future__ import annotations

from collections.abc import Callable

import peft
import torchvision
import transformers
from torch import nn

import bastionai
from bastionai import Column, DataContract
from zoo.case import Case, Model
from zoo.text import _ENCODER, _GPT2, _LLAMA, _NEXT_TOKENS, CLASSES, contract, model

_LABEL = Column("label", "int64", classes=CLASSES)
_IMAGES = DataContract([Column("x", "float32", (3, 32, 32), range=(0.0, 1.0)), _LABEL], declared_size=16)


def bert() -> nn.Module:
    """A classifier of texts whose layers are few and narrow."""
    return transformers.BertForSequenceClassification(transformers.BertConfig(**_ENCODER))


def only(module: nn.Module, trained: Callable[[str], bool]) -> nn.Module:
    """Freezes what is not to be trained."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trained(name))
    return module


def _adapted_bert(config: Callable[..., peft.PeftConfig], **options: object) -> Callable[[], Model]:
    def build() -> Model:
        adapter = config(task_type=peft.TaskType.SEQ_CLS, **options)
        return model(_awake(peft.get_peft_model(bert(), adapter)), contract(_LABEL))

    return build


def _lora_bert(**options: object) -> Callable[[], Model]:
    return _adapted_bert(peft.LoraConfig, **{"r": 2, "lora_alpha": 4, "target_modules": ["query", "value"]} | options)


def _lora_decoder(made: nn.Module, **options: object) -> Model:
    adapter = peft.LoraConfig(task_type=peft.TaskType.CAUSAL_LM, r=2, lora_alpha=4, **options)
    return model(_awake(peft.get_peft_model(made, adapter)), contract(_NEXT_TOKENS), "causal_lm")


def _lora_gpt2(*layers: str) -> Callable[[], Model]:
    def build() -> Model:
        made = transformers.GPT2LMHeadModel(transformers.GPT2Config(**_GPT2))
        return _lora_decoder(made, target_modules=list(layers), fan_in_fan_out=True)

    return build


def _lora_llama() -> Model:
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LLAMA))
    return _lora_decoder(made, target_modules=["q_proj", "v_proj", "down_proj"])


def _awake(module: nn.Module) -> nn.Module:
    """A fresh adapter's second factor is zero, which would leave its first without a gradient to compare."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return module


def _head_of_bert() -> Model:
    return model(only(bert(), lambda name: name.startswith("classifier")), contract(_LABEL))


def _biases_of_bert() -> Model:
    trained = only(bert(), lambda name: name.endswith("bias") or name.startswith("classifier"))
    return model(trained, contract(_LABEL))


def _head_of_resnet() -> Model:
    module = bastionai.fix(torchvision.models.resnet18(num_classes=CLASSES), batchnorm="freeze", verbose=False)
    return Model(only(module, lambda name: name.startswith("fc")), _IMAGES, "cross_entropy", inputs=["x"])


_EMBEDDING = "none of LoRA's factors of an embedding, which are parameters of no layer that its hooks know"

CASES = [
    Case("lora-bert", "LoRA on query and value, classifier trained", _lora_bert(lora_dropout=0.1)),
    Case("lora-bert-all-linear", "LoRA on every linear layer", _lora_bert(target_modules="all-linear")),
    Case("rslora-bert", "rank-stabilised LoRA", _lora_bert(use_rslora=True)),
    Case("lora-bert-biases", "LoRA, and the biases of its layers", _lora_bert(bias="lora_only")),
    Case(
        "lora-bert-embedding",
        "LoRA on the embedding of words",
        _lora_bert(target_modules=["word_embeddings"]),
        opacus=_EMBEDDING,
    ),
    Case(
        "dora-bert",
        "DoRA: LoRA with a trained magnitude",
        _lora_bert(use_dora=True),
        opacus="none of DoRA's magnitudes",
    ),
    Case(
        "ia3-bert",
        "(IA)³: trained scales of keys, values and feed-forward",
        _adapted_bert(
            peft.IA3Config, target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]
        ),
        opacus="none of scales, which are parameters of no layer that its hooks know",
    ),
    Case("lora-gpt2", "`GPT2LMHeadModel`: LoRA on `c_attn`, `causal_lm`", _lora_gpt2("c_attn")),
    Case("lora-gpt2-all", "`GPT2LMHeadModel`: LoRA on every product", _lora_gpt2("c_attn", "c_proj", "c_fc")),
    Case("lora-llama", "`LlamaForCausalLM`: LoRA on query, value and down", _lora_llama, tolerance=1e-6),
    Case("frozen-bert-head", "frozen encoder, trained classifier", _head_of_bert),
    Case("bitfit-bert", "biases and the classifier only", _biases_of_bert),
    Case("frozen-resnet18-head", "frozen resnet18 with its statistics, trained `fc`", _head_of_resnet),
]
