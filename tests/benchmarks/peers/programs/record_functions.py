"""1,000 functions in a file, each of which turns a record of 2 KB into the next."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.records import Record

RECORDS = 1000


def record_functions(folder: Path) -> list[Callable[..., Record]]:
    """The functions; each parameter has the name of the function before it.

    Args:
        folder: Where the module with the functions is written.
    """
    lines = [
        "from tests.benchmarks.records import following",
        "",
        "def s0() -> dict:",
        "    return following(None)",
    ]
    for n in range(1, RECORDS):
        lines += ["", f"def s{n}(s{n - 1}: dict) -> dict:", f"    return following(s{n - 1})"]
    file = folder / "record_steps.py"
    file.write_text("\n".join(lines) + "\n")
    spec = importlib.util.spec_from_file_location("record_steps", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return [getattr(module, f"s{n}") for n in range(RECORDS)]
