"""Clinical notes: a GPT-2 learns the language of doctors through LoRA, from notes that stay where they are.

A clinic lends passages of its notes. A scientist sends a GPT-2 of which only LoRA's small matrices are trained (Hu et
al. 2021), privately; the rest is frozen and costs neither noise nor time. What is measured: bits per token on held-out
notes, before, after, and against the same training in the open.

    python examples/clinical_notes.py --data mtsamples.csv

``--model`` is a causal language model of transformers: a folder, or a name on its hub such as ``gpt2``. Without it a
small GPT-2 over bytes is first trained here, in public, on the manual that comes with Python. The data: a CSV with a
column ``transcription`` (MTSamples, https://www.kaggle.com/datasets/tboyle10/medicaltranscriptions, CC0).
"""

from __future__ import annotations

import copy
import csv
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import torch
from peft import LoraConfig, get_peft_model
from rich.progress import track
from rich.table import Table
from study import arguments, console, needed, study
from torch import nn
from torch.utils.data import TensorDataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, set_seed
from transformers.utils import logging

import bastionai

SOURCE = "https://www.kaggle.com/datasets/tboyle10/medicaltranscriptions"
#: Tokens of a passage.
TOKENS = 64
HELD_OUT = 0.15
LEARNING_RATE = 2e-3
BATCH_SIZE = 128
#: Of the small model's training in public.
PUBLIC_STEPS = 300

Encode = Callable[[str], list[int]]


def notes(path: Path) -> list[str]:
    """The transcriptions, each once."""
    with path.open(newline="", encoding="utf8") as file:
        texts = [line.get("transcription") or "" for line in csv.DictReader(file)]
    found = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not found:
        raise SystemExit(f"{path} has no column `transcription` with text; get it from {SOURCE}")
    return found


def passages(texts: list[str], encode: Encode, tokens: int) -> torch.Tensor:
    """``[passages, tokens]``: every note cut into whole passages; what is left over is dropped."""
    cut = []
    for text in texts:
        ids = encode(text)
        cut += [ids[first : first + tokens] for first in range(0, len(ids) - tokens + 1, tokens)]
    return torch.tensor(cut)


def load(name: str | None) -> tuple[nn.Module, Encode]:
    """A pretrained causal language model and its tokenizer, or the small one."""
    if name is None:
        return small_model(), lambda text: list(text.encode())
    tokenizer = AutoTokenizer.from_pretrained(name)
    return AutoModelForCausalLM.from_pretrained(name), lambda text: tokenizer(text)["input_ids"]


def small_model() -> nn.Module:
    """A GPT-2 of four layers over bytes, trained for a minute on text that is everybody's."""
    config = GPT2Config(
        vocab_size=256, n_positions=128, n_embd=128, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    data = passages(["\n".join(topics.values())], lambda text: list(text.encode()), TOKENS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in track(range(PUBLIC_STEPS), "a small GPT-2 reads Python's manual, in public", console=console):
        batch = data[torch.randint(len(data), (32,))]
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 50)
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    return model


def with_lora(model: nn.Module) -> nn.Module:
    """Only the low-rank matrices beside the attention's projections are trained."""
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, lora_dropout=0.0)
    return get_peft_model(model, config)


def bits_per_token(model: nn.Module, data: torch.Tensor) -> float:
    """Mean over all predicted tokens; 2 to this power is the perplexity."""
    model.eval()
    with torch.no_grad():
        losses = [float(model(input_ids=part, labels=part).loss) * len(part) for part in data.split(64)]
    return sum(losses) / len(data) / math.log(2)


def train_in_the_open(model: nn.Module, data: torch.Tensor, steps: int) -> nn.Module:
    """The same matrices, the same optimizer, without privacy."""
    model = copy.deepcopy(model).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)
    for _ in range(steps):
        batch = data[torch.randperm(len(data))[:BATCH_SIZE]]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    return model


def main() -> int:
    """Lends, trains, compares."""
    more = {"model": "folder or hub name of a causal language model, e.g. gpt2"}
    options = arguments(__doc__.splitlines()[0], "the CSV of transcriptions", eps=8.0, steps=40, more=more)
    (file,) = needed(options.data, ["mtsamples.csv"], SOURCE)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(options.seed)
    texts = notes(file)
    base, encode = load(options.model)
    model = with_lora(base)
    held_out = int(HELD_OUT * len(texts))
    test, lent = passages(texts[:held_out], encode, TOKENS), passages(texts[held_out:], encode, TOKENS)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    console.print(f"{trained} of {sum(parameter.numel() for parameter in model.parameters())} parameters are trained")
    contract = bastionai.DataContract(
        [bastionai.Column("input_ids", "int64", (TOKENS,), range=(0, base.config.vocab_size - 1))],
        declared_size=bastionai.contract.default_declared_size(len(lent)),
    )
    started = time.monotonic()
    with study(options.server) as stage:
        scientist = stage.identity("scientist")
        stage.identity("clinic")
        with stage.connect("clinic") as client:
            client.RemoteDataset(
                TensorDataset(lent),
                privacy_limit=options.eps,
                name="clinical notes",
                contract=contract,
                may_train=[scientist],
            )
        with stage.connect("scientist") as client:
            learner = client.RemoteLearner(
                model,
                client.list_remote_datasets()[0],
                batch_size=BATCH_SIZE,
                loss="causal_lm",
                optimizer=bastionai.Adam(lr=LEARNING_RATE),
                model_name="GPT-2 with LoRA",
            )
            console.print(str(learner.price(eps=options.eps, steps=options.steps)), highlight=False)
            training = time.monotonic()
            run = learner.fit(eps=options.eps, steps=options.steps)
            private = learner.get_model()
            seconds = time.monotonic() - training
        table = Table("model", "ε", "bits per token", "time", title=f"Clinical notes, on {held_out} notes held out")
        before, after = bits_per_token(model, test), bits_per_token(private, test)
        table.add_row("GPT-2 as it was", "", f"{before:.3f}", "")
        table.add_row("LoRA, private", f"{run.charges[0].cost.epsilon:.3f}", f"{after:.3f}", f"{seconds:.0f} s")
        training = time.monotonic()
        plain = train_in_the_open(model, lent, options.steps)
        seconds = time.monotonic() - training
        table.add_row("LoRA, in the open", "not private", f"{bits_per_token(plain, test):.3f}", f"{seconds:.0f} s")
        table.add_row("guessing", "", f"{math.log2(base.config.vocab_size):.3f}", "")
        console.print(table)
        console.print("Protected is each passage; a note's passages together are protected less (D9).")
        console.print(f"{time.monotonic() - started:.0f} s in all; nothing is left running.")
    if after >= before:
        raise SystemExit("the private model should have learned something; is --eps or --steps too small?")
    return 0


if __name__ == "__main__":
    sys.exit(main())
