"""`_internal.pyi` is written by hand: it must describe what is there, no more and no less."""

from __future__ import annotations

import ast
from pathlib import Path

import bastionai
from bastionai import _internal

STUB = ast.parse(Path(bastionai.__file__).with_name("_internal.pyi").read_text())


def public(names: object) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def test_the_stub_names_exactly_what_the_module_has():
    described = {node.name for node in STUB.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    described |= {node.target.id for node in STUB.body if isinstance(node, ast.AnnAssign)}
    assert described == public(dir(_internal))
    for node in STUB.body:
        if isinstance(node, ast.ClassDef):
            members = public(member.name for member in node.body if isinstance(member, ast.FunctionDef))
            assert members == public(dir(getattr(_internal, node.name))), node.name


def test_the_package_is_marked_as_typed():
    assert Path(bastionai.__file__).with_name("py.typed").exists()


def test_every_public_name_exists_and_is_documented():
    for name in bastionai.__all__:
        assert getattr(bastionai, name).__doc__, name
