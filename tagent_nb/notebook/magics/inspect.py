"""Magics that show: states, results, recorded runs, cached answers and memories."""

from __future__ import annotations

import ast
from argparse import Namespace
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import line_magic, magics_class

from tagent_nb.display import definition_table
from tagent_nb.engine import submit
from tagent_nb.errors import did_you_mean
from tagent_nb.formatting import count
from tagent_nb.graph import save_picture
from tagent_nb.notebook.display import Picture, show
from tagent_nb.notebook.magics.base import NotebookMagics
from tagent_nb.notebook.magics.explain import explain_step
from tagent_nb.notebook.magics.parsing import arguments, no_leftovers, option, writing
from tagent_nb.notebook.magics.tables import cache_table, last_run, memories_table
from tagent_nb.results import NESTED, runs_frame, write_frame

DAY = 86_400.0
"""Seconds."""


@magics_class
class InspectMagics(NotebookMagics):
    """Show what there is of the current pipeline."""

    @line_magic
    @arguments()
    def tagent_status(self, args: Namespace) -> None:
        """Show every step of the current pipeline: what it reads, where it stands, if its cell is gone.

        JupyterLab and Notebook 7 tell which cells were deleted; other front ends do not.
        """
        space = self.session.workspace
        gone = self.cells.gone(space.pipeline.name)
        states = space.states()
        statuses = None if states is None else {name: state.status for name, state in states.items()}
        show(definition_table(space.pipeline, statuses, gone, last_run(space)))

    @line_magic
    @arguments()
    @option("step", nargs="?", help="Give this step's values instead, as a DataFrame.")
    @option("--run", metavar="RUN", help="Of this recorded run; see %%tagent_history.")
    @option("--source", action="store_true", help="Before the answers, the columns of what they are about.")
    @option("--nested", choices=NESTED, default="dict", help="What records inside a row become.")
    @option("--explode", metavar="COLUMN", action="append", default=[], help="A row an item of its lists.")
    @option("--samples", action="store_true", help="A row for each sample of a step that has several.")
    @option("--to", metavar="FILE", help="Write it to this file: .csv, .parquet, .xlsx or .arrow.")
    def tagent_results(self, args: Namespace) -> Any:
        """Give the result of the last run as a DataFrame, one row a step; it is 'result' too."""
        if args.samples and (args.source or args.explode):
            raise UsageError("%tagent_results: --samples goes with neither --source nor --explode.")
        if not args.step and (args.source or args.samples or args.nested != "dict" or args.explode):
            raise UsageError("%tagent_results: which step? Write: %tagent_results STEP --source")
        result = self.session.stored_result(args.run) if args.run else self.session.last_result()
        self.control.keep(result)
        frame = result.to_frame()
        if args.samples:
            frame = result.samples_frame(args.step, nested=args.nested)
        elif args.step:
            frame = result.output_frame(
                args.step, source=args.source, nested=args.nested, explode=args.explode
            )
        if not args.to:
            return frame
        with writing("%tagent_results", args.to):
            write_frame(frame, args.to)
        print(f"Written: {args.to} ({count(len(frame), 'row')})")
        return None

    @line_magic
    @arguments()
    @option("step", nargs="?", help="Name of the step.")
    def tagent_explain(self, args: Namespace) -> None:
        """Say in words why a step ran or was not run in the last run, with what changed."""
        if not args.step:
            raise UsageError("%tagent_explain: which step? Write: %tagent_explain STEP")
        print(explain_step(self.session, args.step))

    @line_magic
    @arguments()
    @option("--save", metavar="FILE", help="Also write the picture to this file: .svg, .png or .pdf.")
    @option("--definition", action="store_true", help="Leave out the states of the last run.")
    @option("--timeline", action="store_true", help="Show when each step of the last run worked instead.")
    def tagent_graph(self, args: Namespace) -> None:
        """Show the current pipeline as a picture, with the states of its last run."""
        if args.timeline:
            self._timeline(args)
            return
        states = None if args.definition else self.session.workspace.states()
        picture = Picture(self.session.pipeline, states)
        if args.save:
            with writing("%tagent_graph", args.save):
                save_picture(args.save, self.session.pipeline, states)
        show(picture)

    def _timeline(self, args: Namespace) -> None:
        """Show, and with ``--save`` write, when the steps of the last run worked."""
        if args.definition:
            raise UsageError("%tagent_graph: --timeline and --definition exclude each other. Keep one.")
        timeline = self.session.last_result().timeline()
        if args.save:
            with writing("%tagent_graph", args.save):
                timeline.save(args.save)
        show(timeline)

    @line_magic
    @arguments()
    @option(
        "run", nargs="?", help="Give this run's result: its id, or so much of one end of it as is enough."
    )
    @option("--steps", action="store_true", help="Give a row for each step of each run.")
    @option("--items", metavar="STEP", help="Give a row for each item of this mapped step in each run.")
    @option("--events", action="store_true", help="Give a row for each event of each run.")
    @option("--last", type=int, metavar="N", default=20, help="With these: of the newest N runs; 20 without.")
    def tagent_history(self, args: Namespace) -> Any:
        """Give the recorded runs of the current pipeline as a DataFrame, the newest first.

        With a run, give its result as it was recorded, which becomes the variable 'result'.
        """
        executor = self.session.executor()
        if args.steps or args.items or args.events:
            if args.run or args.steps + bool(args.items) + args.events > 1:
                raise UsageError("%tagent_history: a run, --steps, --items and --events exclude each other.")
            history = submit(executor.load_history(args.last)).result()
            if args.items:
                return history.items_frame(args.items)
            return history.steps_frame() if args.steps else history.events_frame()
        runs = submit(executor.history()).result()
        if not args.run:
            lost = "" if runs else submit(executor.storage.lost_runs()).result()
            if lost:
                print(lost)
            return runs_frame(reversed(runs))
        no_leftovers("%tagent_history", RUN=args.run)
        run_id = self._run_id(args.run, [run.run_id for run in runs])
        result = submit(executor.load_result(run_id)).result()
        self.control.keep(result)
        return result

    def _run_id(self, text: str, run_ids: list[str]) -> str:
        if text in run_ids:
            return text
        matches = [run_id for run_id in run_ids if run_id.startswith(text) or run_id.endswith(text)]
        if len(matches) == 1:
            return matches[0]
        name = self.session.pipeline.name
        if matches:
            raise UsageError(
                f"%tagent_history: {text!r} may be any of {count(len(matches), 'run')} of pipeline {name!r}: "
                f"{', '.join(matches[-5:])}. Write more of it."
            )
        newest = f"The newest is {run_ids[-1]}." if run_ids else "It has none yet."
        raise UsageError(
            f"%tagent_history: pipeline {name!r} has no recorded run {text!r}."
            f"{did_you_mean(text, run_ids)} {newest}"
        )

    @line_magic
    @arguments()
    @option(
        "--clear",
        nargs="?",
        const="all",
        metavar="STEP",
        help="Forget the answers of this step, in all pipelines of this folder; of every step with 'all'.",
    )
    @option("--older-than", type=float, metavar="DAYS", help="With --clear: only answers older than this.")
    def tagent_cache(self, args: Namespace) -> None:
        """Show what the cache holds, or forget some of it. That may cost money, never correctness."""
        cache = self.session.cache
        if args.older_than is not None:
            if args.clear is None:
                raise UsageError(
                    "%tagent_cache: --older-than needs --clear. "
                    f"Write: %tagent_cache --clear all --older-than {args.older_than:g}"
                )
            if not args.older_than >= 0:
                raise UsageError(f"%tagent_cache: --older-than is {args.older_than:g}; write 0 or more days.")
        if args.clear is not None:
            step = None if args.clear == "all" else args.clear
            if step is not None:
                self._check_answered(step)
            age = None if args.older_than is None else args.older_than * DAY
            print(f"Forgot {count(cache.clear(step, age), 'answer')}.")
        show(cache_table(cache.stats()))

    def _check_answered(self, step: str) -> None:
        """Refuse a step that has no answers, unless the pipeline has it."""
        answered = sorted({entry.step for entry in self.session.cache.stats().steps})
        defined = self.session.pipeline.steps if self.session.workspaces else []
        steps = [*answered, *(definition.name for definition in defined)]
        if step not in steps:
            raise UsageError(
                f"%tagent_cache: there is no cached answer of a step {step!r}.{did_you_mean(step, steps)} "
                f"Steps with answers: {', '.join(answered) or 'none'}."
            )

    @line_magic
    @arguments()
    @option("key", nargs="?", help="Give this memory. Without it, list all of them.")
    @option("--set", metavar="VALUE", dest="value", help="Save it: a text, or Python's notation of a value.")
    @option("--forget", action="store_true", help="Delete it.")
    def tagent_memory(self, args: Namespace) -> Any:
        """Show, edit or delete what is remembered of the current pipeline from run to run."""
        executor = self.session.executor()
        if not args.key:
            if args.forget or args.value is not None:
                raise UsageError("%tagent_memory: which memory? Write: %tagent_memory KEY --set VALUE")
            show(memories_table(executor.memories()))
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
                saved = ", ".join(memories) or "none"
                raise UsageError(f"%tagent_memory: there is no memory {args.key!r}. Saved: {saved}.")
            return memories[args.key]
        return None


def _value(text: str) -> Any:
    """What a word of a line stands for: a number, a list and so on, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
