"""What ``%load_ext tagent_nb`` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tagent_nb.notebook.magics.base import NotebookMagics
from tagent_nb.notebook.magics.completion import MagicCompleter
from tagent_nb.notebook.magics.registry import register
from tagent_nb.notebook.session import current
from tagent_nb.notebook.shell.await_magic import AwaitedRuns
from tagent_nb.notebook.shell.cells import Cells
from tagent_nb.notebook.shell.comm import AnsweredChanges
from tagent_nb.notebook.shell.step_cell import StepBelowComments


class ShellHook(Protocol):
    """Something that a shell calls, from its installation to its removal."""

    def install(self) -> None: ...
    def remove(self) -> None: ...


@dataclass(frozen=True)
class _Installation:
    """What one shell got."""

    groups: Sequence[NotebookMagics]
    hooks: Sequence[ShellHook]


_installed: dict[int, _Installation] = {}


def load_ipython_extension(shell: Any) -> None:
    """Register and complete the magics of a shell, and let its cells await ``%tagent_run``.

    Loading twice is as loading once.
    """
    if id(shell) in _installed:
        return
    session, cells = current(), Cells(shell)
    groups = register(shell, session, cells)
    hooks: list[ShellHook] = [
        AwaitedRuns(shell),
        StepBelowComments(shell),
        AnsweredChanges(getattr(shell, "kernel", None)),
        cells,
        MagicCompleter(session, shell),
    ]
    for hook in hooks:
        hook.install()
    _installed[id(shell)] = _Installation(groups, hooks)


def unload_ipython_extension(shell: Any) -> None:
    """Take the magics away again; pipelines and results stay in ``tagent_nb.current()``."""
    installation = _installed.pop(id(shell), None)
    if installation is None:
        return
    for hook in installation.hooks:
        hook.remove()
    for group in installation.groups:
        for kind, names in group.magics.items():
            for name in names:
                shell.magics_manager.magics[kind].pop(name, None)
