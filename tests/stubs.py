"""Stubs of the packages' faces for type checkers, made from the tables in their ``__init__.py``.

``python -m tests.stubs`` writes them; ``tests/test_public_api.py`` compares them.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "tagent_nb"


def faces() -> dict[Path, dict[str, tuple[str, ...]]]:
    """The table of each face by its ``__init__.py``: names by module, relative to the package."""
    tables = {}
    for path in sorted(PACKAGE.rglob("__init__.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "face":
                table = ast.literal_eval(node.args[1])
                tables[path] = {module: tuple(names.split()) for module, names in table.items()}
    return tables


def stub(path: Path, table: dict[str, tuple[str, ...]]) -> str:
    """What ``__init__.pyi`` beside a face holds."""
    package = ".".join(("tagent_nb", *path.parent.relative_to(PACKAGE).parts))
    lines = ["# Made by `python -m tests.stubs` from the table in __init__.py."]
    for module, names in sorted(table.items()):
        lines += [f"from {package}.{module} import {name} as {name}" for name in sorted(names)]
    return "\n".join(lines + _functions(path)) + "\n"


def _functions(path: Path) -> list[str]:
    """Signatures of what a face defines itself, and its constants."""
    lines = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            lines.append(f"def {node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}: ...")
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            lines.append("__version__: str")
    if any(": Any" in line for line in lines):
        lines.insert(0, "from typing import Any")
    return lines


def write() -> None:
    """Write all stubs."""
    for path, table in faces().items():
        path.with_suffix(".pyi").write_text(stub(path, table), encoding="utf-8")


if __name__ == "__main__":
    write()
