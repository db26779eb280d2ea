"""Fine-tuning of a part through a real server: only what requires a gradient is trained, charged and brought back."""

from __future__ import annotations

import copy
import re

import peft
import pytest
import torch
from safetensors.torch import load_file
from zoo import harness
from zoo.case import Case
from zoo.peft import CASES, bert, only
from zoo.text import CLASSES, LENGTH, WORDS

from bastionai import Adam, Column, DataContract, InvalidRequest
from bastionai.synthetic import synthetic_columns

pytestmark = pytest.mark.filterwarnings("ignore::bastionai.NoiseWarning")
e2e = pytest.mark.e2e

CONTRACT = DataContract(
    [
        Column("input_ids", "int64", (LENGTH,), range=(0, WORDS - 1)),
        Column("attention_mask", "int64", (LENGTH,), range=(0, 1)),
        Column("label", "int64", classes=CLASSES),
    ],
    declared_size=64,
)


def rows() -> list[dict[str, torch.Tensor]]:
    words = torch.randint(1, WORDS, (64, LENGTH), generator=torch.Generator().manual_seed(0))
    lengths = torch.arange(64) % (LENGTH - 2) + 3
    mask = (torch.arange(LENGTH) < lengths.unsqueeze(1)).long()
    label = words[:, 0] * CLASSES // WORDS
    return [{"input_ids": i * m, "attention_mask": m, "label": y} for i, m, y in zip(words, mask, label, strict=True)]


@pytest.fixture
def dataset(connect, request):
    return connect("owner").RemoteDataset(
        rows(), name=request.node.name[:100], kind="public", contract=CONTRACT, may_train="anyone", verbose=False
    )


def adapted(base: torch.nn.Module) -> peft.PeftModel:
    config = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS, r=2, lora_alpha=4, target_modules=["query", "value"], lora_dropout=0.1
    )
    return peft.get_peft_model(copy.deepcopy(base), config)


def fitted(client, model, dataset, **changes):
    options = {"loss": "cross_entropy", "optimizer": Adam(lr=0.05), "batch_size": 16, "max_batch_size": 16}
    learner = client.RemoteLearner(model, dataset, **{**options, **changes})
    return learner, learner.fit(steps=3, eps=8.0, delta=1e-5, progress=False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_frozen_layers_have_no_tap_and_every_trained_parameter_has_one(case: Case):
    model = case.made()
    _, graph = harness.exported(model)
    tapped = {name for tap in re.findall(r"  tap (.*?)  #", graph) for name in re.findall(r"model\.[\w.]+", tap)}
    trained = {f"model.{name}" for name, each in model.module.named_parameters() if each.requires_grad}
    assert tapped == trained


@e2e
def test_an_adapter_is_trained_charged_and_brought_back_alone_and_pefts_own_loading_takes_it(
    connect, dataset, tmp_path
):
    client, base = connect("scientist"), bert()
    model = adapted(base)
    before = copy.deepcopy(model.state_dict())
    learner, run = fitted(client, model, dataset)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert learner.price(steps=3, eps=8.0, delta=1e-5).trainable_parameters == sum(
        p.numel() for p in trainable.values()
    )
    assert run.state_dict().keys() == trainable.keys()
    trained = run.model()
    for name, value in trained.state_dict().items():
        assert torch.equal(value, before[name]) != (name in trainable), name
    folder = run.save(tmp_path / "adapter")
    assert load_file(folder / "model.safetensors").keys() == trainable.keys()
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder)
    record = rows()[0]
    tokens = {name: record[name].unsqueeze(0) for name in ("input_ids", "attention_mask")}
    assert torch.equal(loaded.eval()(**tokens).logits, trained.eval()(**tokens).logits)
    again = client.run(run.id).save(tmp_path / "again", module=model)
    assert (
        load_file(again / "adapter_model.safetensors").keys() == load_file(folder / "adapter_model.safetensors").keys()
    )


@e2e
def test_a_head_on_a_frozen_backbone_is_all_that_changes(connect, dataset):
    model = only(bert(), lambda name: name.startswith("classifier"))
    _, run = fitted(connect("scientist"), model, dataset)
    assert run.state_dict().keys() == {"classifier.weight", "classifier.bias"}
    trained, before = run.model().state_dict(), model.state_dict()
    changed = {name for name, value in trained.items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


@e2e
@pytest.mark.parametrize("name", ["bitfit-bert", "lora-gpt2"])
def test_what_requires_a_gradient_is_charged_changed_and_brought_back_and_nothing_else(connect, request, name):
    made = next(case for case in CASES if case.name == name).made()
    declared = DataContract(made.contract.columns, declared_size=64)
    texts = synthetic_columns(declared, 64, seed=3)
    records = [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]
    dataset = connect("owner").RemoteDataset(
        records, name=request.node.name[:100], kind="public", contract=declared, may_train="anyone", verbose=False
    )
    trainable = {name: each for name, each in made.module.named_parameters() if each.requires_grad}
    learner, run = fitted(connect("scientist"), made.module, dataset, loss=made.loss)
    charged = learner.price(steps=3, eps=8.0, delta=1e-5).trainable_parameters
    assert charged == sum(each.numel() for each in trainable.values())
    assert run.state_dict().keys() == trainable.keys()
    before = made.module.state_dict()
    changed = {name for name, value in run.model().state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trainable.keys()


@e2e
@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
def test_every_clipping_trains_and_is_a_run_of_its_own(connect, dataset, clipping):
    client = connect("scientist")
    model = only(bert(), lambda name: name.endswith("bias"))
    learner, run = fitted(client, model, dataset, clipping=clipping)
    assert run.state == "succeeded"
    assert learner.price(steps=3, eps=8.0, delta=1e-5).document["spec"]["clipping"] == clipping
    assert all(torch.isfinite(each).all() for each in run.state_dict().values())


@e2e
def test_adapters_train_hardened_and_digest_price_and_receipt_say_so(connect, dataset):
    client, model = connect("scientist"), adapted(bert())
    learner, run = fitted(client, model, dataset, noise_mode="hardened")
    assert run.state == "succeeded"
    assert all(torch.isfinite(each).all() for each in run.state_dict().values())
    assert run.receipt.statement["run"]["noise_mode"] == "hardened"
    hardened = learner.price(steps=3, eps=8.0, delta=1e-5)
    assert (hardened.noise_mode, hardened.noise_slack) == ("hardened", 0.0)
    other, _ = fitted(client, model, dataset)
    standard = other.price(steps=3, eps=8.0, delta=1e-5)
    assert (standard.noise_mode, standard.noise_slack) == ("standard", 0.02)
    assert standard.run_digest != hardened.run_digest
    assert [charge.cost for charge in standard.charges] == [charge.cost for charge in hardened.charges]
    with pytest.raises(InvalidRequest, match="'standard', 'hardened'"):
        fitted(client, model, dataset, noise_mode="fast")


@e2e
def test_products_in_bfloat16_train(connect, dataset):
    client, model = connect("scientist"), adapted(bert())
    learner, run = fitted(client, model, dataset, compute="bfloat16")
    assert learner.price(steps=3, eps=8.0, delta=1e-5).document["spec"]["compute"] == "bfloat16"
    assert all(each.dtype == torch.float32 and torch.isfinite(each).all() for each in run.state_dict().values())
    with pytest.raises(InvalidRequest, match="'float32', 'bfloat16'"):
        fitted(client, model, dataset, compute="float16")


@e2e
def test_an_unknown_clipping_is_refused_by_name(connect, dataset):
    with pytest.raises(InvalidRequest, match="'flat', 'per_layer', 'automatic'"):
        fitted(connect("scientist"), bert(), dataset, clipping="per-layer")
