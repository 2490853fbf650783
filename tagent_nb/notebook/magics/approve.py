"""Magics with which a person decides: on what waits for approval, and on what is remembered."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import line_magic, magics_class

from tagent_nb.display import Bundle, clip, escape, table
from tagent_nb.engine import PipelineExecutor
from tagent_nb.formatting import short_text
from tagent_nb.notebook.display import show
from tagent_nb.notebook.magics.export import KeptMagics
from tagent_nb.notebook.magics.parsing import arguments, help_option, no_leftovers, option, parse


@magics_class
class DecidingMagics(KeptMagics):
    """The part of the magics with which a person decides."""

    @line_magic
    @arguments()
    @option("step", nargs="?", help="Approve what this step holds. Without it, list what waits.")
    @option("--item", metavar="KEY", help="Which item of a mapped step.")
    @option("--tool", metavar="NAME", help="Which tool, where a step holds calls of several.")
    @option("--value", metavar="NAME", help="Use this variable of the notebook in place of the value.")
    @option("--reject", metavar="REASON", help="Reject it, with a reason in quotes.")
    @option("--retry", metavar="REASON", help="Reject it, and let the step try again with this reason.")
    @help_option
    def tagent_approve(self, line: str) -> None:
        """Approve or reject what a step holds: in the run that goes on, or for %%tagent_run --resume."""
        args = parse(DecidingMagics.tagent_approve, line)
        if args is None:
            return
        executor = self._executor()
        if not args.step:
            show(_waiting_table(executor))
            return
        no_leftovers("%tagent_approve", STEP=args.step, **{"--value": args.value})
        given = [args.value, args.reject, args.retry]
        if sum(one is not None for one in given) > 1:
            raise UsageError("%tagent_approve: --value, --reject and --retry exclude each other. Keep one.")
        reason = args.reject if args.reject is not None else args.retry
        if reason is not None:
            retry = args.retry is not None
            executor.reject(args.step, reason, item=args.item, tool=args.tool, retry=retry)
        elif args.value is not None:
            executor.approve(args.step, args.item, tool=args.tool, value=self._named(args.value))
        else:
            executor.approve(args.step, args.item, tool=args.tool)
        word = "Rejected" if reason is not None else "Approved"
        print(f"{word}. {_goes_on(executor)}".strip())

    def _named(self, name: str) -> Any:
        if name not in self.session.namespace:
            raise UsageError(
                f"%tagent_approve: there is no variable {name!r}. Put the value into a variable, and name it."
            )
        return self.session.namespace[name]

    def _executor(self) -> PipelineExecutor:
        space = self.session.workspace
        return space.executor if space.executor is not None else self.session.executor()

    @line_magic
    @arguments()
    @option("key", nargs="?", help="Give this memory. Without it, list all of them.")
    @option("--set", metavar="VALUE", dest="value", help="Save it: a text, or Python's notation of a value.")
    @option("--forget", action="store_true", help="Delete it.")
    @help_option
    def tagent_memory(self, line: str) -> Any:
        """Show, edit or delete what is remembered of the current pipeline from run to run."""
        args = parse(DecidingMagics.tagent_memory, line)
        if args is None:
            return None
        executor = self.session.executor()
        if not args.key:
            if args.forget or args.value is not None:
                raise UsageError("%tagent_memory: which memory? Write: %tagent_memory KEY --set VALUE")
            show(_memories_table(executor.memories()))
            return None
        if args.forget and args.value is not None:
            raise UsageError("%tagent_memory: --set and --forget exclude each other. Keep one.")
        if args.forget:
            executor.forget_memory(args.key)
        elif args.value is not None:
            executor.set_memory(args.key, _value(args.value))
        else:
            memories = executor.memories()
            if args.key not in memories:
                known = ", ".join(memories) or "none"
                raise UsageError(f"%tagent_memory: there is no memory {args.key!r}. Saved: {known}.")
            return memories[args.key]
        return None


for _kind, _names in KeptMagics.magics.items():
    DecidingMagics.magics[_kind].update(_names)


def _goes_on(executor: PipelineExecutor) -> str:
    """What becomes of a decision, where the run does not go on with it at once."""
    if not executor.running:
        return "%tagent_run --resume goes on with it."
    if executor.approver == "wait":
        return ""
    return "The run under way asks nobody: when it has ended, %tagent_run --resume goes on with it."


def _value(text: str) -> Any:
    """What a word of a line stands for: a number, a list and so on, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _waiting_table(executor: PipelineExecutor) -> Bundle:
    waiting = executor.pending_approvals()
    if not waiting:
        return _line("Nothing waits for approval.")
    cells = [(one.step, one.item or "", one.tool, short_text(repr(one.value), 300)) for one in waiting]
    return _table(["step", "item", "tool", "value"], cells)


def _memories_table(memories: dict[str, Any]) -> Bundle:
    if not memories:
        return _line("Nothing is remembered of this pipeline.")
    return _table(["memory", "value"], [(key, short_text(repr(one), 300)) for key, one in memories.items()])


def _line(text: str) -> Bundle:
    return Bundle(f"<div>{escape(text)}</div>", text)


def _table(head: list[str], rows: Sequence[tuple[str, ...]]) -> Bundle:
    html = table(head, [[escape(clip(cell, 300)) for cell in row] for row in rows], wide=len(head) - 1)
    return Bundle(html, "\n".join(["  ".join(head), *("  ".join(row) for row in rows)]))
