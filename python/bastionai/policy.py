"""The owner's terms: privacy limit, who may train, who receives weights."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from bastionai.exceptions import InvalidRequest

#: A principal: the fingerprint of an identity, 64 hex digits (``Connection.principal``).
Principal = str

#: Orders, or orders with whole weights.
RenyiOrders = Sequence[float | str] | Mapping[float | str, int]

KINDS = ("private", "public", "synthetic")


def policy_document(
    kind: str,
    privacy_limit: float | str | Decimal | None,
    delta: float | str | Decimal,
    may_train: Sequence[Principal] | str,
    recipients: Sequence[Principal],
    scientist_receives: bool,
    expires: datetime.datetime | None,
    evaluation_only: bool = False,
    composition: str = "basic",
    renyi_orders: RenyiOrders | None = None,
    require_hardened: bool = False,
) -> dict[str, Any]:
    """The policy as the server keeps it.

    Args:
        kind: ``private``, ``public`` or ``synthetic``.
        privacy_limit: Lifetime ε over everything ever released about the dataset; private only.
        delta: Lifetime δ.
        may_train: Principals, or ``"anyone"``: who may train and evaluate, or only evaluate.
        recipients: Principals that may receive weights beside the scientist of a run.
        scientist_receives: Whether the scientist of a run receives its weights.
        expires: No run starts from then on; a time zone is needed.
        evaluation_only: Nobody may train: the dataset is held out.
        composition: How runs add up to the lifetime: ``basic`` or ``renyi``.
        renyi_orders: Of ``renyi``: orders, or orders with their weights in the split of δ.
        require_hardened: Training runs have ``noise_mode="hardened"``.

    Raises:
        InvalidRequest: If the terms contradict themselves.
    """
    if kind not in KINDS:
        raise InvalidRequest(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
    if kind == "private" and privacy_limit is None:
        raise InvalidRequest(
            "a private dataset needs privacy_limit=, the ε that all runs together may spend, for ever "
            '(1 is strict, 8 is loose); data without anybody\'s secrets is kind="public" or kind="synthetic"'
        )
    if kind != "private" and privacy_limit is not None:
        raise InvalidRequest(f"a {kind} dataset has no privacy limit: leave privacy_limit out")
    if kind != "private" and require_hardened:
        raise InvalidRequest(f"a {kind} dataset needs no noise: leave require_hardened out")
    if expires is not None and expires.tzinfo is None:
        raise InvalidRequest("expires needs a time zone, e.g. datetime.timezone.utc")
    lifetime = None
    if privacy_limit is not None:
        lifetime = {"epsilon": decimal("privacy_limit", privacy_limit), "delta": decimal("delta", delta)}
    return {
        "lifetime": lifetime,
        "may_train": _may_train(may_train),
        "recipients": [principal(each) for each in recipients],
        "scientist_receives": scientist_receives,
        "expires_unix_ms": None if expires is None else int(expires.timestamp() * 1000),
        "evaluation_only": evaluation_only,
        "composition": _composition(kind, composition, renyi_orders),
        "require_hardened": require_hardened,
    }


def _composition(kind: str, composition: str, orders: RenyiOrders | None) -> object:
    if composition not in ("basic", "renyi"):
        raise InvalidRequest(
            f'composition={composition!r}: expected "basic" (sums of ε and δ) or "renyi" (sums of Rényi divergences)'
        )
    if composition == "basic":
        if orders is not None:
            raise InvalidRequest('renyi_orders= belongs to composition="renyi"')
        return "basic"
    if kind != "private":
        raise InvalidRequest(f"a {kind} dataset has no privacy limit: leave composition out")
    if orders is None:
        return {"renyi": None}
    weights = orders if isinstance(orders, Mapping) else dict.fromkeys(orders, 1)
    for order, weight in weights.items():
        if not isinstance(weight, int) or isinstance(weight, bool) or weight < 1:
            raise InvalidRequest(
                f"renyi_orders: the weight of order {order} is {weight!r}: expected a whole number from 1"
            )
    return {"renyi": [{"order": decimal("renyi_orders", each), "weight": weight} for each, weight in weights.items()]}


def _may_train(may_train: Sequence[Principal] | str) -> object:
    if may_train == "anyone":
        return "anyone"
    # One principal is a common slip: a string is a sequence of characters.
    principals = [may_train] if isinstance(may_train, str) else may_train
    return {"only": [principal(each) for each in principals]}


def principal(text: Principal) -> Principal:
    """Checks the form of a principal.

    Raises:
        InvalidRequest: If it is not 64 hex digits.
    """
    lowered = str(text).strip().lower()
    if len(lowered) != 64 or any(digit not in "0123456789abcdef" for digit in lowered):
        raise InvalidRequest(
            f"{text!r} is no principal: expected 64 hex digits, as Connection.principal and `bastionai keygen` show"
        )
    return lowered


def decimal(name: str, value: float | str | Decimal) -> str:
    """A budget as an exact decimal: floats as Python prints them, so 0.1 is 0.1.

    Raises:
        InvalidRequest: If it is no positive number.
    """
    text = repr(value) if isinstance(value, float) else str(value)
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or number <= 0 or not math.isfinite(float(number)):
        raise InvalidRequest(f"{name}={value!r}: expected a positive number")
    return format(number, "f")
