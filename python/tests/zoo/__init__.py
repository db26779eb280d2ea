"""The model zoo: the libraries' own classes, small, each compared with PyTorch and Opacus. One file a family."""

from __future__ import annotations

import importlib
import pkgutil

from zoo.case import Case


def families() -> dict[str, list[Case]]:
    """The cases of every file here that has some, by the file's name."""
    modules = (importlib.import_module(f"zoo.{found.name}") for found in pkgutil.iter_modules(__path__))
    return {module.__name__.removeprefix("zoo."): module.CASES for module in modules if hasattr(module, "CASES")}


def all_cases() -> list[Case]:
    """Every case of every family."""
    return [case for cases in families().values() for case in cases]
