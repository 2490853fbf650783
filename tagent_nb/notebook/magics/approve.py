"""The magic with which a person decides on what waits for approval."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import line_magic, magics_class

from tagent_nb.engine import PipelineExecutor
from tagent_nb.notebook.display import show
from tagent_nb.notebook.magics.base import NotebookMagics
from tagent_nb.notebook.magics.parsing import arguments, no_leftovers, option
from tagent_nb.notebook.magics.tables import approvals_table


@magics_class
class ApproveMagics(NotebookMagics):
    """Decide on what waits for approval."""

    @line_magic
    @arguments()
    @option("step", nargs="?", help="Approve what waits in this step. Without it, list what waits.")
    @option("--item", metavar="KEY", help="Which item of a mapped step.")
    @option("--tool", metavar="NAME", help="Which tool, where calls of several wait.")
    @option("--value", metavar="NAME", help="Use this variable of the notebook in place of the value.")
    @option("--reject", metavar="REASON", help="Reject it, with a reason in quotes.")
    @option("--retry", metavar="REASON", help="Reject it, and let the step try again with this reason.")
    def tagent_approve(self, args: Namespace) -> None:
        """Approve or reject what waits: in the run that goes on, or for %%tagent_run --resume."""
        executor = self._executor()
        if not args.step:
            show(approvals_table(executor.pending_approvals()))
            return
        no_leftovers("%tagent_approve", STEP=args.step, **{"--value": args.value})
        decisions = [args.value, args.reject, args.retry]
        if sum(decision is not None for decision in decisions) > 1:
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
        print(f"{word}. {_next_step(executor)}".strip())

    def _named(self, name: str) -> Any:
        if name not in self.session.namespace:
            raise UsageError(
                f"%tagent_approve: there is no variable {name!r}. Put the value into a variable, and name it."
            )
        return self.session.namespace[name]

    def _executor(self) -> PipelineExecutor:
        space = self.session.workspace
        return space.executor if space.executor is not None else self.session.executor()


def _next_step(executor: PipelineExecutor) -> str:
    """What becomes of a decision, where the run does not go on with it at once."""
    if not executor.running:
        return "%tagent_run --resume goes on with it."
    if executor.approver == "wait":
        return ""
    return "The run under way waits for no decision: when it has ended, %tagent_run --resume goes on with it."
