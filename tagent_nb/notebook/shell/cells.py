"""Which cell defined which step, so that a step whose cell is gone is known.

Each request to run a cell says the id of that cell. JupyterLab and Notebook 7 also say which cells were
deleted since the last request. That is all a kernel learns: a cell that was deleted after the newest request,
and any cell deleted in a front end that does not tell (VS Code, Colab, nbclient), is not known to be
gone. What is known is never guessed from the file, which may be older than what the user sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DELETED = "its cell was deleted"
REWRITTEN = "its cell ran again and did not define it"


@dataclass(frozen=True)
class _Origin:
    """Where a step was defined: its cell, and which execution of it."""

    cell: str
    execution: int


class Cells:
    """What a shell learns about its notebook's cells.

    Args:
        shell: The IPython shell.
    """

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self._cell = ""
        self._request: str | None = None
        self._executions = 0
        self._last: dict[str, int] = {}
        self._deleted: set[str] = set()
        self._origins: dict[tuple[str, str], _Origin] = {}

    def install(self) -> None:
        """Begin to listen."""
        self.shell.events.register("pre_run_cell", self._entered)

    def remove(self) -> None:
        """Listen no more."""
        self.shell.events.unregister("pre_run_cell", self._entered)

    def defined(self, pipeline: str, step: str) -> None:
        """The cell that runs has defined a step."""
        if self._cell:
            self._origins[pipeline, step] = _Origin(self._cell, self._executions)
        else:
            self._origins.pop((pipeline, step), None)

    def renamed(self, old: str, new: str) -> None:
        """A pipeline has another name: its cells are the same."""
        self._origins = {
            (new if place == old else place, step): origin for (place, step), origin in self._origins.items()
        }

    def gone(self, pipeline: str) -> dict[str, str]:
        """Steps of a pipeline whose cell no longer defines them, with what became of the cell.

        Steps that were defined in Python, or where the front end tells no cell ids, are never among them.
        """
        steps = {}
        for (place, step), origin in self._origins.items():
            if place == pipeline and origin.cell in self._deleted:
                steps[step] = DELETED
            elif place == pipeline and self._last[origin.cell] != origin.execution:
                steps[step] = REWRITTEN
        return steps

    def _entered(self, info: Any) -> None:
        """A cell, or code that a cell hands to the shell while it runs: that has no id of its own."""
        parent: dict[str, Any] = getattr(self.shell, "get_parent", dict)() or {}
        request = parent.get("header", {}).get("msg_id")
        if request is not None and request == self._request:
            return
        self._request = request
        self._executions += 1
        # IPython 7 does not say which cell it is; the request does.
        self._cell = getattr(info, "cell_id", None) or parent.get("metadata", {}).get("cellId") or ""
        self._deleted.update(str(cell) for cell in parent.get("metadata", {}).get("deletedCells") or ())
        # A cell that runs is there, whatever an earlier request said: deleting can be undone.
        self._deleted.discard(self._cell)
        if self._cell:
            self._last[self._cell] = self._executions
