"""The widgets of the panel: progress, buttons, parts, graph, details and rows; and their static twins.

A cell gets three outputs: the widgets, a table and a picture. While the widgets are in the page, a
style hides the other two; a notebook that is opened without a kernel shows these, and their style hides
the line about a missing widget. (A single output with a widget and a table would show an error.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from tagent_nb.display import Bundle
from tagent_nb.notebook.display import Picture, place, update
from tagent_nb.notebook.panel.extension import PanelActions, Part
from tagent_nb.notebook.widgets.graph_widget import GraphWidget
from tagent_nb.notebook.widgets.step_table import StepTable
from tagent_nb.notebook.widgets.widget_style import close_tree, tip

__all__ = ["PanelView"]

_NOTHING = Bundle("", "")
TWIN_STYLE = (
    '<style class="tagent-twin">.jp-OutputArea-child:has(+.jp-OutputArea-child .tagent-twin)'
    ">.jp-OutputArea-output:not(:has(*)){display:none}</style>"
)
"""Hides the place of a widget that is not there, above the table that stands for it."""


class PanelView:
    """The widgets in one output of a cell, and the places of their twins in the next two.

    Attributes:
        head: Title, phase, progress and warnings.
        buttons: By name, as in ``_BUTTONS``.
        step: Choice of the step for Force step; its details are open.
        offline: Whether runs that are started here ask no model.
        graph: The live graph.
        details: Of the chosen step.
        table: The rows.
    """

    def __init__(self, actions: PanelActions, parts: Sequence[Part]) -> None:
        from ipywidgets import HTML, Button, Checkbox, Dropdown, HBox, Layout, VBox

        self.head = HTML()
        self.details = HTML(layout=Layout(display="none"))
        self.graph, self.table = GraphWidget(), StepTable()
        self.step = Dropdown(
            options=[("Step …", "")],
            layout=Layout(width="150px"),
            **tip(Dropdown, "Show the details of a step, and choose it for Force step"),
        )
        self.offline = Checkbox(
            description="Offline",
            indent=False,
            layout=Layout(width="auto"),
            **tip(Checkbox, "Runs started here ask no model: what is not cached fails"),
        )
        self.buttons = {
            name: Button(description=text, icon=icon, tooltip=tip, layout=Layout(width="auto"))
            for name, text, icon, tip in _BUTTONS
        }
        for name, button in self.buttons.items():
            button.on_click(partial(_click, getattr(actions, name)))
        for widget in (self.graph, self.table):
            widget.observe(lambda change: actions.select(change["new"]), "selected")
        self.step.observe(lambda change: actions.select(change["new"]), "value")
        self.graph.on_msg(lambda _, content, buffers: actions.open_group(str(content.get("open", ""))))
        row = Layout(flex_flow="row wrap", align_items="center")
        self.box = VBox(
            [
                self.head,
                HBox([*self.buttons.values(), self.step, self.offline], layout=row),
                *(part.widget for part in parts),
                self.graph,
                self.details,
                self.table,
            ]
        )
        self._place: Any = None

    def show(self) -> None:
        """Display in the output of the current cell."""
        self._place, self._table, self._picture = place(self.box), place(_NOTHING), place(_NOTHING)

    def offer(self, names: Iterable[str], *, enabled: bool = True) -> None:
        """Show these buttons only."""
        shown = set(names)
        for name, button in self.buttons.items():
            button.layout.display = None if name in shown else "none"
            button.disabled = not enabled or name not in shown
        at_rest = "run" in shown
        self.offline.layout.display = None if at_rest else "none"

    def choose(self, name: str, html: str) -> None:
        """Mark a step everywhere, and show its details."""
        self.graph.selected = self.table.selected = name
        if self.step.value != name and name in self._offered():
            self.step.value = name
        self.details.value = html
        self.details.layout.display = None if html else "none"

    def rename(self, names: Sequence[str]) -> None:
        """Offer these steps in the choice."""
        options = [("Step …", ""), *((name, name) for name in names)]
        if options != list(self.step.options):
            kept = self.step.value
            self.step.options = options
            if kept in names:
                self.step.value = kept

    def _offered(self) -> set[str]:
        return {value for _, value in self.step.options}

    def leave(self, table: Bundle, picture: Picture | None) -> None:
        """Put the static twins into the notebook."""
        update(self._table, Bundle(TWIN_STYLE + table.html, table.text))
        update(self._picture, _NOTHING if picture is None else picture)

    def take_back(self) -> None:
        """Take the static twins away: another run begins."""
        update(self._table, _NOTHING)
        update(self._picture, _NOTHING)

    def close(self) -> None:
        """Take the widgets away for good; the twins stay."""
        update(self._place, _NOTHING)
        for widget in (*self.buttons.values(), self.step, self.offline, self.box):
            close_tree(widget)


def _click(action: Callable[[], None], button: object) -> None:
    action()


_BUTTONS = (
    ("run", "Run", "play", "Run the pipeline; what is cached is not run again"),
    ("stop", "Stop", "stop", "Stop this run; it can be resumed"),
    ("pause", "Pause", "pause", "Start nothing further; what runs goes on"),
    ("go_on", "Resume", "play", "Go on with this run"),
    (
        "retry",
        "Retry failed",
        "repeat",
        "Try failed steps and rows again; what is done is not run again",
    ),
    ("force", "Force step", "bolt", "Run the chosen step anew, cached or not"),
    (
        "cancel_batches",
        "Cancel batches",
        "times",
        "Cancel at their providers the batches that are not answered; Stop leaves them",
    ),
)
"""Name (also that of the method of :class:`PanelActions`), label, icon of Font Awesome, tooltip; in the order
in which they are shown."""
