"""``%tagent_pipeline --rename`` and ``--delete``: what they do, and what becomes of recorded runs."""

from __future__ import annotations

from typing import Any

from IPython.core.error import UsageError

from tagent_nb.display import count
from tagent_nb.notebook.session import Session
from tagent_nb.notebook.shell.cells import Cells


def rename_or_delete(session: Session, cells: Cells, name: str, args: Any) -> str:
    """Do what the options say, to the named pipeline or else the current one; returns what was done.

    Raises:
        UsageError: The options exclude each other.
        TagentError: What :meth:`Session.rename` and :meth:`Session.delete` raise.
    """
    if args.rename and (args.delete or args.with_runs):
        raise UsageError("%tagent_pipeline: --rename and --delete exclude each other. Keep one.")
    if not args.rename and not args.delete:
        raise UsageError("%tagent_pipeline: --with-runs belongs to --delete.")
    old = name or session.pipeline.name
    stored = session.stored_runs(old)
    if args.rename:
        new = session.rename(old, args.rename).name
        cells.renamed(old, new)
        return f"Renamed {old!r} to {new!r}.{_stays(stored, old)}"
    session.delete(old, runs=args.with_runs)
    if args.with_runs:
        return f"Deleted {old!r} and {count(stored, 'recorded run')}, with its memories."
    return f"Deleted {old!r} from this notebook.{_stays(stored, old)}"


def _stays(stored: int, name: str) -> str:
    if not stored:
        return ""
    word = "stay" if stored > 1 else "stays"
    return (
        f" {count(stored, 'recorded run')} {word} under the name {name!r}, with its memories: "
        f"%tagent_pipeline {name} finds them."
    )
