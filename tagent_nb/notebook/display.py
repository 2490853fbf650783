"""What a cell displays: any content, what replaces it later, and the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from IPython.display import DisplayHandle, display

from tagent_nb.formatting import count
from tagent_nb.graph import to_svg
from tagent_nb.pipeline import Pipeline
from tagent_nb.results import StepResult


class Picture:
    """A drawn pipeline. Drawn once, when it is made: later changes do not reach it.

    Attributes:
        svg: The SVG document.
    """

    def __init__(self, pipeline: Pipeline, steps: Mapping[str, StepResult] | None) -> None:
        self.svg = to_svg(pipeline, steps)
        self._text = f"Graph of {pipeline.name}: {count(len(pipeline.steps), 'step')}"

    def __repr__(self) -> str:
        return self._text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"image/svg+xml": self.svg, "text/plain": self._text}


def show(content: Any) -> None:
    """Display in the output of the current cell."""
    display(content)  # type: ignore[no-untyped-call]


def place(content: Any) -> DisplayHandle:
    """Display in the output of the current cell; :func:`update` replaces it later, from any thread."""
    shown = _WidgetView(content) if hasattr(content, "_ipython_display_") else content
    handle: DisplayHandle = display(shown, display_id=True)  # type: ignore[no-untyped-call]
    return handle


class _WidgetView:
    """A widget of ipywidgets 7, which would display itself where nothing could replace it."""

    def __init__(self, widget: Any) -> None:
        self._widget = widget

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self._widget.model_id}
        return {"text/plain": repr(self._widget), "application/vnd.jupyter.widget-view+json": view}


def update(handle: DisplayHandle, content: Any) -> None:
    """Replace what :func:`place` has displayed."""
    handle.update(content)  # type: ignore[no-untyped-call]
