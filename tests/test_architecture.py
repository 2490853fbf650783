"""The package stays a house that one can live in: no circles, and the words of the field.

Which packages may import which, and that outsiders import faces only, is checked by import-linter
(``make lint``).
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from tests.house import BLUNT, bindings, circles, imports, module_name, words
from tests.stubs import PACKAGE, faces

TAKEN_BY_NAME = {"run_pipeline", "load_ipython_extension", "unload_ipython_extension"}
"""Names that are looked up with ``import_module`` by what must not import their package."""
DOCS = PACKAGE.parent / "docs"
TESTS = Path(__file__).parent
LISTS = (Path(__file__), TESTS / "house.py")
"""Where words that are not wanted are listed."""
PRIVATE_WORDS = {
    "told", "sitting", "somebody", "nobody", "whoever", "doomed", "unbroken", "taught", "rehearsal",
}  # fmt: skip
"""Words that once stood for terms of the field, or for nothing."""


def test_no_file_imports_another_in_a_circle() -> None:
    """Imports under TYPE_CHECKING and within functions count too."""
    assert circles(imports()) == []


def test_a_circle_would_be_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert circles(graph) == [["b", "c"]]


def test_a_face_offers_only_what_others_take() -> None:
    """Each name of a package's face is public, or taken from it by another package, a test or a page."""
    tables = {module_name(path): table for path, table in faces().items()}
    public = {name for names in tables["tagent_nb"].values() for name in names}
    taken = {(package, name) for package in tables for name in public | TAKEN_BY_NAME}
    for path in [*PACKAGE.rglob("*.py"), *Path(__file__).parent.rglob("*.py"), *DOCS.rglob("*.py")]:
        own = f"tagent_nb.{path.relative_to(PACKAGE).parts[0]}" if path.is_relative_to(PACKAGE) else ""
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module != own:
                taken |= {(str(node.module), alias.name) for alias in node.names}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                taken.add((f"tagent_nb.{node.value.id}", node.attr))
    assert [
        f"{package}: {name}"
        for package, table in tables.items()
        for names in table.values()
        for name in names
        if (package, name) not in taken
    ] == []


def test_the_picture_of_the_packages_is_that_of_the_code() -> None:
    """After a change of what imports what: python docs/architecture_picture.py"""
    spec = importlib.util.spec_from_file_location("architecture_picture", DOCS / "architecture_picture.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    steps = script.packages().steps
    expected = {f"{other} → {step.name}" for step in steps for other in step.depends_on}
    assert script.arrows(script.PICTURE.read_text(encoding="utf-8")) == expected


@pytest.mark.parametrize("folder", [PACKAGE, TESTS], ids=["code", "tests"])
def test_variables_are_called_by_what_they_are(folder: Path) -> None:
    """At most one binding in 200 has a name such as ``one`` or ``found``."""
    names = list(bindings(folder))
    assert sum(name in BLUNT for name in names) <= len(names) / 200


@pytest.mark.parametrize("folder", [PACKAGE, DOCS, TESTS], ids=["code", "docs", "tests"])
def test_private_words_do_not_come_back(folder: Path) -> None:
    """The decisions and the changelog say what was; they may name it."""
    places = [
        f"{path.relative_to(PACKAGE.parent)}:{number}: {word}"
        for path, number, word in words(folder, (".py", ".md", ".js", ".css"))
        if word in PRIVATE_WORDS
        and path.name != "changelog.md"
        and path.parent.name != "adr"
        and path not in LISTS
    ]
    assert places == []
