"""What a panel and its parts know of each other. Others bring parts: a budget bar, forms for approvals.

A part is made once for each live panel, before its first run, by a callable in :data:`PARTS`. It has

- ``widget``: an ipywidget, shown between the buttons and the graph. A part that has nothing to show sets
  ``widget.layout.display = "none"``.
- ``observe(event)``: called with every event of the runs that the panel watches, on the run's loop. It
  must return fast and must not touch widgets.
- ``draw()``: called at most ten times a second on the panel's drawing thread after something has
  happened, and once when a run has ended; here widgets are changed.

The maker is called with the panel (see :class:`PanelActions`); ``panel.workspace`` has the pipeline, its
executor and its handle.
Clicks on a part's own buttons may come on the main thread or on a subshell's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tagent_nb.events import Event
from tagent_nb.notebook.panel.approval_form import ApprovalForms
from tagent_nb.notebook.workspace import Workspace

__all__ = ["PARTS", "PanelActions", "Part", "PartMaker"]


class PanelActions(Protocol):
    """What the buttons and the parts of a panel may ask of it.

    Clicks may come on the main thread or on a subshell's.
    """

    workspace: Workspace

    def run(self) -> None: ...
    def stop(self) -> None: ...
    def pause(self) -> None: ...
    def go_on(self) -> None: ...
    def retry(self) -> None: ...
    def force(self) -> None: ...
    def cancel_batches(self) -> None: ...
    def select(self, name: str) -> None: ...
    def open_group(self, key: str) -> None: ...


class Part(Protocol):
    """A part of a panel; see the module."""

    widget: Any

    def observe(self, event: Event, /) -> None:
        """Take an event, fast, without touching widgets."""

    def draw(self) -> None:
        """Bring the widget up to date."""


PartMaker = Callable[[PanelActions], Part]
"""Makes a part for a panel."""


def approval_forms(panel: PanelActions) -> Part:
    """Forms for what waits for approval in the runs of the panel's pipeline."""
    return ApprovalForms(panel.workspace)


PARTS: list[PartMaker] = [approval_forms]
"""The parts of every panel, in the order in which they are shown."""
