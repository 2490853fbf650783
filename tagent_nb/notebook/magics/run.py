"""The magics: each reads its line, makes one call on a public object, and shows what came of it."""

from __future__ import annotations

from argparse import BooleanOptionalAction
from collections.abc import Callable
from typing import Any, TypeVar

from IPython.core.error import UsageError
from IPython.core.magic import cell_magic, line_magic, magics_class

from tagent_nb.display import definition_table, step_card
from tagent_nb.errors import DefinitionError, RunFailedError, TagentError
from tagent_nb.graph import save_picture
from tagent_nb.notebook.display import Picture, show
from tagent_nb.notebook.magics.approve import DecidingMagics
from tagent_nb.notebook.magics.ask import AskingMagics
from tagent_nb.notebook.magics.explain import explain_step
from tagent_nb.notebook.magics.parsing import (
    arguments,
    continued,
    help_option,
    names,
    no_leftovers,
    option,
    parse,
    refuse_second_step,
)
from tagent_nb.notebook.magics.redefine import changes
from tagent_nb.notebook.magics.rename import rename_or_delete
from tagent_nb.notebook.magics.step_options import build_step, read_limit, read_price
from tagent_nb.notebook.magics.tables import last_run, pipelines_table, plan_table
from tagent_nb.notebook.run_control import Request, strictly
from tagent_nb.pipeline import OUTPUT_MODES, ExecutionMode

__all__ = ["TagentMagics"]

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
class TagentMagics(DecidingMagics, AskingMagics):
    """All magics of one shell; ``session`` holds the objects they work on."""

    # -- definitions ------------------------------------------------------------------------

    @line_magic
    @arguments()
    @option("name", nargs="*", help="Name of the pipeline: free text. A new name makes a new pipeline.")
    @option(
        "--model", help="Model of agent steps that name none: 'local', 'test', 'openai:...', or a variable."
    )
    @option("--description", help="What the pipeline is for.")
    @option("--concurrent", action="store_true", help="Steps overlap unless they say --serial.")
    @option(
        "--serial", action="store_true", help="Steps run one after the other unless they say --concurrent."
    )
    @option(
        "--storage", help="Where runs are recorded: a folder, a URL, or a variable; .tagent/runs without it."
    )
    @option(
        "--keep-last",
        type=int,
        metavar="N",
        help="When a run ends, runs before the last N go; else none.",
    )
    @option("--constraint", action="append", metavar="TEXT", help="A rule for every step. May be repeated.")
    @option(
        "--instructions", metavar="TEXT", help="System prompt of the agent steps; 'none' is the usual one."
    )
    @option("--max-concurrency", type=int, metavar="N", help="Most attempts at the same time; 8 without it.")
    @option("--timeout", type=float, metavar="SECONDS", help="Most seconds of a run; 0 is no limit.")
    @option(
        "--price",
        action="append",
        metavar="TEXT",
        help="USD a million tokens of a model, for this notebook: 'openai:mine input=0.5 output=1.5'.",
    )
    @option(
        "--limit",
        action="append",
        metavar="TEXT",
        help="Most that a provider is asked by this notebook: 'openai concurrency=8 requests=500'.",
    )
    @option("--no-cache", action="store_true", help="Never answer steps of this pipeline from the cache.")
    @option(
        "--recording",
        metavar="FILE",
        help="Answer agent steps from this file of %%tagent_export --recording, offline; 'none' ends that.",
    )
    @option("--remove", metavar="STEP", help="Take a step out, such as one whose cell is gone.")
    @option("--rename", metavar="TO", help="Give the pipeline this name; recorded runs stay under the old.")
    @option("--delete", action="store_true", help="Take the pipeline out; recorded runs stay.")
    @option("--with-runs", action="store_true", help="With --delete: its recorded runs and memories go too.")
    @help_option
    def tagent_pipeline(self, line: str) -> None:
        """Make a pipeline, or go back to one; without a name, list the pipelines of this notebook.

        Options that are not given stay as they were.
        """
        args = parse(TagentMagics.tagent_pipeline, line)
        if args is None:
            return
        name = " ".join(args.name)
        if args.rename or args.delete or args.with_runs:
            print(rename_or_delete(self.session, self.cells, name, args))
            return
        if not name and not args.remove and not args.price and not args.limit:
            show(pipelines_table(self.session))
            return
        no_leftovers("%tagent_pipeline", NAME=name, **{"--model": args.model, "--storage": args.storage})
        if args.concurrent and args.serial:
            raise UsageError("%tagent_pipeline: --concurrent and --serial exclude each other. Keep one.")
        self.session.set_prices(dict(read_price(text) for text in args.price or ()))
        self.session.set_limits(dict(read_limit(text) for text in args.limit or ()))
        if name:
            model = self.session.model(args.model)
            self.session.use(
                name,
                model=model,
                description=args.description,
                default_mode=_mode(args),
                storage=self.session.storage(args.storage),
                keep_last=args.keep_last,
                cached=False if args.no_cache else None,
                recording=args.recording,
                max_concurrency=args.max_concurrency,
                instructions=args.instructions,
                timeout=args.timeout,
            )
            if args.model:
                self.session.workspace.model_name = (args.model, model)
        pipeline = self.session.pipeline
        if args.constraint is not None:
            pipeline.global_constraints[:] = []
            pipeline.constraint(*args.constraint)
        if args.remove:
            pipeline.remove(args.remove)
        show(definition_table(pipeline))

    @cell_magic
    @arguments("%tagent_step")
    @option("name", nargs="?", help="Name of the step: an identifier.")
    @option("--python", action="store_true", help="The cell is Python; its last expression is the value.")
    @option(
        "--output-schema", metavar="SCHEMA", help="Model of the answer, from the notebook, or a type: bool."
    )
    @option("--instructions", metavar="TEXT", help="System prompt of this step, in place of the pipeline's.")
    @option("--output-mode", choices=OUTPUT_MODES, help="How the model is asked for a schema.")
    @option("--map-over", metavar="STEP", help="Run once for each item or row of this step or variable.")
    @option("--min-success", type=float, metavar="SHARE", help="Share (0 to 1) of items that must succeed.")
    @option("--depends-on", action="append", metavar="STEPS", help="Steps to wait for: a,b:weak,c:optional.")
    @option("--constraint", action="append", metavar="TEXT", help="A rule for the answer. May be repeated.")
    @option(
        "--when",
        metavar="EXPR",
        help="Run only if this holds: 'load.count > 0'; of each item: 'rows.stars > 3'.",
    )
    @option("--model", help="Model of this step; the pipeline's without it.")
    @option(
        "--setting", action="append", metavar="NAME=VALUE", help="A setting of the model: max_tokens=200."
    )
    @option(
        "--tools", metavar="NAMES", help="Tools the step may use: names, globs, functions of the notebook."
    )
    @option("--check", action="append", metavar="NAMES", help="Functions that raise to refuse a value: a,b.")
    @option("--plan", action="store_true", help="The model plans tasks, which are carried out and judged.")
    @option(
        "--model-for", action="append", metavar="ROLE=MODEL", help="With --plan: plan, act, judge, answer."
    )
    @option("--max-replans", type=int, metavar="N", help="New plans after the first; 2 without it.")
    @option("--approve", action="store_true", help="The value waits until you have approved it.")
    @option(
        "--approve-tools", action="append", metavar="NAMES", help="Calls of these tools wait for you: a,b*."
    )
    @option("--final", action="store_true", help="The value is the pipeline's final output.")
    @option("--remember", action="store_true", help="The model may remember facts and memories.")
    @option("--timeout", type=float, metavar="SECONDS", help="Most seconds of one attempt.")
    @option("--max-retries", type=int, metavar="N", help="Attempts after the first; 3 without it.")
    @option("--budget", metavar="AMOUNT", help="Most that the step may spend: 0.10 (USD), '5000 tokens'.")
    @option("--concurrent", action="store_true", help="May overlap with any other step.")
    @option("--serial", action="store_true", help="Never overlaps with another serial step.")
    @option("--no-cache", action="store_true", help="The cache never answers for this step.")
    @help_option
    def tagent_step(self, line: str, cell: str) -> None:
        """Define a step of the current pipeline, or define it anew: the cell is its goal or its Python.

        A goal refers to other steps: {{ load }}, {{ load.text }}. In Python their names are variables.
        """
        line, cell = continued(line, cell)
        args = parse(TagentMagics.tagent_step, line)
        if args is None:
            return
        if not args.name:
            raise UsageError("%%tagent_step: the step has no name. Write: %%tagent_step NAME")
        no_leftovers("%%tagent_step", NAME=args.name, **{"--model": args.model})
        if args.concurrent and args.serial:
            raise UsageError("%%tagent_step: --concurrent and --serial exclude each other. Keep one.")
        refuse_second_step(cell)
        pipeline = self.session.pipeline
        made, cell_names = build_step(self.session, args, cell, _mode(args))
        before = pipeline.get_step(made.name) if made.name in pipeline else None
        step = self.session.put(made, cell_names)
        self.cells.defined(pipeline.name, step.name)
        show(step_card(pipeline, step, None if before is None else changes(before, step)))

    # -- runs -------------------------------------------------------------------------------

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
        "--strict",
        action="store_true",
        help="A run that fails raises, so that papermill, nbconvert and scheduled notebooks fail.",
    )
    @run_options
    @help_option
    def tagent_run(self, line: str) -> Any:
        """Run the current pipeline and wait for it; the result is the variable 'result'.

        Stop and the kernel's interrupt end it, and --resume carries it on.
        """
        request = self._request(line)
        return None if request is None else self.control.polling(request)

    async def run_awaited(self, line: str, used: bool) -> Any:
        """What a cell's ``%tagent_run`` is rewritten to; the value is given only where it is used."""
        try:
            request = self._request(self.control.shell.var_expand(line))
            value = None if request is None else await self.control.awaited(request)
        except RunFailedError:
            raise
        except TagentError as error:
            raise UsageError(str(error)) from None
        background = request is not None and request.background
        return value if used or background else None

    def _request(self, line: str) -> Request | None:
        args = parse(TagentMagics.tagent_run, line)
        if args is None:
            return None
        if args.strict and args.background:
            raise UsageError(
                "%tagent_run: --strict waits for the end of the run, --background does not. Keep one, or ask "
                "the handle: handle.result().success"
            )
        with strictly(args.strict):
            options = self._options(args)
        budget = None if args.budget is None else " ".join(args.budget)
        return Request(
            {
                **options,
                "max_concurrency": args.max_concurrency,
                "budget": budget,
                "timeout": args.timeout,
            },
            args.background,
            args.strict,
        )

    def _options(self, args: Any) -> dict[str, Any]:
        """The options that a run and its plan share."""
        pipeline = self.session.pipeline
        if not pipeline.steps:
            raise DefinitionError(
                f"Pipeline {pipeline.name!r} has no steps. Write a cell: %%tagent_step NAME"
            )
        return {
            "resume": args.resume,
            "force": names(args.force) if isinstance(args.force, str) else bool(args.force),
            "until": args.until,
            "offline": args.offline,
            "use_cache": args.cache,
            "on_change": args.on_change,
        }

    @line_magic
    @arguments()
    @help_option
    def tagent_panel(self, line: str) -> None:
        """Show the current pipeline's panel: buttons, progress, a live graph, and all about each step.

        It follows all runs of the pipeline, whoever starts them, and every cell that defines a step anew.
        """
        if parse(TagentMagics.tagent_panel, line) is None:
            return
        if not self.control.panel().live:
            print("A panel needs a notebook. Here %tagent_run shows a table, %tagent_status a run's state.")

    @line_magic
    @arguments()
    @run_options
    @help_option
    def tagent_plan(self, line: str) -> None:
        """Show what %%tagent_run with the same options would do, and why, before it costs anything.

        Time, tokens and cost are those of the last run in which a step ran.
        """
        args = parse(TagentMagics.tagent_plan, line)
        if args is not None:
            show(plan_table(self.session.plan(**self._options(args))))

    @line_magic
    @arguments()
    @option("--save", metavar="FILE", help="Also write the picture to this file: .svg, .png or .pdf.")
    @option("--definition", action="store_true", help="Leave out the states of the last run.")
    @help_option
    def tagent_graph(self, line: str) -> None:
        """Show the current pipeline as a picture, with the states of its last run."""
        args = parse(TagentMagics.tagent_graph, line)
        if args is None:
            return
        states = None if args.definition else self.session.workspace.states()
        picture = Picture(self.session.pipeline, states)
        if args.save:
            try:
                save_picture(args.save, self.session.pipeline, states)
            except OSError as error:
                raise UsageError(
                    f"%tagent_graph: {args.save} cannot be written: {error.strerror or error}."
                ) from None
        show(picture)

    @line_magic
    @arguments()
    @help_option
    def tagent_status(self, line: str) -> None:
        """Show every step of the current pipeline: what it reads, where it stands, if its cell is gone.

        JupyterLab and Notebook 7 tell which cells were deleted; other front ends do not.
        """
        args = parse(TagentMagics.tagent_status, line)
        if args is not None:
            space = self.session.workspace
            gone = self.cells.gone(space.pipeline.name)
            states = space.states()
            statuses = None if states is None else {name: state.status for name, state in states.items()}
            show(definition_table(space.pipeline, statuses, gone, last_run(space)))

    @line_magic
    @arguments()
    @option("step", nargs="?", help="Give this step's values instead, as a DataFrame.")
    @option("--run", metavar="RUN", help="Of this recorded run; see %%tagent_history.")
    @help_option
    def tagent_results(self, line: str) -> Any:
        """Give the result of the last run as a DataFrame, one row a step; it is 'result' too."""
        args = parse(TagentMagics.tagent_results, line)
        if args is None:
            return None
        result = self.session.stored_result(args.run) if args.run else self.session.last_result()
        self.control.keep(result)
        return result.output_frame(args.step) if args.step else result.to_frame()

    @line_magic
    @arguments()
    @option("step", nargs="?", help="Name of the step.")
    @help_option
    def tagent_explain(self, line: str) -> None:
        """Say in words why a step ran or was not run in the last run, with what changed."""
        args = parse(TagentMagics.tagent_explain, line)
        if args is None:
            return
        if not args.step:
            raise UsageError("%tagent_explain: which step? Write: %tagent_explain STEP")
        print(explain_step(self.session, args.step))


for _part in (DecidingMagics, AskingMagics):
    for _kind, _names in _part.magics.items():
        TagentMagics.magics[_kind].update(_names)


def _mode(args: Any) -> ExecutionMode | None:
    if args.concurrent:
        return ExecutionMode.CONCURRENT
    return ExecutionMode.SERIAL if args.serial else None
