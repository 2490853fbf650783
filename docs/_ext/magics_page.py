"""Writes docs/reference/magics.md from the magics themselves, whenever the documentation is built."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

INTRO = """# Magics

Load them with `%load_ext tagent_nb`. Each shows its help with `--help`, completes its options, step names and
schema names with Tab, and is one call on a public object: see `tagent_nb.current()`.
"""


def magics() -> dict[str, Any]:
    """Every magic as it is written (``%%tagent_step``), with its function, group by group."""
    from tagent_nb.notebook.magics.parsing import written
    from tagent_nb.notebook.magics.registry import magic_functions

    return {written(function): function for function in magic_functions().values()}


def described(written: str, parser: argparse.ArgumentParser) -> str:
    """One magic: its text and a table of its arguments."""
    arguments = [action for action in parser._actions if "--help" not in action.option_strings]
    words = [written, *(_name(action) if not action.option_strings else "" for action in arguments)]
    usage = " ".join(word for word in words if word) + (" [options]" if len(arguments) else "")
    text = inspect.cleandoc(parser.description or "")
    rows = [f"| `{_written(action)}` | {_help(action)} |" for action in arguments]
    table = ["", "| argument | what it does |", "| --- | --- |", *rows] if rows else []
    return "\n".join([f"## `{written}`", "", f"```text\n{usage}\n```", "", text, *table, ""])


def _name(action: argparse.Action) -> str:
    return str(action.metavar or action.dest).upper()


def _written(action: argparse.Action) -> str:
    if not action.option_strings:
        return _name(action)
    value = "" if action.nargs == 0 else f" {_name(action)}"
    return ", ".join(action.option_strings) + value


def _help(action: argparse.Action) -> str:
    text = " ".join((action.help or "").split()) % {**vars(action), "prog": ""}
    if action.choices:
        text += f" One of: {', '.join(map(str, action.choices))}."
    return text.replace("|", "\\|")


def write(app: Sphinx) -> None:
    parts = [described(written, function.parser) for written, function in magics().items()]
    path = Path(app.srcdir) / "reference" / "magics.md"
    text = "\n".join([INTRO, *parts])
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
