"""Magics for trying a change: a second pipeline that shares what is unchanged, and what then differs."""

from __future__ import annotations

import ast
from argparse import Namespace
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import line_magic, magics_class

from tagent_nb.display import definition_table
from tagent_nb.errors import NotStoredError, did_you_mean
from tagent_nb.notebook.display import show
from tagent_nb.notebook.magics.base import NotebookMagics
from tagent_nb.notebook.magics.parsing import arguments, names, option
from tagent_nb.notebook.session import Session
from tagent_nb.results import PipelineResult

_TEXTS = (
    "goal",
    "instructions",
    "when",
    "map_over",
    "reduce_over",
    "group_by",
    "combine",
    "output_mode",
    "agent",
    "budget",
)
"""Fields of a step that are texts, whatever they look like."""


@magics_class
class CompareMagics(NotebookMagics):
    """Fork a pipeline, and compare its results with those of another run."""

    @line_magic
    @arguments(expand=False)
    @option("name", nargs="?", help="Name of the new pipeline.")
    @option(
        "--set",
        action="append",
        default=[],
        metavar="CHANGE",
        help="Another value of a step's field: classify.model=local, 'report.goal=...'. May be repeated.",
    )
    def tagent_fork(self, args: Namespace) -> None:
        """Make a second pipeline of the current one's steps with some changes, and make it current.

        What has not changed is answered by the cache: nothing of it is paid again.
        """
        if not args.name:
            raise UsageError(
                "%tagent_fork: which name? Write: %tagent_fork strict --set classify.model=local"
            )
        changes = {
            place: _value(self.session, place, text) for place, text in (_change(text) for text in args.set)
        }
        pipeline = self.session.fork(args.name, changes)
        show(definition_table(pipeline))

    @line_magic
    @arguments()
    @option("first", nargs="?", help="A pipeline of this notebook, or a run of the current one.")
    @option("second", nargs="?", help="What to compare it with; without it, the current pipeline's last run.")
    @option("--truth", metavar="FIELD", help="Where the truth is known: load.label, or a variable's column.")
    @option("--answer", metavar="FIELD", help="With --truth: the field to evaluate, such as classify.label.")
    def tagent_compare(self, args: Namespace) -> Any:
        """Compare two results, row by row and field by field; with --truth, say how good answers are."""
        if args.truth or args.answer:
            if not (args.truth and args.answer) or args.second:
                raise UsageError(
                    "%tagent_compare: --truth and --answer belong together, for one pipeline or run. "
                    "Write: %tagent_compare strict --answer classify.label --truth load.label"
                )
            return self._result(args.first).evaluate(args.answer, args.truth)
        if not args.first:
            raise UsageError(
                "%tagent_compare: with what? Write: %tagent_compare reviews strict, or name a run of "
                "%tagent_history."
            )
        first, second = (args.first, args.second) if args.second else (None, args.first)
        results = [self._result(name) for name in (first, second)]
        return results[0].compare(
            results[1], [name or self.session.pipeline.name for name in (first, second)]
        )

    def _result(self, name: str | None) -> PipelineResult:
        """The last result of a pipeline of this notebook, or a recorded run of the current one."""
        if name is None or name == self.session.pipeline.name:
            return self.session.last_result()
        if name in self.session.workspaces:
            return self.session.last_result(self.session.workspaces[name])
        try:
            return self.session.stored_result(name)
        except NotStoredError:
            raise UsageError(
                f"%tagent_compare: {name!r} is neither a pipeline of this notebook nor a run of pipeline "
                f"{self.session.pipeline.name!r}.{did_you_mean(name, self.session.workspaces)} Pipelines: "
                f"{', '.join(self.session.workspaces)}. Runs: see %tagent_history."
            ) from None


def _change(text: str) -> tuple[str, str]:
    place, sign, value = (part.strip() for part in text.partition("="))
    step, dot, field = place.partition(".")
    if not (step and dot and field and sign and value):
        raise UsageError(f"--set {text!r} cannot be read. Write: --set classify.model=local")
    return place, value


def _value(session: Session, place: str, text: str) -> Any:
    """What a text stands for as the value of a step's field."""
    field = place.split(".")[1]
    if field in _TEXTS:
        return text
    if field in ("model", "models"):
        return session.model(text)
    if field == "output_schema":
        return session.schema(text)
    if field == "checks":
        return [session.function(name) for name in names(text)]
    if field == "retry_on":
        return names(text)
    if field == "constraints":
        return [text]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)
