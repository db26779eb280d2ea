"""The scientist's side of a run: price it, rehearse it, train, fetch the model."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from torch import nn

from bastionai import _internal, optimizers, schedules
from bastionai.contract import DataContract, default_declared_size
from bastionai.evaluation import SCORE_BINS, Evaluation, EvaluationQuote, checked_metrics
from bastionai.exceptions import BudgetExceeded, ContractError, InvalidRequest, NoiseWarning, PermissionRefused
from bastionai.exporting import PreparedModel, label_column, prepare, prepare_scores, target_column
from bastionai.ledger_types import Budget, Charge, shown
from bastionai.losses import LossLike, per_sample_loss
from bastionai.planning import Plan, plan
from bastionai.quote import Quote
from bastionai.receipt import Receipt
from bastionai.remote import RemoteDataset
from bastionai.runs import Run, RunWeights
from bastionai.synthetic import SyntheticDataset

if TYPE_CHECKING:
    from bastionai.connection import Connection

#: How each sample's gradient is held to ``max_grad_norm``; the names are those of Opacus.
Clipping: TypeAlias = Literal["flat", "per_layer", "automatic"]
#: Precision of a graph's matrix products and convolutions.
Compute: TypeAlias = Literal["float32", "bfloat16"]
#: What the sensitivity of a step's sum rests on.
NoiseMode: TypeAlias = Literal["standard", "hardened"]

#: Most synthetic records of a rehearsal.
_REHEARSAL_ROWS = 2048


class RemoteLearner:
    """Trains a module on remote datasets, with differential privacy.

    Made by :meth:`bastionai.Connection.RemoteLearner`, which documents the arguments.
    """

    def __init__(
        self,
        client: Connection,
        model: nn.Module,
        datasets: RemoteDataset | Sequence[RemoteDataset],
        *,
        loss: LossLike | None,
        optimizer: object,
        schedule: schedules.Schedule | None = None,
        initial_weights: Run | RunWeights | str | None = None,
        ema_decay: float | None = None,
        tail_average: float | None = None,
        keep_steps: Sequence[int] = (),
        keep_every: int | None = None,
        model_name: str = "model",
        batch_size: int | None = None,
        max_batch_size: int | None = None,
        records_per_unit: int | None = None,
        max_grad_norm: float = 1.0,
        clipping: Clipping = "flat",
        compute: Compute = "float32",
        bands: int | Literal["auto"] = 1,
        noise_mode: NoiseMode = "standard",
        max_loss: float | None = None,
        loss_share: float = _internal.DEFAULT_LOSS_SHARE,
        inputs: Sequence[str] | None = None,
        label: str | None = None,
    ) -> None:
        self.model = model
        self.datasets = [datasets] if isinstance(datasets, RemoteDataset) else list(datasets)
        self.model_name = model_name
        self.run: Run | None = None
        self._client = client
        self._loss = loss
        self._optimizer = optimizers.as_optimizer(optimizer)
        self._schedule = schedules.as_schedule(schedule)
        self._initial_weights = _source(initial_weights)
        self._ema_decay, self._tail_average = _average(ema_decay, tail_average)
        self._keep_steps, self._keep_every = _kept(keep_steps, keep_every)
        self._batch_size = batch_size
        self._max_batch_size = max_batch_size
        self._records_per_unit = records_per_unit
        self._max_grad_norm = _positive("max_grad_norm", max_grad_norm)
        self._clipping = _one_name("clipping", clipping, get_args(Clipping))
        self._compute = _one_name("compute", compute, get_args(Compute))
        self._bands = _checked_bands(bands)
        self._noise_mode = _one_name("noise_mode", noise_mode, get_args(NoiseMode))
        self._loss_release = self._choose_loss_release(max_loss, loss_share, label)
        self._inputs = inputs
        self._label = label
        self._prepared: PreparedModel | None = None
        self._check_datasets()

    @property
    def declared_size(self) -> int:
        """Declared units over all datasets: records, where these are the unit."""
        return sum(dataset.contract.declared_units or 0 for dataset in self.datasets)

    def price(
        self,
        nb_epochs: float | None = None,
        eps: float | None = None,
        *,
        steps: int | None = None,
        delta: float | None = None,
        noise_multiplier: float | None = None,
    ) -> Quote:
        """What a run would cost, without spending anything.

        Args:
            nb_epochs: Expected passes over the declared records; or give ``steps``, or neither: then the steps
                are planned for (ε, δ), as :func:`bastionai.planning.plan` says.
            eps: ε of this run for every dataset; or give ``noise_multiplier``.
            steps: Optimizer steps.
            delta: δ of this run; by default a tenth of the smallest lifetime δ.
            noise_multiplier: Noise of the gradient, in units of ``max_grad_norm``.

        Raises:
            ModelRefused: If the server cannot prove that the model keeps samples apart.
            InvalidRequest: If the arguments contradict each other.
        """
        ids = [dataset.id for dataset in self.datasets]
        quote = self._price(
            ids,
            self.declared_size,
            nb_epochs,
            eps,
            steps,
            delta,
            noise_multiplier,
            batch_size=self._batch_size,
            records_per_unit=self._records_per_unit,
        )
        for text in quote.warnings:
            warnings.warn(text, NoiseWarning, stacklevel=2)
        return quote

    def rehearse(
        self,
        steps: int = 10,
        eps: float = 1.0,
        *,
        delta: float = 1e-6,
        batch_size: int | None = None,
        on: RemoteDataset | None = None,
        progress: bool = True,
    ) -> Run:
        """Runs the same graph in the same trainer on records that are nobody's secret, at no cost.

        Unless a public dataset is named, the records are drawn at random from the contract's public domains: what
        they teach the model means nothing, but whatever could go wrong in a run goes wrong here, for free. The run is
        an ordinary one, through price, queue, trainer and ledger; only its charge is nothing.

        Args:
            on: A public or synthetic dataset of equal columns at the server, to learn something from the rehearsal.
            steps: Optimizer steps.
            eps: ε to calibrate the noise for; nobody is charged.
            delta: δ, likewise.
            batch_size: By default as in the real run, or planned.
            progress: Show a progress bar.

        Returns:
            The finished run.

        Raises:
            RunFailed: If training fails; look for non-finite losses, or too large a physical batch.
        """
        if on is not None and on.kind == "private":
            raise InvalidRequest(f"{on.name!r} is private: a rehearsal on it would be a run; fit() makes one")
        dataset = on or self._rehearsal_dataset()
        _check_same_columns(self.datasets[0].contract, dataset)
        size = dataset.contract.declared_units or 0
        chosen = batch_size or self._batch_size
        fitting = None if chosen is None else min(chosen, size)
        quote = self._price([dataset.id], size, None, eps, steps, delta, None, batch_size=fitting, rehearsal=True)
        return self._client._start(quote).wait(progress)

    def fit(
        self,
        nb_epochs: float | None = None,
        eps: float | None = None,
        *,
        steps: int | None = None,
        delta: float | None = None,
        noise_multiplier: float | None = None,
        progress: bool = True,
    ) -> Run:
        """Trains. The arguments are those of :meth:`price`.

        Ctrl-C detaches: the run goes on at the server and :class:`bastionai.Detached` tells its id.

        Returns:
            The finished run.

        Raises:
            BudgetExceeded: If a dataset's budget does not cover the run; nothing is charged.
            PermissionRefused: If a policy does not let you train.
            RunFailed: If it failed or was cancelled.
            Detached: On Ctrl-C.
        """
        quote = self.price(nb_epochs, eps, steps=steps, delta=delta, noise_multiplier=noise_multiplier)
        _refuse_unaffordable(quote.charges)
        self.run = self._client._start(quote)
        self.run._module = self.model
        return self.run.wait(progress)

    def price_test(
        self,
        metrics: Sequence[str] | str = ("accuracy", "auroc"),
        eps: float | None = None,
        *,
        dataset: RemoteDataset | Sequence[RemoteDataset] | None = None,
        delta: float | None = None,
        noise_multiplier: float | None = None,
        score_bins: int = SCORE_BINS,
        model: nn.Module | None = None,
        weights: Run | RunWeights | str | None = None,
    ) -> EvaluationQuote:
        """What :meth:`test` would cost and how much noise each count would get, without spending anything.

        The arguments are those of :meth:`test`.
        """
        source = _source(weights)
        prepared = self._prepare_scores(model, source is not None)
        named = checked_metrics(metrics)
        spec = {
            "model_id": self._client._upload_model(self.model_name, prepared.archive),
            "dataset_ids": [each.id for each in self._held_out(dataset)],
            "input_columns": prepared.input_columns,
            "model_name": self.model_name,
            "confusion": any(name != "auroc" for name in named),
            "score_bins": score_bins if "auroc" in named else None,
            "privacy": _privacy(*_one_of(eps, noise_multiplier)),
            "target_delta": None if delta is None else _positive("delta", delta),
            "max_batch_size": self._max_batch_size or 0,
            "weights": source,
        }
        quote = EvaluationQuote.parse(json.loads(self._client._session.price_evaluation(json.dumps(spec))))
        for text in quote.warnings:
            warnings.warn(text, NoiseWarning, stacklevel=2)
        return quote

    def test(
        self,
        metrics: Sequence[str] | str = ("accuracy", "auroc"),
        eps: float | None = None,
        *,
        dataset: RemoteDataset | Sequence[RemoteDataset] | None = None,
        delta: float | None = None,
        noise_multiplier: float | None = None,
        score_bins: int = SCORE_BINS,
        model: nn.Module | None = None,
        weights: Run | RunWeights | str | None = None,
    ) -> Evaluation:
        """Evaluates the trained model on held-out records, with differential privacy.

        One histogram release answers all metrics: the confusion matrix for accuracy, f1, f1_macro and confusion, and
        the scores for auroc. Each test is charged anew, to the held-out datasets' own budgets.

        Args:
            metrics: Of ``accuracy``, ``auroc``, ``f1`` (of class 1; with more than two classes as ``f1_macro``),
                ``f1_macro`` and ``confusion``. Ask only for what you need: each histogram widens the noise.
            eps: ε of this evaluation for every dataset; or give ``noise_multiplier``.
            dataset: One or several, counted together. By default the held-out parts (``NAME.test``) of the datasets
                that the learner trains on.
            delta: δ of this evaluation; by default a tenth of the smallest lifetime δ.
            noise_multiplier: Instead of ``eps``.
            score_bins: Bins of the scores for auroc.
            model: By default the trained model of the last run.
            weights: A run whose weights you may receive, ``run.at(step=…)``, or the digest of an uploaded archive: the
                server takes its weights for ``model`` (by default the learner's module), and nothing is fetched.

        Returns:
            Metric → estimate, with error bars.

        Raises:
            InvalidRequest: For an unknown metric, or when nothing was trained and no model is given.
            PermissionRefused: If a policy does not let you evaluate.
            BudgetExceeded: If a budget does not cover it; nothing is charged.
            RunFailed: If it failed or was cancelled.
        """
        quote = self.price_test(
            metrics,
            eps,
            dataset=dataset,
            delta=delta,
            noise_multiplier=noise_multiplier,
            score_bins=score_bins,
            model=model,
            weights=weights,
        )
        _refuse_unaffordable(quote.charges)
        run = self._client._start(quote).wait(progress=False)
        names = self.datasets[0].contract.column(label_column(self.datasets[0].contract, self._label)).class_names
        return run.evaluation(checked_metrics(metrics), names)

    def _prepare_scores(self, model: nn.Module | None, from_server: bool) -> PreparedModel:
        contract = self.datasets[0].contract
        if self._loss is None and model is None:
            raise InvalidRequest("the model returns its own loss: give model=, a module that returns logits")
        if model is None:
            model = self.model if from_server else self.get_model()
        prepared = prepare_scores(model, self._loss, contract, self._inputs, self._label)
        _internal.check_scores_archive(prepared.archive, contract.to_json(), prepared.input_columns)
        return prepared

    def _held_out(self, dataset: RemoteDataset | Sequence[RemoteDataset] | None) -> list[RemoteDataset]:
        if dataset is not None:
            chosen = [dataset] if isinstance(dataset, RemoteDataset) else list(dataset)
        else:
            wanted = {f"{each.name}.test": each.owner for each in self.datasets}
            chosen = [
                each
                for each in self._client.list_remote_datasets()
                if each.evaluation_only and wanted.get(each.name) == each.owner
            ]
        if not chosen:
            names = ", ".join(each.name for each in self.datasets)
            raise InvalidRequest(
                f"no held-out dataset belongs to {names}: owners upload one with test_dataset= or test_fraction=; or "
                "give dataset= (on the training data itself scores look better than they are)"
            )
        for each in chosen:
            _check_same_columns(self.datasets[0].contract, each)
            if not each.evaluable:
                raise PermissionRefused(f"the policy of {each.name!r} does not let you evaluate; ask its owner")
        return chosen

    def get_model(self, step: int | None = None, ema: bool = False) -> nn.Module:
        """A copy of the module with the trained weights.

        Args:
            step: Those kept after this step; None for the last.
            ema: The average of the iterates up to that step instead of the iterate.

        Raises:
            InvalidRequest: If nothing was trained yet.
        """
        return self._last_run().model(self.model, step, ema)

    @property
    def receipt(self) -> Receipt:
        """The signed receipt of the last run.

        Raises:
            InvalidRequest: If nothing was trained yet.
        """
        return self._last_run().receipt

    def prepare(self) -> PreparedModel:
        """The archive that is sent, and which columns feed it. Made once, and checked as the server does.

        Raises:
            ModelRefused: With every place where samples could mix.
        """
        if self._prepared is None:
            contract = self.datasets[0].contract
            prepared = prepare(self.model, self._loss, contract, self._inputs, self._label)
            # The server's own check, run here first: a refusal then costs no upload.
            _internal.check_archive(prepared.archive, contract.to_json(), prepared.input_columns)
            self._prepared = prepared
        return self._prepared

    def _last_run(self) -> Run:
        if self.run is None:
            raise InvalidRequest("nothing was trained yet: call fit() first, or client.run(id) for an earlier run")
        return self.run

    def _price(
        self,
        dataset_ids: list[str],
        declared_size: int,
        nb_epochs: float | None,
        eps: float | None,
        steps: int | None,
        delta: float | None,
        noise_multiplier: float | None,
        batch_size: int | None = None,
        rehearsal: bool = False,
        records_per_unit: int | None = None,
    ) -> Quote:
        eps, noise_multiplier = _one_of(eps, noise_multiplier)
        target_delta = None if delta is None else _positive("delta", delta)
        planned = plan(
            declared_size,
            eps=None if eps is None else _positive("eps", eps),
            delta=target_delta or self._default_delta(),
            noise_multiplier=None if eps is not None else _positive("noise_multiplier", noise_multiplier or 0.0),
            batch_size=batch_size,
            steps=steps,
            nb_epochs=nb_epochs,
        )
        prepared = self.prepare()
        spec = {
            "model_id": self._client._upload_model(self.model_name, prepared.archive),
            "dataset_ids": dataset_ids,
            "input_columns": prepared.input_columns,
            "model_name": self.model_name,
            "batch_size": planned.batch_size,
            "max_batch_size": self._max_batch_size or 0,  # 0: the server chooses
            "records_per_unit": records_per_unit,
            "steps": planned.steps,
            "max_grad_norm": self._max_grad_norm,
            "clipping": self._clipping,
            "compute": self._compute,
            "noise_mode": self._noise_mode,
            "privacy": _privacy(eps, noise_multiplier),
            "target_delta": target_delta,
            "loss_release": self._loss_release,
            "optimizer": optimizers.document(self._optimizer),
            "schedule": schedules.document(self._schedule),
            "initial_weights": self._initial_weights,
            "ema_decay": self._ema_decay,
            "tail_average": self._tail_average,
            "bands": _bands(self._bands, planned, declared_size if rehearsal else None),
            "keep_steps": self._keep_steps,
            "keep_every": self._keep_every,
        }
        return Quote.parse(json.loads(self._client._session.price(json.dumps(spec))))

    def _default_delta(self) -> float | None:
        """A tenth of the smallest lifetime δ, as the server's price; None if no dataset has one."""
        lifetimes = [dataset.budget.lifetime.delta for dataset in self.datasets if dataset.budget is not None]
        return float(min(lifetimes)) / 10 if lifetimes else None

    def _rehearsal_dataset(self) -> RemoteDataset:
        """A synthetic dataset of the datasets' columns; one per contract, used again and again."""
        contract = self.datasets[0].contract.per_record()
        contract = contract.with_declared_size(default_declared_size(self.declared_size))
        name = f"rehearsal-{self._client.principal[:12]}-{contract.digest()[:16]}"
        for dataset in self._client.list_remote_datasets():
            if dataset.name == name and dataset.owner == self._client.principal and dataset.kind == "synthetic":
                return dataset
        rows = SyntheticDataset(contract, min(_REHEARSAL_ROWS, contract.declared_size or 0))
        return self._client.RemoteDataset(rows, name=name, kind="synthetic", contract=contract, verbose=False)

    def _choose_loss_release(self, max_loss: float | None, share: float, label: str | None) -> dict[str, float] | None:
        if max_loss is None:
            max_loss = self._suggested_max_loss(label)
        if max_loss == 0:
            return None
        if not 0.0 < share < 1.0:
            raise InvalidRequest(f"loss_share={share}: expected a share of the privacy between 0 and 1")
        return {"max_loss": _positive("max_loss", max_loss), "share": share}

    def _suggested_max_loss(self, label: str | None) -> float:
        if self._loss is None or not self.datasets:
            return 1.0
        loss, contract = per_sample_loss(self._loss), self.datasets[0].contract
        return loss.suggested_max_loss(contract.column(target_column(contract, loss, label)))

    def _check_datasets(self) -> None:
        if not self.datasets:
            raise InvalidRequest("give at least one dataset, e.g. client.list_remote_datasets()[0]")
        if len({dataset.id for dataset in self.datasets}) != len(self.datasets):
            raise InvalidRequest("the same dataset is given twice; each counts once")
        for dataset in self.datasets:
            _check_same_columns(self.datasets[0].contract, dataset)
            if dataset.state != "offered":
                raise PermissionRefused(f"{dataset.name!r} was {dataset.state} by its owner: no run starts on it")
            if dataset.evaluation_only:
                raise PermissionRefused(
                    f"{dataset.name!r} is held out for evaluation: nobody trains on it; give it to test(dataset=...)"
                )
            if not dataset.trainable:
                raise PermissionRefused(
                    f"the policy of {dataset.name!r} does not let you train; its owner {dataset.owner[:16]}… "
                    f"would have to allow your principal {self._client.principal}"
                )


def _check_same_columns(contract: DataContract, dataset: RemoteDataset) -> None:
    if tuple(contract.columns) != tuple(dataset.contract.columns):
        raise ContractError(
            f"{dataset.name!r} has another contract than the first dataset; a run needs equal columns, dtypes, "
            f"shapes and public domains:\n{contract!r}\n{dataset.contract!r}"
        )


def _source(initial_weights: Run | RunWeights | str | None) -> dict[str, Any] | None:
    """What the server's specification says of a source of weights."""
    if initial_weights is None:
        return None
    if isinstance(initial_weights, str):
        return {"model": initial_weights}
    if isinstance(initial_weights, Run):
        initial_weights = initial_weights.at()
    if isinstance(initial_weights, RunWeights):
        return {"run": asdict(initial_weights)}
    raise InvalidRequest(
        f"weights={initial_weights!r} are not known; give a run, run.at(step=…), or the digest of an "
        "uploaded model archive. Weights that are here belong into the module itself"
    )


def _average(ema_decay: float | None, tail_average: float | None) -> tuple[float | None, float | None]:
    if ema_decay is not None and not 0.0 < ema_decay < 1.0:
        raise InvalidRequest(f"ema_decay={ema_decay}: expected a decay between 0 and 1, e.g. 0.999, or None")
    if tail_average is not None and not 0.0 < tail_average <= 1.0:
        raise InvalidRequest(
            f"tail_average={tail_average}: expected a part of the steps above 0 and at most 1, e.g. 0.25, or None"
        )
    if ema_decay is not None and tail_average is not None:
        raise InvalidRequest("give ema_decay= or tail_average=, not both")
    return ema_decay, tail_average


def _checked_bands(bands: int | Literal["auto"]) -> int | Literal["auto"]:
    if bands != "auto" and (isinstance(bands, bool) or not isinstance(bands, int) or bands < 1):
        raise InvalidRequest(f'bands={bands!r}: expected a number of steps from 1 (independent noise), or "auto"')
    return bands


def _bands(bands: int | Literal["auto"], plan: Plan, rehearsed_size: int | None) -> str | dict[str, int]:
    """What the server's specification says of the bands; a rehearsal has no more than there is room for."""
    if isinstance(bands, str):
        return "planned"
    most = bands if rehearsed_size is None else min(plan.steps, rehearsed_size // plan.batch_size)
    return {"fixed": max(1, min(bands, most))}


def _one_name(option: str, name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise InvalidRequest(f"{option}={name!r}: expected one of {', '.join(map(repr, names))}")
    return name


def _kept(keep_steps: Sequence[int], keep_every: int | None) -> tuple[list[int], int | None]:
    steps = list(keep_steps)
    if steps and keep_every is not None:
        raise InvalidRequest("give keep_steps= or keep_every=, not both")
    if any(step < 1 for step in steps) or (keep_every is not None and keep_every < 1):
        raise InvalidRequest("keep_steps= and keep_every= count steps from 1")
    return steps, keep_every


def _refuse_unaffordable(charges: list[Charge]) -> None:
    short = [charge for charge in charges if not charge.affordable]
    if short:
        lines = [
            f"{c.dataset_name}: needs ε={shown(c.cost.epsilon)}, δ={shown(c.cost.delta)}; "
            f"left {_left(c, c.budget_before)}"
            for c in short
            if c.budget_before is not None
        ]
        raise BudgetExceeded("the budget does not cover this run; nothing was charged. " + "; ".join(lines))


def _left(charge: Charge, before: Budget) -> str:
    left = charge.epsilon_left()
    if charge.by_renyi and left is not None:
        return f"ε={shown(left[0])} by Rényi divergences, which this run would exceed by ε={shown(-left[1])}"
    return f"ε={shown(before.remaining.epsilon)}, δ={shown(before.remaining.delta)}"


def _one_of(eps: float | None, noise_multiplier: float | None) -> tuple[float | None, float | None]:
    if (eps is None) == (noise_multiplier is None):
        raise InvalidRequest("give either eps= or noise_multiplier=")
    return eps, noise_multiplier


def _privacy(eps: float | None, noise_multiplier: float | None) -> dict[str, float]:
    if eps is not None:
        return {"target_epsilon": _positive("eps", eps)}
    return {"noise_multiplier": _positive("noise_multiplier", noise_multiplier or 0.0)}


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise InvalidRequest(f"{name}={value}: expected a positive number")
    return float(value)
