"""The face of a package: the names that others may import from it, each loaded when it is first used.

A face is one table: its ``__getattr__``, ``__dir__`` and ``__all__`` follow from it at run time, and its stub
(``__init__.pyi``) for type checkers. ``python -m tests.stubs`` writes the stubs, and a test compares them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def face(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names load late (PEP 562).

    Args:
        package: The package's ``__name__``.
        modules: Names, separated by blanks, by the module that defines them, relative to the package.
    """
    homes = {name: f"{package}.{module}" for module, names in modules.items() for name in names.split()}

    def load(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(home), name)
        # From now on the name is found without this function.
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, names, sorted(homes)
