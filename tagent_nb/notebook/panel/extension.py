"""Parts of the panel that others bring: a budget bar, forms that ask for an approval.

A part is made once for each live panel, before its first run, by a callable in :data:`PARTS`. It has

- ``widget``: an ipywidget, shown between the buttons and the graph. A part that has nothing to show sets
  ``widget.layout.display = "none"``.
- ``observe(event)``: called with every event of the runs that the panel watches, on the run's loop. It
  must return fast and must not touch widgets.
- ``draw()``: called at most ten times a second on the panel's drawing thread after something has
  happened, and once when a run has ended; here widgets are changed.

The maker is called with the panel; ``panel.workspace`` has the pipeline, its executor and its handle.
Clicks on a part's own buttons may come on the main thread or on a subshell's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from tagent_nb.events import Event

if TYPE_CHECKING:
    from tagent_nb.notebook.panel.controller import Panel

__all__ = ["PARTS", "Part", "PartMaker"]


class Part(Protocol):
    """A part of a panel; see the module."""

    widget: Any

    def observe(self, event: Event, /) -> None:
        """Take an event, fast, without touching widgets."""

    def draw(self) -> None:
        """Bring the widget up to date."""


PartMaker = Callable[["Panel"], Part]
"""Makes a part for a panel."""


def approval_forms(panel: Panel) -> Part:
    """Forms for what the runs of the panel's pipeline hold."""
    from tagent_nb.notebook.panel.approval_form import ApprovalForms

    return ApprovalForms(panel.workspace)


PARTS: list[PartMaker] = [approval_forms]
"""The parts of every panel, in the order in which they are shown."""
