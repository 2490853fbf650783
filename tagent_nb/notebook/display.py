"""The graph as a cell's output: an SVG, which a saved notebook keeps, and a line of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tagent_nb.display import count
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
