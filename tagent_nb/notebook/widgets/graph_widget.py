"""The live graph as a widget: an SVG that is laid out once, then sent only what is new.

Hooks for tests and style sheets: a node is ``g.node[data-step][data-state]`` within ``.tagent-live-graph``;
it is a button with ``aria-pressed``, and its ``aria-label`` says what the tooltip says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import anywidget
import traitlets

from tagent_nb.graph import LiveGraph
from tagent_nb.notebook.widgets.step_table import status_styles
from tagent_nb.notebook.widgets.widget_style import CSS, script
from tagent_nb.pipeline import Pipeline
from tagent_nb.results import MapProgress, StepResult

__all__ = ["GraphWidget"]


class GraphWidget(anywidget.AnyWidget):
    """The widget; empty until :meth:`lay_out`.

    Attributes:
        picture: Counts layouts, so that a late difference does not reach a newer picture.
        svg: The picture.
        names: Node id to the step that it shows; an empty string for a group.
        groups: Node id to the key of its group.
        labels: Node id to ``[state, first line, last line, tooltip]``.
        opened: Whether groups were opened.
        selected: Name of the step whose details are open, or an empty string; set by clicks too.
    """

    _esm = script("graph_widget.js")
    _css = CSS
    styles = traitlets.Dict().tag(sync=True)
    picture = traitlets.Int(0).tag(sync=True)
    svg = traitlets.Unicode("").tag(sync=True)
    names = traitlets.Dict().tag(sync=True)
    groups = traitlets.Dict().tag(sync=True)
    labels = traitlets.Dict().tag(sync=True)
    opened = traitlets.Bool(False).tag(sync=True)
    selected = traitlets.Unicode("").tag(sync=True)

    def __init__(self, **fields: Any) -> None:
        super().__init__(styles=status_styles(), **fields)
        self._graph: LiveGraph | None = None

    def lay_out(
        self, pipeline: Pipeline, steps: Mapping[str, StepResult], now: float, opened: Collection[str] = ()
    ) -> None:
        """Draw the pipeline as it is now.

        Args:
            pipeline: What is drawn.
            steps: States by name; steps without one are pending.
            now: Seconds since the epoch.
            opened: Keys of groups that are shown step by step.

        Raises:
            TagentError: The graph cannot be drawn.
        """
        graph = LiveGraph(pipeline, opened)
        labels = {node: graph.label(node, steps, now) for node in graph.nodes}
        names = {node: "" if node in graph.groups else steps[0] for node, steps in graph.nodes.items()}
        self._graph = graph
        with self.hold_sync():
            self.svg, self.names, self.groups, self.labels = graph.svg, names, graph.groups, labels
            self.opened = bool(opened)
            self.picture += 1

    def send_changes(
        self,
        changed: Collection[str],
        steps: Mapping[str, StepResult],
        now: float,
        items: Mapping[str, MapProgress] | None = None,
    ) -> None:
        """Show what is new of these steps. Without a layout it does nothing.

        Args:
            changed: Their names.
            steps: States by name.
            now: Seconds since the epoch.
            items: How far mapped steps are, where that is counted already.
        """
        graph = self._graph
        if graph is None:
            return
        new = {}
        for node in {graph.node_of(name) for name in changed}:
            if node is None:
                continue  # it is no longer defined
            label = graph.label(node, steps, now, items)
            if label != self.labels[node]:
                # In place: the trait is there for views that are opened later, and is not sent again.
                self.labels[node] = new[node] = label
        if new:
            self.send({"picture": self.picture, "labels": new})
