"""The groups of magics: registering, completion and the documentation read this list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tagent_nb.notebook.magics.approve import ApproveMagics
from tagent_nb.notebook.magics.ask import AskMagics
from tagent_nb.notebook.magics.base import NotebookMagics
from tagent_nb.notebook.magics.compare import CompareMagics
from tagent_nb.notebook.magics.define import DefineMagics
from tagent_nb.notebook.magics.export import ExportMagics
from tagent_nb.notebook.magics.inspect import InspectMagics
from tagent_nb.notebook.magics.nest import NestMagics
from tagent_nb.notebook.magics.run import RunMagics
from tagent_nb.notebook.run_control import RunControl
from tagent_nb.notebook.session import Session
from tagent_nb.notebook.shell.cells import Cells

GROUPS: tuple[type[NotebookMagics], ...] = (
    DefineMagics,
    RunMagics,
    InspectMagics,
    CompareMagics,
    ApproveMagics,
    AskMagics,
    ExportMagics,
    NestMagics,
)
"""A new group is added here, in the order in which the documentation shows them."""


def register(shell: Any, session: Session, cells: Cells) -> list[NotebookMagics]:
    """Register all magics with a shell.

    Args:
        shell: The IPython shell.
        session: The pipelines that they work on.
        cells: Which cell defined which step.
    """
    control = RunControl(session, shell)
    groups = [group(shell, session, control, cells) for group in GROUPS]
    shell.register_magics(*groups)
    return groups


def magic_functions() -> dict[str, Callable[..., Any]]:
    """The function of each magic by its name, group by group. Its ``parser`` reads its options."""
    return {
        name: getattr(group, method)
        for group in GROUPS
        for methods in group.magics.values()
        for name, method in methods.items()
    }
