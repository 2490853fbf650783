"""A pipeline as a picture: Graphviz source and SVG.

A state is shown by colour, by a mark before the name and by the outline; the kind of a step by its
corners (agent steps are rounded, Python steps are not), mapped steps by a double outline, and inputs, which
no step makes, by a folded corner.
More than 80 steps are drawn in groups.
The SVG has no background and plain colours that read on white and on near-black; where the page
says which theme it has (Jupyter, VS Code, Colab), a scoped style sheet picks the colours for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tagent_nb.errors import DefinitionError
from tagent_nb.graph.drawing import Drawing, Theme, source
from tagent_nb.graph.svg import finish, raw_svg, rendered
from tagent_nb.pipeline import Pipeline
from tagent_nb.results import StepResult

if TYPE_CHECKING:
    import graphviz

__all__ = ["FORMATS", "Theme", "checked_format", "save_picture", "save_svg", "to_dot", "to_svg"]

FORMATS = (".svg", ".png", ".pdf")
"""How files of pictures end."""


def to_dot(
    pipeline: Pipeline, steps: Mapping[str, StepResult] | None = None, *, theme: Theme = "auto"
) -> graphviz.Digraph:
    """The pipeline as Graphviz source, drawn also when it has cycles or unknown dependencies.

    Args:
        pipeline: What to draw.
        steps: States by step name, as in ``result.steps``; without it only the definition is drawn.
        theme: ``"light"``, ``"dark"``, or ``"auto"`` for colours that read on both.

    Raises:
        DefinitionError: ``theme`` is not one of these.
        TemplateError: A goal or a condition cannot be read.
    """
    return source(Drawing(pipeline, steps, theme))


def to_svg(
    pipeline: Pipeline,
    steps: Mapping[str, StepResult] | None = None,
    *,
    theme: Theme = "auto",
    legend: bool = True,
) -> str:
    """The pipeline as an SVG document with a transparent background, no links and no script.

    Args:
        pipeline: What to draw.
        steps: States by step name, as in ``result.steps``.
        theme: As for :func:`to_dot`.
        legend: Whether to explain the marks and outlines that occur.

    Raises:
        TagentError: There is neither ``dot`` nor the bundled Graphviz command, or it failed.
    """
    drawing = Drawing(pipeline, steps, theme)
    return finish(raw_svg(drawing), drawing, legend)


def save_svg(
    path: str | Path,
    pipeline: Pipeline,
    steps: Mapping[str, StepResult] | None = None,
    *,
    theme: Theme = "auto",
) -> Path:
    """Write :func:`to_svg` to ``path`` (UTF-8) and return the path."""
    target = Path(path)
    target.write_text(to_svg(pipeline, steps, theme=theme), encoding="utf-8")
    return target


def checked_format(path: str | Path) -> str:
    """How the file of a picture ends, in small letters: one of :data:`FORMATS`.

    Raises:
        DefinitionError: It ends otherwise.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise DefinitionError(
            f"A graph cannot be saved as {str(path)!r}: its name must end in {', '.join(FORMATS)}."
        )
    return suffix


def save_picture(
    path: str | Path,
    pipeline: Pipeline,
    steps: Mapping[str, StepResult] | None = None,
    *,
    theme: Theme = "auto",
) -> Path:
    """Write the picture of a pipeline in the format that the name of the file says, and return the path.

    Args:
        path: Ends in ``.svg``, ``.png`` or ``.pdf``. The latter two need Graphviz's ``dot`` program.
        pipeline: What to draw.
        steps: States by step name, as in ``result.steps``.
        theme: As for :func:`to_dot`.

    Raises:
        DefinitionError: The name ends otherwise.
        TagentError: The picture cannot be drawn; the message says what is to be installed.
        OSError: The file cannot be written.
    """
    suffix = checked_format(path)
    if suffix == ".svg":
        return save_svg(path, pipeline, steps, theme=theme)
    target = Path(path)
    target.write_bytes(rendered(Drawing(pipeline, steps, theme), suffix[1:]))
    return target
