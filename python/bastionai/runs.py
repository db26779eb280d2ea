"""Runs: watch one, find it again, fetch what it made."""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from bastionai.display import html_table
from bastionai.evaluation import Evaluation, checked_metrics
from bastionai.exceptions import Detached, InvalidRequest, RunFailed
from bastionai.ledger_types import Charge, shown
from bastionai.progress import ProgressDisplay
from bastionai.receipt import Receipt

if TYPE_CHECKING:
    from bastionai import _internal

FINAL_STATES = ("succeeded", "failed", "cancelled")
_TORCH_DTYPES = {
    "u8": torch.uint8,
    "i32": torch.int32,
    "i64": torch.int64,
    "f32": torch.float32,
    "f64": torch.float64,
    "bool": torch.bool,
}


@dataclass(frozen=True)
class Progress:
    """Progress that was released.

    Attributes:
        step: Steps completed.
        noisy_loss: Mean clipped training loss with noise, which was paid for; None if none is released.
    """

    step: int
    noisy_loss: float | None


@dataclass(frozen=True)
class RunWeights:
    """One set of a run's weights, where they are: to start another run from. Made by :meth:`Run.at`.

    Attributes:
        run: The run's id.
        step: A kept step; None for the last.
        ema: The average of the iterates up to that step instead of the iterate.
    """

    run: str
    step: int | None = None
    ema: bool = False


class Run:
    """A training run at the server. It needs no client to go on.

    Attributes:
        id: Find it again with ``client.run(id)``.
        kind: ``training`` or ``evaluation``.
        state: ``queued``, ``running``, ``suspended``, ``succeeded``, ``failed`` or ``cancelled``, as last seen.
        queue_position: 1 is next; None unless queued.
        model_name: Given by the scientist.
        steps: Steps planned.
        released_step: Last step whose progress is durable and released.
        created: When its budget was reserved, by the server's clock.
        ended: When it ended; None while it goes on.
        dataset_names: What it trains on.
        charges: What it costs each dataset.
    """

    def __init__(self, session: _internal.Session, document: dict[str, Any]) -> None:
        self._session = session
        self._module: nn.Module | None = None
        self._fetched: dict[tuple[int | None, bool], _internal.FetchedRun] = {}
        self._read(document)

    def _read(self, document: dict[str, Any]) -> None:
        self.id: str = document["id"]
        self.kind: str = document["kind"]
        self.state: str = document["state"]
        self.model_name: str = document["model_name"]
        self.scientist: str = document["scientist"]
        self.run_digest: str = document["run_digest"]
        self.steps: int = document["steps"]
        self.released_step: int = document["released_step"]
        self.created = _time(document["created_unix_ms"])
        ended = document["ended_unix_ms"]
        self.ended = None if ended is None else _time(ended)
        self.queue_position: int | None = document["queue_position"]
        self.dataset_ids: list[str] = document["dataset_ids"]
        self.dataset_names: list[str] = document["dataset_names"]
        self.charges = [Charge.parse(charge) for charge in document["charges"]]

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen, as last seen."""
        return self.state in FINAL_STATES

    def refresh(self) -> Run:
        """Asks the server for the run's state."""
        for document in json.loads(self._session.list_runs()):
            if document["id"] == self.id:
                self._read(document)
        return self

    def watch(self, from_step: int = 0) -> Iterator[Progress]:
        """Progress released after ``from_step``, then live, until the run ends.

        Leaving the loop detaches; the run goes on.
        """
        stream = self._session.watch_run(self.id, from_step)
        while (message := stream.next()) is not None:
            document = json.loads(message)
            self._read(document["run"])
            yield Progress(document["step"], document["noisy_loss"])

    def wait(self, progress: bool = True) -> Run:
        """Watches until the run ends, with a progress bar.

        Args:
            progress: Show it.

        Returns:
            The run, succeeded.

        Raises:
            Detached: On Ctrl-C; the run goes on.
            RunFailed: If it failed or was cancelled.
        """
        display = ProgressDisplay(self.model_name or "run", self.steps, progress)
        try:
            with display:
                for each in self.watch():
                    display.update(each.step, each.noisy_loss)
        except KeyboardInterrupt:
            raise Detached(
                f"detached: run {self.id} goes on at the server. Find it again with client.run({self.id!r}) "
                "or client.runs(); .wait() watches it, .cancel() stops it",
                self.id,
            ) from None
        return self._succeeded()

    def _succeeded(self) -> Run:
        if not self.finished:
            self.refresh()
        if self.state == "succeeded":
            return self
        charged = ", ".join(f"{c.dataset_name}: ε={shown(c.cost.epsilon)}" for c in self.charges)
        proof = " Its receipt: client.run(id).receipt" if self.charges else ""
        raise RunFailed(
            f"run {self.id} {'was cancelled' if self.state == 'cancelled' else self.state} at step "
            f"{self.released_step} of {self.steps}; charged: {charged or 'nothing'}. The cause stays in the server's "
            f"log, because it could tell about the data.{proof}",
            self.id,
        )

    def cancel(self) -> Run:
        """Stops the run. What was started stays charged; its weights are destroyed."""
        self._read(json.loads(self._session.cancel_run(self.id)))
        return self

    def suspend(self) -> Run:
        """Stops a run on a dataset of yours until you ``resume()`` it.

        Once this returns nothing more of it is released.

        Raises:
            PermissionRefused: If you own none of its datasets.
        """
        self._read(json.loads(self._session.suspend_run(self.id)))
        return self

    def resume(self) -> Run:
        """Lifts your own suspension: the run goes on from its last checkpoint, unless another owner's stands.

        A run that went on 32 times without a step released in between ends instead, cancelled and charged in full.

        Raises:
            PermissionRefused: If you did not suspend it.
        """
        self._read(json.loads(self._session.resume_run(self.id)))
        return self

    def at(self, step: int | None = None, ema: bool = False) -> RunWeights:
        """Names a set of this run's weights without fetching them, e.g. as ``initial_weights=`` of another run.

        Args:
            step: A kept step; None for the last.
            ema: The average of the iterates up to that step instead of the iterate.
        """
        return RunWeights(self.id, step, ema)

    def _fetch(self, step: int | None = None, ema: bool = False) -> _internal.FetchedRun:
        if (step, ema) not in self._fetched:
            self._fetched[step, ema] = self._session.fetch_run(self.id, self.run_digest, step, ema)
        return self._fetched[step, ema]

    @property
    def receipt(self) -> Receipt:
        """The signed receipt of a run that was charged; its signature, evidence and prices are checked.

        Also for owners of its datasets who receive no weights, and for runs that failed or were cancelled.

        Raises:
            InvalidRequest: While the run is not over, or if it was never charged.
        """
        for fetched in self._fetched.values():
            return Receipt(fetched.receipt)
        return Receipt(self._session.fetch_receipt(self.id, self.run_digest))

    def evaluation(self, metrics: Sequence[str] | str = (), class_names: Sequence[str] | None = None) -> Evaluation:
        """What an evaluation found, checked against its receipt.

        Args:
            metrics: By default all that the released histograms allow.
            class_names: Shown in the confusion matrix.

        Raises:
            InvalidRequest: If the run trained a model, or did not release what a metric needs.
            PermissionRefused: If a policy does not release it to you.
        """
        named = checked_metrics(metrics) if metrics else []
        fetched = self._session.fetch_evaluation(self.id, self.run_digest, named)
        return Evaluation(json.loads(fetched.evaluation), fetched.receipt, class_names)

    def state_dict(self, step: int | None = None, ema: bool = False) -> dict[str, torch.Tensor]:
        """The trained tensors by name, ties under each of their names.

        Args:
            step: The weights kept after this step (``keep_steps=`` or ``keep_every=`` of the learner); None for
                the last.
            ema: The average of the iterates up to that step (``ema_decay=`` or ``tail_average=``) instead of the
                iterate.

        Raises:
            Refusal: If the run kept no such weights, saying which it has.
        """
        tensors = {}
        for names, dtype, shape, data in self._fetch(step, ema).weights:
            tensor = torch.frombuffer(bytearray(data), dtype=_TORCH_DTYPES[dtype]).reshape(shape)
            tensors.update({_user_name(name): tensor for name in names})
        return tensors

    def model(self, module: nn.Module | None = None, step: int | None = None, ema: bool = False) -> nn.Module:
        """A copy of the module with the trained weights. Buffers and frozen parameters are the module's.

        Args:
            module: The one that was trained, or one like it; by default that of the learner that started this run.
            step: As for :meth:`state_dict`.
            ema: As for :meth:`state_dict`.

        Raises:
            InvalidRequest: If the module has not the parameters that were trained.
        """
        module = self._module if module is None else module
        if module is None:
            raise InvalidRequest("a run found again knows no module: give one, e.g. run.model(module)")
        weights = self.state_dict(step, ema)
        trained = copy.deepcopy(module)
        own = dict(trained.named_parameters(remove_duplicate=False))
        for name, tensor in weights.items():
            if name not in own or own[name].shape != tensor.shape:
                raise InvalidRequest(f"the run trained {name!r} of shape {tuple(tensor.shape)}; this module has none")
            with torch.no_grad():
                own[name].copy_(tensor)
        return trained

    def get_model(self, model: nn.Module) -> nn.Module:
        """The same as :meth:`model`, of the last step."""
        return self.model(model)

    def save(
        self,
        folder: str | PathLike[str],
        step: int | None = None,
        ema: bool = False,
        module: nn.Module | None = None,
    ) -> Path:
        """Writes ``model.safetensors`` with the trained tensors and ``receipt.dsse.json`` beside it.

        The receipt names the digest of these weights, so the folder is what an auditor needs. For a model of the PEFT
        library the adapter is written beside them, for ``peft.PeftModel.from_pretrained(base, folder)``.

        Args:
            folder: Made when it is absent.
            step: As for :meth:`state_dict`.
            ema: As for :meth:`state_dict`.
            module: As for :meth:`model`; needed only for the adapter of a run that was found again.

        Returns:
            The folder.
        """
        folder = Path(folder)
        # Tied tensors become one tensor each: the format shares none.
        tensors = {name: tensor.clone() for name, tensor in self.state_dict(step, ema).items()}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "model.safetensors")
        (folder / "receipt.dsse.json").write_bytes(self._fetch(step, ema).receipt)
        module = self._module if module is None else module
        if hasattr(module, "peft_config"):
            # Embeddings of the base are frozen, and asking a hub whether they are costs a connection.
            adapted: Any = self.model(module, step, ema)
            adapted.save_pretrained(folder, save_embedding_layers=False)
        return folder

    def _facts(self) -> list[tuple[str, str]]:
        facts = [
            ("state", f"{self.state}, step {self.released_step} of {self.steps}"),
            ("model", self.model_name),
            ("datasets", ", ".join(self.dataset_names)),
        ]
        return facts + [(f"cost for {c.dataset_name}", str(c.cost)) for c in self.charges]

    def __repr__(self) -> str:
        return f"Run({self.id!r}, {self.state}, step {self.released_step} of {self.steps})"

    def _repr_html_(self) -> str:
        return html_table(f"Run {self.id}", (), self._facts())


def _time(unix_ms: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(unix_ms / 1000, datetime.UTC)


def _user_name(name: str) -> str:
    """The user's module is called ``model`` inside what was exported (``exporting.ModelWithLoss``)."""
    return name.removeprefix("model.")
