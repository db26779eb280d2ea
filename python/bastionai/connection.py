"""The attested session with a server, and everything that starts from it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from torch import nn

from bastionai import _internal, learner, remote, schedules, units
from bastionai.attestation import UNATTESTED_GPU, AppraisalPolicy, Attestation
from bastionai.contract import DataContract, default_declared_size
from bastionai.detect import resolve_contract
from bastionai.evaluation import EvaluationQuote
from bastionai.exceptions import AlreadyExists, BastionError, ContractError, InvalidRequest, NotFound, RowError
from bastionai.losses import LossLike
from bastionai.policy import RenyiOrders, policy_document
from bastionai.quote import Quote
from bastionai.records import check_records, record_batches, split_off
from bastionai.run_list import RunList
from bastionai.runs import Run, RunWeights

#: Where ``bastionai serve`` listens by default.
DEFAULT_PORT = 7443


def default_identity_path() -> Path:
    """``~/.config/bastionai/identity.pem``, or under ``$XDG_CONFIG_HOME``."""
    root = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(root).expanduser() / "bastionai" / "identity.pem"


class Connection:
    """One attested TLS session with a server.

    The server's evidence is verified and appraised before anything else crosses. The session is
    never re-established behind your back: when it ends, connect (and verify) again.

    Args:
        host: Name or address, also as ``host:port``. By default ``$BASTIONAI_HOST``, else 127.0.0.1.
        port: Where the server listens, by default 7443.
        identity: Your key file; your principal is its fingerprint. By default ``$BASTIONAI_IDENTITY``,
            else ``~/.config/bastionai/identity.pem``, made on first use.
        policy: What the server must prove. The default has no reference values and refuses every server.
        allow_simulated: Accept the development attester, whose evidence anyone can forge, and
            whatever it says. For tests and demonstrations only: it protects nothing against the
            server's operator.
        allow_unattested_gpu: Accept a server that computes on a GPU outside of what it proves (the flag
            ``insecure-unattested-gpu``): it gets your data in the clear.
        heads: File that remembers the ledgers seen, so that a rolled back one is refused. By default
            ``$BASTIONAI_HEADS``, else ``heads.json`` beside the identity.

    Raises:
        ConnectionFailed: If nobody answers, or no BastionAI server.
        AttestationError: If the evidence does not verify or your terms do not accept it.
        LedgerError: If the server's ledger forgot what it showed you before.
    """

    def __init__(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        identity: str | os.PathLike[str] | None = None,
        policy: AppraisalPolicy | None = None,
        allow_simulated: bool = False,
        allow_unattested_gpu: bool = False,
        heads: str | os.PathLike[str] | None = None,
    ) -> None:
        self.address = _address(host, port)
        if policy is not None and allow_simulated:
            raise InvalidRequest("give policy= or allow_simulated=True, not both")
        path = _identity(identity)
        memory = heads or os.environ.get("BASTIONAI_HEADS") or path.with_name("heads.json")
        terms = None if allow_simulated else (policy or AppraisalPolicy()).to_json()
        flags = [UNATTESTED_GPU] if allow_unattested_gpu else []
        self._session = _internal.Session.connect(self.address, str(path), str(memory), terms, flags)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the session. Runs go on at the server."""
        self._session.close()

    @property
    def principal(self) -> str:
        """Your fingerprint: what owners name in ``may_train``."""
        return self._session.principal

    @property
    def attestation(self) -> Attestation:
        """What was attested, and by what rules it was accepted."""
        return Attestation(json.loads(self._session.attestation()), self._session.attestation_text())

    @property
    def server(self) -> dict[str, Any]:
        """What the server says about itself inside the session: version, limits, clock."""
        document: dict[str, Any] = json.loads(self._session.server())
        return document

    def RemoteDataset(
        self,
        dataset: object,
        privacy_limit: float | str | Decimal | None = None,
        name: str = "",
        *,
        delta: float | str | Decimal = 1e-5,
        kind: str = "private",
        contract: DataContract | None = None,
        ranges: Mapping[str, tuple[object, object]] | None = None,
        classes: Mapping[str, int | Sequence[str]] | None = None,
        declared_size: int | None = None,
        may_train: Sequence[str] | str = (),
        recipients: Sequence[str] = (),
        scientist_receives: bool = True,
        expires: datetime.datetime | None = None,
        test_dataset: object | None = None,
        test_fraction: float | None = None,
        test_privacy_limit: float | str | Decimal | None = None,
        evaluation_only: bool = False,
        composition: str = "basic",
        renyi_orders: RenyiOrders | None = None,
        require_hardened: bool = False,
        verbose: bool = True,
    ) -> remote.RemoteDataset:
        """Lends a dataset for training. Nobody, not even the operator, gets to see a row.

        Every record is checked against the contract on this machine as it is sent; on any error the
        server keeps nothing.

        Args:
            dataset: A PyTorch ``Dataset`` (map-style or iterable) of tensors, tuples or dicts, or
                anything with ``__arrow_c_stream__`` (pyarrow, pandas, polars, …).
            privacy_limit: Lifetime ε: what all runs together may reveal, for ever. Private only.
            name: Unique on the server, and public.
            delta: Lifetime δ. Runs take a tenth of it each by default.
            kind: ``private``; ``public`` if anyone may know the rows; ``synthetic`` if they are nobody's.
            contract: What a record looks like, with *public* value ranges. By default the dataset's
                attribute ``bastionai_contract`` or ``contract``.
            ranges: Instead of a contract: public range by column name.
            classes: Instead of a contract: labels' class names (or number) by column name.
            declared_size: Public size class, a rung of the ladder (2^k or 3·2^(k-1), from 16). By
                default the next rung above ``len(dataset)``.
            may_train: Principals that may train, or ``"anyone"``. You always may.
            recipients: Principals that may receive weights, beside a run's scientist.
            scientist_receives: Whether a run's scientist receives the weights.
            expires: No run starts from then on.
            test_dataset: Held-out records of the same contract. They become a dataset of their own, ``NAME.test``,
                with a budget of its own, on which models are evaluated and nobody trains.
            test_fraction: Instead: this share of the records, chosen at random here, is held out. Records of one
                person should not end up on both sides: split by person yourself if there are such.
            test_privacy_limit: Lifetime ε of the held-out dataset; by default ``privacy_limit``.
            evaluation_only: This dataset itself is held out: those of ``may_train`` may evaluate, nobody trains.
            composition: How runs add up to the lifetime, for ever: ``"basic"`` sums ε and δ; ``"renyi"`` sums Rényi
                divergences at fixed orders, which admits several times as many runs, and charges a cancelled run only
                the steps it had started.
            renyi_orders: Instead of the server's: orders from 1.1 to 1024, rising, or a mapping to their weights in the
                split of δ. About ``1 + 2·ln(1/δ)/ε`` serves best.
            require_hardened: Training runs sum in integers, record by record (``noise_mode="hardened"``), so that no
                bound on rounding is left in the argument: for heads, adapters and small models. Others are refused
                when priced.
            verbose: Say on stderr what becomes public.

        Raises:
            ContractError: If a column has no public range; the message shows how to declare it.
            RowError: If a record lies outside the contract, with its row.
            AlreadyExists: If the name is taken.
        """
        if not name:
            raise InvalidRequest("a dataset needs a name=, unique on the server; it is public")
        allowed = may_train if isinstance(may_train, str) else [*may_train, self.principal]

        def policy(limit: float | str | Decimal | None, held_out: bool) -> dict[str, Any]:
            return policy_document(
                kind,
                limit,
                delta,
                allowed,
                recipients,
                scientist_receives,
                expires,
                held_out,
                composition,
                renyi_orders,
                require_hardened,
            )

        terms = policy(privacy_limit, evaluation_only)
        declared = resolve_contract(dataset, contract, ranges, classes)
        if declared.privacy_unit is not None and (test_dataset is not None or test_fraction is not None):
            raise InvalidRequest(
                f"held-out data is counted record by record, and this contract protects all records of a "
                f"{declared.privacy_unit.name!r} together: upload the held-out part by itself, under "
                "contract.per_record() and with evaluation_only=True, if its owner agrees to that unit"
            )
        if test_dataset is None and test_fraction is None:
            if test_privacy_limit is not None:
                raise InvalidRequest("test_privacy_limit= needs test_dataset= or test_fraction=")
            return self._upload(name, kind, dataset, self._sized(declared, dataset, declared_size, verbose), terms)
        if evaluation_only:
            raise InvalidRequest("evaluation_only=True holds the whole dataset out: leave test_dataset/_fraction out")
        test_terms = policy(privacy_limit if test_privacy_limit is None else test_privacy_limit, True)
        train, test = split_off(dataset, test_dataset, test_fraction)
        test_size = self._sized(declared.with_declared_size(None), test, None, verbose)
        check_records(test, test_size)
        if any(f"{name}.test" == each.name for each in self.list_remote_datasets()):
            raise AlreadyExists(f"a dataset named {name}.test exists already; choose another name")
        kept = self._upload(name, kind, train, self._sized(declared, train, declared_size, verbose), terms)
        try:
            held_out = self._upload(f"{name}.test", kind, test, test_size, test_terms)
        except BastionError as error:
            error.add_note(f"{name!r} is uploaded, its held-out part is not: upload that with evaluation_only=True")
            raise
        return dataclasses.replace(kept, test=held_out)

    def _upload(
        self, name: str, kind: str, dataset: object, declared: DataContract, policy: dict[str, Any]
    ) -> remote.RemoteDataset:
        header = {"name": name, "kind": kind, "contract": json.loads(declared.to_json()), "policy": policy}
        upload = self._session.begin_upload(json.dumps(header))
        try:
            sent = 0
            for batch in record_batches(dataset, declared):
                sent += batch.rows
                _check_size(sent, declared)
                upload.push(batch.rows, batch.columns)
            document = upload.finish()
        except BaseException:
            upload.abort()
            raise
        return remote.RemoteDataset.parse(json.loads(document))

    def _sized(self, contract: DataContract, dataset: object, declared_size: int | None, verbose: bool) -> DataContract:
        if declared_size is not None:
            contract = contract.with_declared_size(declared_size)
        if contract.declared_size is None:
            rows = _row_count(dataset)
            if rows is None:
                raise ContractError(
                    "the dataset does not tell its length: give declared_size=, a public upper bound on its records"
                )
            contract = contract.with_declared_size(default_declared_size(rows))
            _say_public("declared_size", contract.declared_size, "the dataset's length", "declared_size=", verbose)
        if not contract.is_complete:
            if _row_count(dataset) is None:
                raise ContractError(
                    "the dataset can be read only once: give UnitColumn(..., declared_units=), a public upper bound on "
                    "its units"
                )
            provisional = contract.with_declared_units(contract.declared_size)
            found = default_declared_size(units.count(record_batches(dataset, provisional), provisional))
            contract = contract.with_declared_units(found)
            _say_public("declared_units", found, "the number of units", "UnitColumn(..., declared_units=)", verbose)
        return contract

    def list_remote_datasets(self) -> list[remote.RemoteDataset]:
        """The datasets you may see: contract, terms, budget left.

        First those that are offered; then, of your own, rehearsal data and what you withdrew.
        """
        documents = json.loads(self._session.list_datasets())
        datasets = [remote.RemoteDataset.parse(document) for document in documents]
        return sorted(datasets, key=lambda one: (one.state != "offered", one.name.startswith("rehearsal-")))

    def withdraw(self, dataset: remote.RemoteDataset) -> remote.RemoteDataset:
        """Lends a dataset of yours no more: from now on no run starts on it, and queued runs are refunded.

        A run that has started goes on, and keeps what it was charged: that is what its scientist paid for.
        :meth:`Run.cancel` stops it. There is no way back; the name and the account stay.

        Raises:
            NotFound: If you have lent no such dataset.
        """
        return remote.RemoteDataset.parse(json.loads(self._session.withdraw_dataset(dataset.id)))

    def remove(self, dataset: remote.RemoteDataset) -> remote.RemoteDataset:
        """Withdraws a dataset of yours and erases its records: its keys are destroyed, its blocks deleted.

        Best effort below freshness level ``unlock``: an operator may have kept an old disk. The name and the
        account stay; what runs have learnt is not unlearnt.

        Raises:
            DatasetInUse: While a run uses it; cancel the run, or withdraw and wait.
            NotFound: If you have lent no such dataset.
        """
        return remote.RemoteDataset.parse(json.loads(self._session.remove_dataset(dataset.id)))

    def RemoteLearner(
        self,
        model: nn.Module,
        dataset: remote.RemoteDataset | Sequence[remote.RemoteDataset],
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
        clipping: learner.Clipping = "flat",
        compute: learner.Compute = "float32",
        bands: int | Literal["auto"] = 1,
        noise_mode: learner.NoiseMode = "standard",
        max_loss: float | None = None,
        loss_share: float = _internal.DEFAULT_LOSS_SHARE,
        inputs: Sequence[str] | None = None,
        label: str | None = None,
    ) -> learner.RemoteLearner:
        """Prepares to train a module on one or several remote datasets.

        Args:
            model: Any ``nn.Module``; it is exported, never sent as code, and stays as it is.
            dataset: One, or several with equal columns, which are pooled.
            loss: A name (``"cross_entropy"``, ``"bce_with_logits"``, ``"mse"``, ``"l1"``, ``"huber"``, …),
                a loss module, or a function of (output, target); None if the model itself returns one
                loss per sample. See :mod:`bastionai.losses` for what becomes of reductions and weights.
            optimizer: ``bastionai.SGD``, ``Adam`` or ``AdamW``, or those of ``torch.optim``.
            schedule: How the learning rate moves, e.g. ``bastionai.schedules.Cosine(warmup_ratio=0.1)``; by
                default it stays.
            initial_weights: Weights on the server to start from instead of the module's: an earlier run whose
                weights you may receive (``run``, or ``run.at(step=…, ema=…)``), or the digest of a model archive
                that you uploaded. Matched by name, shape and dtype; what they do not name starts as in the module.
                They are paid for already.
            ema_decay: Decay of an average of the iterates, e.g. 0.999, which is released beside the weights
                (``run.model(ema=True)``) and often better under noise. Costs no privacy.
            tail_average: Instead of ``ema_decay``: average the iterates of this part of the steps, the last ones, with
                equal weights, e.g. 0.25. Also ``run.model(ema=True)``; also free.
            keep_steps: Steps whose weights are kept and released with the run's (``run.model(step=…)``). The
                iterates of private training are noisy already, so they cost no privacy either.
            keep_every: The same, every so many steps.
            model_name: Shown in lists.
            batch_size: Expected number of units per step over all datasets; planned when absent. A unit is a record, or
                all records of one identifier where a dataset's contract has a :class:`UnitColumn`.
            max_batch_size: Physical cap in rows, for memory; it changes neither result nor privacy.
            records_per_unit: Records of a unit that a step uses, drawn afresh each time; by default the smallest
                ``max_records`` of the datasets. Noise and price are the same.
            max_grad_norm: Clip of each sample's gradient, L2.
            clipping: How gradients are held to it: ``"flat"`` cuts the whole gradient; ``"per_layer"`` cuts that of
                each of K trainable tensors to ``max_grad_norm / √K``; ``"automatic"`` (AUTO-S) scales the whole
                gradient to nearly ``max_grad_norm``, small ones up. Noise and price are the same.
            compute: ``"bfloat16"`` rounds the operands of the graph's matrix products and convolutions, which are
                summed in float32: faster where the server's processor has instructions for it, slower elsewhere.
                It changes neither privacy nor price.
            bands: Steps over which the noise is correlated (BandMF, arXiv 2306.08153), so that later steps take back
                part of what earlier ones added: less noise in the weights at the same (ε, δ) where epochs are few and
                ε is not small. ``"auto"`` plans the number for ``eps``, never to be worse than 1, independent noise;
                the price shows it with the noise that is left. Takes 8 bytes of the server's memory a trainable scalar
                for each but one.
            noise_mode: What the sensitivity of a step's sum rests on. ``"standard"`` sums in floating point and pays
                for what rounding may change with a little more noise (``Quote.noise_slack``); ``"hardened"`` writes
                every record's gradient out, rounds it to the integer grid by itself and checks and sums it in
                integers: for heads and adapters (LoRA). The price is the same.
            max_loss: Clip of the loss that is shown while training; 0 shows none and costs nothing.
            loss_share: Share of the privacy spent on showing it.
            inputs: Columns to pass to the model, in order; by default all but the label. By name where they are
                arguments of ``forward`` (``input_ids``, ``attention_mask``) and the order would make them others.
            label: Column to compare with; by default the one called label(s), target(s), y or class,
                else the last.

        Raises:
            PermissionRefused: If a policy does not let you train.
            LossError: If the loss has no per-sample form.
            InvalidRequest: If the arguments contradict each other.
        """
        return learner.RemoteLearner(
            self,
            model,
            dataset,
            loss=loss,
            optimizer=optimizer,
            schedule=schedule,
            initial_weights=initial_weights,
            ema_decay=ema_decay,
            tail_average=tail_average,
            keep_steps=keep_steps,
            keep_every=keep_every,
            model_name=model_name,
            batch_size=batch_size,
            max_batch_size=max_batch_size,
            records_per_unit=records_per_unit,
            max_grad_norm=max_grad_norm,
            clipping=clipping,
            compute=compute,
            bands=bands,
            noise_mode=noise_mode,
            max_loss=max_loss,
            loss_share=loss_share,
            inputs=inputs,
            label=label,
        )

    def runs(self) -> RunList:
        """Runs you may see, as scientist or owner, newest last: a list with ``to_frame()`` for pandas."""
        return RunList(Run(self._session, document) for document in json.loads(self._session.list_runs()))

    def run(self, run_id: str) -> Run:
        """A run by its id, or by the beginning of it.

        Raises:
            NotFound: If there is no such run for you, or more than one.
        """
        found = [run for run in self.runs() if run.id.startswith(run_id)]
        if len(found) != 1:
            what = "no run" if not found else f"{len(found)} runs"
            raise NotFound(f"{what} with an id starting with {run_id!r}; client.runs() lists them")
        return found[0]

    def ledger(self, subject: remote.RemoteDataset | Run | None = None) -> list[dict[str, Any]]:
        """The ledger's entries that concern you, after checking that the chain continues what you saw.

        Args:
            subject: Only those of this dataset or run.

        Raises:
            LedgerError: If the chain does not continue what was seen before.
        """
        view = json.loads(self._session.show_ledger(None if subject is None else subject.id))
        entries: list[dict[str, Any]] = view["entries"]
        return entries

    def _upload_model(self, name: str, archive: bytes) -> str:
        """The archive's digest. Sent only if the server does not have it."""
        return self._session.upload_model(name, archive)

    def _start(self, quote: Quote | EvaluationQuote) -> Run:
        return Run(self._session, json.loads(self._session.start_run(quote.run_digest)))

    def __repr__(self) -> str:
        return f"Connection({self.address!r}, principal={self.principal[:16]}…)"


def _check_size(rows: int, contract: DataContract) -> None:
    size = contract.declared_size or 0
    if rows > size:
        raise RowError(f"more records than the declared size class {size}; declare a larger one", size)


def _say_public(what: str, size: int | None, of: str, remedy: str, verbose: bool) -> None:
    if verbose:
        print(
            f"bastionai: {what}={size} (the next size class above {of}) will be public; "
            f"give {remedy} to choose a larger one",
            file=sys.stderr,
        )


def _row_count(dataset: object) -> int | None:
    if hasattr(dataset, "__len__"):
        return len(dataset)
    rows = getattr(dataset, "num_rows", None)
    return rows if isinstance(rows, int) else None


def _address(host: str | None, port: int | None) -> str:
    host = host or os.environ.get("BASTIONAI_HOST") or "127.0.0.1"
    if ":" in host and not host.endswith("]"):
        if port is not None:
            raise InvalidRequest(f"host={host!r} names a port already; leave port= out")
        return host
    return f"{host}:{DEFAULT_PORT if port is None else port}"


def _identity(identity: str | os.PathLike[str] | None) -> Path:
    identity = identity or os.environ.get("BASTIONAI_IDENTITY")
    if identity is not None:
        return Path(identity).expanduser()
    path = default_identity_path()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        principal = _internal.generate_identity(str(path))
        print(f"bastionai: made your identity {path} (principal {principal}); keep the file secret", file=sys.stderr)
    return path


def keygen(path: str | os.PathLike[str]) -> str:
    """Makes a new identity file, readable by you alone.

    Returns:
        Its principal.

    Raises:
        InvalidRequest: If the file exists: a principal is never overwritten.
    """
    return _internal.generate_identity(str(path))
