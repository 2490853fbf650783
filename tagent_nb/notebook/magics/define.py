"""Magics that define: a pipeline and its options, and a step from a cell."""

from __future__ import annotations

from argparse import Namespace

from IPython.core.error import UsageError
from IPython.core.magic import cell_magic, line_magic, magics_class

from tagent_nb.display import definition_table, step_card
from tagent_nb.formatting import count
from tagent_nb.notebook.display import show
from tagent_nb.notebook.magics.base import NotebookMagics
from tagent_nb.notebook.magics.parsing import (
    ROLES_HELP,
    agent_options,
    arguments,
    no_leftovers,
    number,
    option,
)
from tagent_nb.notebook.magics.redefine import changes
from tagent_nb.notebook.magics.step_options import build_step, read_limit, read_price
from tagent_nb.notebook.magics.tables import pipelines_table
from tagent_nb.notebook.session import Session
from tagent_nb.notebook.shell.cells import Cells
from tagent_nb.notebook.shell.step_cell import refuse_second_step
from tagent_nb.pipeline import OUTPUT_MODES, THEN_LIVE, ExecutionMode


@magics_class
class DefineMagics(NotebookMagics):
    """Define pipelines and steps."""

    @line_magic
    @arguments(as_written=("--constraint", "--instructions"))
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
    def tagent_pipeline(self, args: Namespace) -> None:
        """Make a pipeline, or go back to one; without a name, list the pipelines of this notebook.

        Options that are not given stay as they were.
        """
        name = " ".join(args.name)
        if args.rename or args.delete or args.with_runs:
            print(_rename_or_delete(self.session, self.cells, name, args))
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
    @arguments(cell=True, as_written=("--constraint", "--instructions", "--combine", "--when"))
    @option("name", nargs="?", help="Name of the step: an identifier.")
    @option("--python", action="store_true", help="The cell is Python; its last expression is the value.")
    @option(
        "--output-schema", metavar="SCHEMA", help="Model of the answer, from the notebook, or a type: bool."
    )
    @option("--instructions", metavar="TEXT", help="System prompt of this step, in place of the pipeline's.")
    @option("--output-mode", choices=OUTPUT_MODES, help="How the model is asked for a schema.")
    @option("--map-over", metavar="STEP", help="Run once for each item or row of this step or variable.")
    @option(
        "--reduce-over",
        metavar="STEP",
        help="Make one answer of all rows of this step or variable, in parts.",
    )
    @option(
        "--group-by", metavar="FIELD", help="One answer for each value of this field: label, load.product."
    )
    @option("--combine", metavar="TEXT", help="How answers to parts of the rows become one.")
    @option("--reduce-tokens", type=int, metavar="N", help="Most tokens of rows in one call.")
    @option(
        "--rows-per-call",
        type=int,
        metavar="N",
        help="Rows that one call asks for; 1 without it.",
    )
    @option(
        "--flatten", action="store_true", help="With --map-over: run over the elements of lists in the items."
    )
    @option("--samples", type=int, metavar="N", help="Independent answers; the value is the agreed one.")
    @option("--min-success", type=float, metavar="SHARE", help="Share (0 to 1) of items that must succeed.")
    @option(
        "--max-failures",
        type=number,
        metavar="N",
        help="Stop early when more items than this have failed: 20, or a share of those run: 0.1.",
    )
    @option(
        "--batch",
        nargs="?",
        const=True,
        choices=[THEN_LIVE],
        help="Send the requests of all rows as batches, at half the price, answered within a day; then-live: "
        "what fails is asked again at once.",
    )
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
    @agent_options
    @option("--model-for", action="append", metavar="ROLE=MODEL", help=ROLES_HELP)
    @option("--max-replans", type=int, metavar="N", help="New plans after the first; 2 without it.")
    @option("--approve", action="store_true", help="The value waits until you have approved it.")
    @option(
        "--approve-tools", action="append", metavar="NAMES", help="Calls of these tools wait for you: a,b*."
    )
    @option("--final", action="store_true", help="The value is the pipeline's final output.")
    @option("--remember", action="store_true", help="The model may remember facts and memories.")
    @option("--timeout", type=float, metavar="SECONDS", help="Most seconds of one attempt.")
    @option(
        "--max-retries",
        type=int,
        metavar="N",
        help="Attempts after the first, at what may pass, such as a lost connection; 3 without it.",
    )
    @option(
        "--retry-on",
        action="append",
        metavar="ERRORS",
        help="Errors that are tried again too: ValueError,requests.HTTPError.",
    )
    @option("--budget", metavar="AMOUNT", help="Most that the step may spend: 0.10 (USD), '5000 tokens'.")
    @option("--concurrent", action="store_true", help="May overlap with any other step.")
    @option("--serial", action="store_true", help="Never overlaps with another serial step.")
    @option("--no-cache", action="store_true", help="The cache never answers for this step.")
    @option(
        "--fresh-for",
        metavar="TIME",
        help="The cache answers for this long: 30m, 12h, 7d; for what files and code do not show.",
    )
    def tagent_step(self, args: Namespace, cell: str) -> None:
        """Define a step of the current pipeline, or define it anew: the cell is its goal or its Python.

        A goal refers to other steps: {{ load }}, {{ load.text }}. In Python their names are variables.
        """
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


def _mode(args: Namespace) -> ExecutionMode | None:
    if args.concurrent:
        return ExecutionMode.CONCURRENT
    return ExecutionMode.SERIAL if args.serial else None


def _rename_or_delete(session: Session, cells: Cells, name: str, args: Namespace) -> str:
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
