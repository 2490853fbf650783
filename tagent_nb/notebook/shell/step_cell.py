"""Where ``%%tagent_step`` may stand in a cell: once, with nothing but comments above it."""

from __future__ import annotations

import ast
import re
from typing import Any

from IPython.core.error import UsageError
from IPython.core.inputtransformer2 import TransformerManager

_STEP = re.compile(r"\s*%%tagent_step\b")


class StepBelowComments:
    """Input transformer: ``%%tagent_step`` may stand below comments, and is refused below code.

    IPython knows a cell magic in the first line only; elsewhere it takes the goal of a step for Python.
    """

    has_side_effects = True
    """It may raise, which IPython does not expect while it asks whether a cell is complete."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell

    def __call__(self, lines: list[str]) -> list[str]:
        place = next((number for number, line in enumerate(lines) if _STEP.match(line)), 0)
        above = [number for number, line in enumerate(lines[:place]) if line.strip()]
        code = [number for number in above if not lines[number].lstrip().startswith("#")]
        first = code[0] if code else place
        if lines[first:] and lines[first].lstrip().startswith("%%"):
            return lines[first:] if above else lines
        if place and _is_python("".join(lines[:place])):
            raise UsageError(
                f"{lines[place].strip()}\n%%tagent_step must be the first line of its cell, with nothing but "
                "comments above it. Put the code above it into a cell of its own."
            )
        return lines

    def install(self) -> None:
        """Begin to look at cells."""
        self.shell.input_transformers_cleanup.insert(0, self)

    def remove(self) -> None:
        """Leave cells as they are."""
        self.shell.input_transformers_cleanup.remove(self)


def _is_python(source: str) -> bool:
    """Whether lines of a cell are whole statements: else what follows may be in the middle of a string."""
    try:
        manager: Any = TransformerManager  # IPython does not annotate it
        ast.parse(manager().transform_cell(source))
    except (SyntaxError, ValueError):
        return False
    return True


def refuse_second_step(cell: str) -> None:
    """Refuse a cell that has another ``%%tagent_step`` below its first line.

    Raises:
        UsageError: It has one.
    """
    second = next((line.strip() for line in cell.splitlines() if _STEP.match(line)), None)
    if second is not None:
        raise UsageError(f"%%tagent_step: a cell defines one step. Put {second!r} into a cell of its own.")
