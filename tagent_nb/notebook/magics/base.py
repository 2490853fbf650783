"""What every group of magics is made with."""

from __future__ import annotations

from typing import Any

from IPython.core.magic import Magics

from tagent_nb.notebook.run_control import RunControl
from tagent_nb.notebook.session import Session
from tagent_nb.notebook.shell.cells import Cells


class NotebookMagics(Magics):
    """Base of a group of magics, which :mod:`tagent_nb.notebook.magics.registry` lists.

    A magic reads its options, makes one call on a public object, and shows the outcome.

    Args:
        shell: The IPython shell.
        session: The pipelines that the magics work on.
        control: Runs the current pipeline for a cell; shared by all groups of a shell.
        cells: Which cell defined which step; shared by all groups of a shell.
    """

    shell: Any

    def __init__(self, shell: Any, session: Session, control: RunControl, cells: Cells) -> None:
        super().__init__(shell)
        self.session = session
        self.control = control
        self.cells = cells
