"""Magics that run the current pipeline, say what a run would do, and show its panel."""

from __future__ import annotations

from argparse import BooleanOptionalAction, Namespace
from collections.abc import Callable
from typing import Any, TypeVar

from IPython.core.error import StdinNotImplementedError, UsageError
from IPython.core.magic import line_magic, magics_class

from tagent_nb.errors import DefinitionError
from tagent_nb.notebook.display import show
from tagent_nb.notebook.magics.base import NotebookMagics
from tagent_nb.notebook.magics.parsing import arguments, clear_messages, names, option, parse
from tagent_nb.notebook.magics.tables import plan_table
from tagent_nb.notebook.run_control import RunRequest, strictly

F = TypeVar("F", bound=Callable[..., Any])


def run_options(function: F) -> F:
    """The options that %tagent_run and %tagent_plan share."""
    for add in reversed(
        [
            option(
                "--resume",
                nargs="?",
                const=True,
                default=False,
                metavar="RUN",
                help="Carry on the last run, or this one.",
            ),
            option(
                "--retry-failed",
                nargs="?",
                const=True,
                metavar="STEPS",
                help="Carry on a run, and run failed rows of these mapped steps (a,b) again, or of all.",
            ),
            option(
                "--force", nargs="?", const=True, metavar="STEPS", help="Run these steps anew (a,b), or all."
            ),
            option("--until", metavar="STEP", help="Run only this step and what it depends on."),
            option(
                "--offline",
                action=BooleanOptionalAction,
                help="Ask no model: what is not cached fails. A resumed run stays as it was without a say.",
            ),
            option(
                "--cache",
                action=BooleanOptionalAction,
                help="--no-cache neither asks nor fills it. A resumed run stays as it was without a say.",
            ),
            option(
                "--on-change",
                choices=("refuse", "rerun"),
                default="refuse",
                help="When a resumed run finds recorded steps changed: refuse, or run them and what follows.",
            ),
        ]
    ):
        function = add(function)
    return function


@magics_class
class RunMagics(NotebookMagics):
    """Run the current pipeline."""

    @line_magic
    @arguments()
    @option("--background", action="store_true", help="Return at once with a handle; other cells can run.")
    @option("--max-concurrency", type=int, metavar="N", help="Most attempts at the same time.")
    @option(
        "--budget",
        nargs="+",
        metavar="AMOUNT",
        help="Most that the run may spend: 0.10 (USD), 5000 tokens, 20 requests; none limits nothing.",
    )
    @option("--timeout", type=float, metavar="SECONDS", help="Most seconds of this run, waits included.")
    @option(
        "--no-wait",
        action="store_true",
        help="End while providers have batches of requests; --resume takes them up later.",
    )
    @option(
        "--strict",
        action="store_true",
        help="A run that fails raises, so that papermill, nbconvert and scheduled notebooks fail.",
    )
    @option("--confirm", action="store_true", help="Show the plan with its cost first, and ask.")
    @run_options
    def tagent_run(self, args: Namespace) -> Any:
        """Run the current pipeline and wait for it; the result is the variable 'result'.

        Stop and the kernel's interrupt end it, and --resume carries it on.
        """
        request = self._request(args)
        return self.control.polling(request) if self._is_confirmed(args, request) else None

    async def run_awaited(self, line: str, used: bool) -> Any:
        """What a cell's ``%tagent_run`` is rewritten to; the value is given only where it is used."""
        with clear_messages():
            args = parse(RunMagics.tagent_run, self.control.shell.var_expand(line))
            if args is None:
                return None
            request = self._request(args)
            if not self._is_confirmed(args, request):
                return None
            value = await self.control.awaited(request)
        return value if used or request.background else None

    def _request(self, args: Namespace) -> RunRequest:
        if args.strict and args.background:
            raise UsageError(
                "%tagent_run: --strict waits for the end of the run, --background does not. Keep one, or ask "
                "the handle: handle.result().success"
            )
        with strictly(args.strict):
            options = self._options(args)
        budget = None if args.budget is None else " ".join(args.budget)
        return RunRequest(
            {
                **options,
                "max_concurrency": args.max_concurrency,
                "budget": budget,
                "timeout": args.timeout,
                "wait": not args.no_wait,
            },
            args.background,
            args.strict,
        )

    def _is_confirmed(self, args: Namespace, request: RunRequest) -> bool:
        """Whether the user wants the run, after having seen its plan where she asked for that."""
        if not args.confirm:
            return True
        budget = request.options["budget"]
        show(plan_table(self.session.plan(**self._options(args), budget=budget)))
        try:
            answer = input("Run it? [y/N] ")
        except (StdinNotImplementedError, EOFError):
            raise UsageError(
                "%tagent_run: --confirm asks, and there is no one to answer here. Leave it out, or set a "
                "budget: --budget 5"
            ) from None
        if answer.strip().lower() in ("y", "yes"):
            return True
        print("Not run.")
        return False

    def _options(self, args: Namespace) -> dict[str, Any]:
        """The options that a run and its plan share."""
        pipeline = self.session.pipeline
        if not pipeline.steps:
            raise DefinitionError(
                f"Pipeline {pipeline.name!r} has no steps. Write a cell: %%tagent_step NAME"
            )
        return {
            "resume": args.resume,
            "retry_failed": _steps(args.retry_failed),
            "force": _steps(args.force),
            "until": args.until,
            "offline": args.offline,
            "use_cache": args.cache,
            "on_change": args.on_change,
        }

    @line_magic
    @arguments()
    @option(
        "--budget",
        nargs="+",
        metavar="AMOUNT",
        help="Say whether this would be enough: 0.10 (USD), 5000 tokens.",
    )
    @run_options
    def tagent_plan(self, args: Namespace) -> None:
        """Show what %%tagent_run with the same options would do, and why, before it costs anything.

        Time is that of the last run in which a step ran. Calls, tokens and cost go by its prompts as they are
        now and by the answers of earlier runs; from and to.
        """
        budget = None if args.budget is None else " ".join(args.budget)
        show(plan_table(self.session.plan(**self._options(args), budget=budget)))

    @line_magic
    @arguments()
    def tagent_panel(self, args: Namespace) -> None:
        """Show the current pipeline's panel: buttons, progress, a live graph, and all about each step.

        It follows all runs of the pipeline, however they start, and every cell that redefines a step.
        """
        if not self.control.panel().live:
            print("A panel needs a notebook. Here %tagent_run shows a table, %tagent_status a run's state.")


def _steps(words: str | bool | None) -> list[str] | bool:
    """The steps that an option names; ``True`` for all."""
    return names(words) if isinstance(words, str) else bool(words)
