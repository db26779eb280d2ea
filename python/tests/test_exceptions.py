"""Every refusal of the server is an exception of its own that users can catch, and says what to do."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import bastionai
from bastionai import _internal, exceptions

ROOT = Path(__file__).resolve().parents[2]


def test_every_reason_of_the_server_has_an_exception() -> None:
    table = (ROOT / "crates/server/src/errors.rs").read_text()
    reasons = re.findall(r'Self::\w+ => \("([a-z-]+)", Code::', table)
    assert len(reasons) > 30
    by_reason = dict(_internal.exceptions_by_reason())
    assert sorted(by_reason) == sorted(reasons)
    for reason, name in by_reason.items():
        raised = getattr(exceptions, name)
        assert issubclass(raised, bastionai.BastionError), reason
        assert raised is not bastionai.BastionError, reason


def test_every_reason_is_in_the_protocol_document() -> None:
    document = (ROOT / "docs/protocol.md").read_text()
    for reason, _ in _internal.exceptions_by_reason():
        assert f"`{reason}`" in document, reason


def test_every_exception_is_public_and_documented() -> None:
    for name, value in vars(exceptions).items():
        if inspect.isclass(value) and value.__module__ == exceptions.__name__:
            assert name in bastionai.__all__, name
            assert inspect.getdoc(value), name
