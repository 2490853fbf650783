"""Which steps have lost their cell, from what front ends tell."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tagent_nb.notebook.shell.cells import DELETED, REWRITTEN, Cells


class Front:
    """A shell that a front end asks to run cells."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.cells = Cells(SimpleNamespace(get_parent=lambda: self.asked))
        self.requests = 0

    def run(self, cell: str | None, *steps: str, deleted: tuple[str, ...] = (), nested: int = 0) -> None:
        self.requests += 1
        self.asked = {
            "header": {"msg_id": f"request {self.requests}"},
            "metadata": {"deletedCells": list(deleted)},
        }
        self.cells._entered(SimpleNamespace(cell_id=cell))
        for _ in range(nested):
            self.cells._entered(SimpleNamespace(cell_id=None))
        for step in steps:
            self.cells.defined("p", step)

    @property
    def gone(self) -> dict[str, str]:
        return self.cells.gone("p")


@pytest.fixture
def front() -> Front:
    return Front()


def test_a_step_is_there_as_long_as_its_cell_defines_it(front: Front) -> None:
    front.run("one", "a", "b")
    front.run("two", "c")
    front.run("two", "c")
    assert front.gone == {}
    front.run("one", "b")
    assert front.gone == {"a": REWRITTEN}
    front.run("three", "a")
    assert front.gone == {}


def test_deleted_cells_are_known_from_the_next_request_on(front: Front) -> None:
    front.run("one", "a")
    front.run("two", deleted=("one",))
    assert front.gone == {"a": DELETED}
    assert front.cells.gone("another pipeline") == {}
    front.run("one", "a")
    assert front.gone == {}


def test_code_that_a_cell_hands_on_belongs_to_the_cell(front: Front) -> None:
    """``%%time`` and ``%%capture`` run their body as a cell without an id."""
    front.run("one", "a", nested=2)
    front.run("two", deleted=("one",))
    assert front.gone == {"a": DELETED}


def test_nothing_is_guessed_where_no_ids_are_reported(front: Front) -> None:
    front.run("one", "a")
    front.run(None, "a", "b")
    front.run(None)
    front.run("one")
    assert front.gone == {}


def test_a_shell_without_a_front_end_tells_nothing() -> None:
    shell = InteractiveShell.instance()
    cells = Cells(shell)
    cells.install()
    try:
        shell.run_cell("1").raise_error()
        shell.run_cell("2").raise_error()
        cells.defined("p", "a")
        assert cells.gone("p") == {}
    finally:
        cells.remove()


def test_where_ipython_tells_no_id_the_request_does() -> None:
    """As IPython 7: its events have no cell ids."""
    parent: dict[str, Any] = {}
    cells = Cells(SimpleNamespace(get_parent=lambda: parent))
    for number, steps in enumerate((["a", "b"], ["b"])):
        parent.update(header={"msg_id": f"request {number}"}, metadata={"cellId": "one"})
        cells._entered(SimpleNamespace())
        for step in steps:
            cells.defined("p", step)
    assert cells.gone("p") == {"a": REWRITTEN}
