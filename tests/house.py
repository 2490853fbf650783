"""The package as a graph of its files: which file imports which, seen through the faces of packages.

Used by ``tests/test_architecture.py`` and by the picture in docs/explanation/architecture.md.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.stubs import PACKAGE, faces

BLUNT = frozenset({"one", "found", "told", "said", "known", "asked", "given"})
"""Names that say nothing of what a variable is."""


def module_name(path: Path) -> str:
    """``tagent_nb.storage.open`` for its file."""
    parts = ("tagent_nb", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def modules() -> dict[str, ast.Module]:
    """The syntax tree of each file by the name of its module."""
    return {
        module_name(path): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imports(*, typing: bool = True) -> dict[str, set[str]]:
    """The files of the package that each file imports, anywhere in it.

    What a file takes from the face of a package counts for the file that defines it.

    Args:
        typing: Whether imports under ``TYPE_CHECKING`` count too.
    """
    homes = {
        f"{module_name(path)}.{name}": f"{module_name(path)}.{module}"
        for path, table in faces().items()
        for module, names in table.items()
        for name in names
    }
    trees = modules()
    graph: dict[str, set[str]] = {}
    for module, tree in trees.items():
        graph[module] = set()
        left_out = () if typing else {id(part) for block in _typing_blocks(tree) for part in ast.walk(block)}
        for node in ast.walk(tree):
            if id(node) in left_out:
                continue
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("tagent_nb"):
                continue
            for alias in node.names:
                target = f"{node.module}.{alias.name}"
                while target in homes and target not in trees:
                    home = homes[target]
                    target = f"{home}.{alias.name}" if f"{home}.{alias.name}" in homes else home
                graph[module].add(target if target in trees else str(node.module))
        graph[module].discard(module)
    return graph


def _typing_blocks(tree: ast.Module) -> list[ast.If]:
    return [
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of files that import each other in a circle (strongly connected components, Tarjan 1972)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        stack.append(module)
        for target in graph.get(module, ()):
            if target not in index:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], index[target])
        if lowest[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for module in graph:
        if module not in index:
            visit(module)
    return groups


def package_imports() -> dict[str, set[str]]:
    """The packages (and files at the top) that each package imports, types apart."""
    graph: dict[str, set[str]] = {}
    for module, targets in imports(typing=False).items():
        own = _room(module)
        graph.setdefault(own, set()).update(_room(target) for target in targets)
        graph[own].discard(own)
    return graph


def _room(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def bindings(folder: Path) -> Iterator[str]:
    """Every name that the files of a folder bind: variables, parameters, functions, classes."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.arg):
                yield node.arg
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node.name


def words(folder: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[Path, int, str]]:
    """Each word of the files of a folder, with its file and line, small."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in suffixes and "_build" not in path.parts:
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                for word in re.findall(r"[A-Za-z]+", line):
                    yield path, number, word.lower()
