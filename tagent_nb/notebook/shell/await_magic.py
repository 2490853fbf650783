"""Turns ``%tagent_run`` in a notebook cell into an awaited call.

While a cell awaits, the kernel goes on handling messages: a click on Stop arrives, and an interrupt
cancels what is awaited. That works for magics at the top level of a cell, also below ``if``,
``for``, ``with`` and ``try``, and not inside functions and classes, where the call stays as it is.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

MAGIC = "tagent_run"
_CLOSED = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)
"""Where an ``await`` is not allowed, or belongs to other code."""


def rewrite(source: str) -> str:
    """The source with its top-level calls of the magic awaited; anything else is left untouched."""
    if MAGIC not in source:
        return source
    try:
        tree = ast.parse(source)
    except SyntaxError:
        # Magics that are no Python yet, or the user's mistake: IPython reports it in its own words.
        return source
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    text = source.encode()
    for call, used in sorted(_calls(tree), key=lambda use: -_offset(starts, use[0])):
        begin, end = _offset(starts, call), starts[(call.end_lineno or 1) - 1] + (call.end_col_offset or 0)
        argument = ast.get_source_segment(source, call.args[1]) or "''"
        inner = f"get_ipython().find_line_magic({MAGIC!r}).__self__.run_awaited({argument}, used={used})"
        text = text[:begin] + f"(await {inner})".encode() + text[end:]
    return text.decode()


def _offset(starts: list[int], node: ast.expr) -> int:
    return starts[node.lineno - 1] + node.col_offset


def _calls(node: ast.AST) -> Iterator[tuple[ast.Call, bool]]:
    """The calls of the magic that may be awaited, and whether their value is used."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _CLOSED):
            continue
        if isinstance(child, ast.Call) and _is_ours(child):
            yield child, not isinstance(node, ast.Expr)
        else:
            yield from _calls(child)


def _is_ours(call: ast.Call) -> bool:
    """``get_ipython().run_line_magic('tagent_run', '...')``, as IPython writes ``%tagent_run ...``."""
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and function.attr == "run_line_magic"
        and isinstance(function.value, ast.Call)
        and isinstance(function.value.func, ast.Name)
        and function.value.func.id == "get_ipython"
        and len(call.args) == 2
        and not call.keywords
        and isinstance(call.args[0], ast.Constant)
        and call.args[0].value == MAGIC
    )


class AwaitedRuns:
    """Input transformer: rewrites the cells that the kernel itself runs, and no code that runs inside one.

    Code that a cell hands to the shell (``get_ipython().run_cell(...)``, ``%run other.ipynb``), and the body
    of ``%%time`` and ``%%capture``, is run to its end in place and cannot await. It keeps the plain call,
    which polls, as does any shell without a running loop. Which of the two it is stands on the call stack:
    counting cells would miss the cell that loads the extension while it runs, and would take a cell of
    another subshell for a part of one that awaits.
    """

    has_side_effects = False

    def __init__(self, shell: Any) -> None:
        self.shell = shell

    def __call__(self, lines: list[str]) -> list[str]:
        source = "".join(lines)
        if MAGIC not in source or not self.can_await() or _inside_a_cell():
            return lines
        return rewrite(source).splitlines(keepends=True)

    def can_await(self) -> bool:
        """Whether this shell awaits cells on a loop that runs already: an IPython kernel does."""
        return getattr(self.shell, "kernel", None) is not None and bool(self.shell.autoawait)

    def install(self) -> None:
        """Begin to rewrite cells."""
        self.shell.input_transformers_post.append(self)

    def remove(self) -> None:
        """Leave cells as they are."""
        self.shell.input_transformers_post.remove(self)


_RUNNING = (InteractiveShell._run_cell.__code__, InteractiveShell.run_code.__code__)
"""Code of the shell below which everything runs in place: a whole cell, and each statement of one."""


def _inside_a_cell() -> bool:
    """Whether the code to be transformed was handed to the shell by code that runs, not by the kernel."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code in _RUNNING:
            return True
        frame = frame.f_back
    return False
