"""What ``%load_ext tagent_nb`` does."""

from __future__ import annotations

from typing import Any

from tagent_nb.notebook.magics.completion import MagicCompleter
from tagent_nb.notebook.magics.parsing import StepBelowComments
from tagent_nb.notebook.magics.run import TagentMagics
from tagent_nb.notebook.session import current
from tagent_nb.notebook.shell.await_magic import AwaitedRuns
from tagent_nb.notebook.shell.comm import AnsweredChanges

_installed: dict[
    int, tuple[TagentMagics, AwaitedRuns, StepBelowComments, AnsweredChanges, MagicCompleter]
] = {}


def load_ipython_extension(shell: Any) -> None:
    """Register and complete the magics of a shell, and let its cells await ``%tagent_run``.

    Loading twice is as loading once.
    """
    if id(shell) in _installed:
        return
    magics = TagentMagics(shell, current())
    shell.register_magics(magics)
    awaited = AwaitedRuns(shell)
    awaited.install()
    below = StepBelowComments(shell)
    below.install()
    changes = AnsweredChanges(getattr(shell, "kernel", None))
    changes.install()
    magics.cells.install()
    completer = MagicCompleter(magics.session)
    completer.install(shell)
    _installed[id(shell)] = (magics, awaited, below, changes, completer)


def unload_ipython_extension(shell: Any) -> None:
    """Take the magics away again; pipelines and results stay in ``tagent_nb.current()``."""
    found = _installed.pop(id(shell), None)
    if found is None:
        return
    magics, awaited, below, changes, completer = found
    awaited.remove()
    below.remove()
    changes.remove()
    magics.cells.remove()
    completer.remove(shell)
    for kind, names in magics.magics.items():
        for name in names:
            shell.magics_manager.magics[kind].pop(name, None)
