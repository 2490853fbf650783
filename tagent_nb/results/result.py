"""What came out of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from tagent_nb.errors import DefinitionError, UnknownStepError, did_you_mean
from tagent_nb.events import Event, TokenUsage
from tagent_nb.pipeline import StepStatus
from tagent_nb.results.records import StepResult, no_value, steps_of, waiting_words

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from pydantic import BaseModel

    from tagent_nb.pipeline import Share
    from tagent_nb.results.compare import Comparison
    from tagent_nb.results.evaluate import Evaluation
    from tagent_nb.results.timeline import Timeline

T = TypeVar("T")


@dataclass(repr=False)
class PipelineResult:
    """The result of a run: values, costs, facts and errors by step.

    Attributes:
        pipeline_name: Name of the pipeline.
        success: Whether no step failed and the run was not cancelled.
        execution_time: Seconds that the run took, earlier sessions of a resumed run included.
        total_cost: USD, the sum of the known prices.
        cost_per_step: USD by step; ``None`` where the price is unknown.
        token_usage: Tokens and calls by step.
        step_outputs: Validated value by step, of the steps that have one.
        step_metadata: By step ``attempts``, ``seconds``, ``cached``, ``input_tokens``, ``output_tokens``,
            ``tool_calls``, for agent steps ``model``, and what its runner noted besides.
        final_output: The value of the pipeline's final step; see :meth:`get_final_output_or_last_step`.
        inputs: Values that no step made, by name, as the run took them when it began.
        learned_facts: Facts that steps recorded in this run.
        saved_memories: Memories of this pipeline that survive runs.
        failed_steps: Names of the steps that failed.
        error_details: Type, message and the user's own traceback lines by failed step.
        run_id: The run's id, under which storage knows it.
        cancelled: Whether the run was stopped; it can be resumed.
        timed_out: Whether the run was stopped by its timeout; it can be resumed.
        unpriced_steps: Steps whose price is unknown, and which ``total_cost`` leaves out.
        steps: One :class:`StepResult` by name, in definition order.
        events: What happened, in order, without streamed text and the starts of items.
        warnings: What the user should know.
        budget: The run's budget as text; empty without one. See :meth:`budget_shares`.
        final_step: Name of the step whose value is the final output; empty where no step is.
        sources: What mapped steps ran over by step, as in ``{"classify": "load.rows"}``.
        dependencies: Names of the steps that each step waited for.
        samples: How many samples there are of each answer, by step that has several.
        flattened: Names of the mapped steps that ran over elements of lists.
        definitions: Digests of the fields of each step, by step and field, for :meth:`compare` where a run
            knows no fingerprints; of a run that another process made, empty.
    """

    pipeline_name: str
    success: bool
    execution_time: float
    total_cost: float = 0.0
    cost_per_step: dict[str, float | None] = field(default_factory=dict)
    token_usage: dict[str, TokenUsage] = field(default_factory=dict)
    step_outputs: Mapping[str, Any] = field(default_factory=dict)
    step_metadata: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    final_output: Any = None
    learned_facts: dict[str, Any] = field(default_factory=dict)
    saved_memories: dict[str, Any] = field(default_factory=dict)
    failed_steps: list[str] = field(default_factory=list)
    error_details: dict[str, str] = field(default_factory=dict)
    run_id: str = ""
    cancelled: bool = False
    unpriced_steps: list[str] = field(default_factory=list)
    steps: dict[str, StepResult] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    budget: str = ""
    final_step: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    timed_out: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)
    dependencies: Mapping[str, Sequence[str]] = field(default_factory=dict)
    samples: Mapping[str, int] = field(default_factory=dict)
    flattened: Sequence[str] = field(default_factory=list)
    definitions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __repr__(self) -> str:
        ended = "cancelled" if self.cancelled else "completed" if self.success else "failed"
        if self.timed_out:
            ended = "timed out"
        elif self.waiting_steps and not self.cancelled and not self.failed_steps:
            ended = f"waiting for {waiting_words(self)}"
        costs = [f"${self.total_cost:.4f}"] if self.total_cost or not self.unpriced_steps else []
        cost = " and ".join([*costs, *(["unknown prices"] if self.unpriced_steps else [])])
        return (
            f"<PipelineResult {self.pipeline_name!r}: {ended}, {len(self.step_outputs)} values, "
            f"{self.execution_time:.1f} s, {cost}, run {self.run_id or 'not recorded'}"
            f"{self._final_text()}>"
        )

    def _final_text(self) -> str:
        if not self.final_step:
            return ""
        if self.final_step not in self.step_outputs:
            return f", no final output: step {self.final_step!r} has no value"
        from tagent_nb.formatting import value_text

        step = self.steps.get(self.final_step)
        return f", final output {value_text(None if step is None else step.output)}"

    def get_step_output(self, step_name: str, expected_type: type[T] = object) -> T | None:  # type: ignore[assignment]
        """The step's value if it is of ``expected_type``, falsy values too; else ``None``."""
        if step_name not in self.step_outputs:
            return None
        output = self.step_outputs[step_name]
        return output if isinstance(output, expected_type) else None

    def get_final_output_or_last_step(self) -> Any:
        """``final_output`` if there is one, falsy ones too; else the value of the step that ended last."""
        if self.final_output is not None or self.final_step in self.step_outputs:
            return self.final_output
        last: str | None = None
        latest = float("-inf")
        for name in self.step_outputs:
            step = self.steps.get(name)
            ended = step.ended_at if step is not None and step.ended_at is not None else latest
            if ended >= latest:
                last, latest = name, ended
        return None if last is None else self.step_outputs[last]

    def __getitem__(self, step: str) -> Any:
        """The value of a step.

        Raises:
            UnknownStepError: The step has no value in this result; the message says why.
            NotStoredError: It had one, which could not be stored.
        """
        if step not in self.step_outputs:
            raise UnknownStepError(no_value(steps_of(self), step, self.run_id or self.pipeline_name))
        return self.step_outputs[step]

    def keys(self) -> KeysView[str]:
        """Names of the steps that have a value, in their order: so that ``dict(result)`` maps them."""
        return self.step_outputs.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.step_outputs)

    def __len__(self) -> int:
        """How many steps have a value."""
        return len(self.step_outputs)

    def __bool__(self) -> bool:
        """A result is true, whatever it holds; ask :attr:`success` how the run ended."""
        return True

    def __contains__(self, step: object) -> bool:
        return step in self.step_outputs

    if not TYPE_CHECKING:  # pragma: no branch: checkers would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            """The value of a step; one that is called as an attribute is read as ``result[name]`` only."""
            outputs = self.__dict__.get("step_outputs", {})
            if name in outputs:
                return outputs[name]
            raise self._no_attribute(name)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A pickle of an older version lacks the fields that have come since.
        factories = {part.name: part.default_factory for part in fields(self)}
        made = {name: make() for name, make in factories.items() if make is not MISSING}
        self.__dict__.update(made | state)

    def _no_attribute(self, name: str) -> AttributeError:
        if name.startswith("_"):
            return AttributeError(f"'PipelineResult' object has no attribute {name!r}")
        from tagent_nb.foreign_words import RESULT, foreign_attribute

        if name in RESULT:
            return foreign_attribute(self, name, RESULT)
        steps = steps_of(self)
        if name in steps:
            return AttributeError(no_value(steps, name, self.run_id or self.pipeline_name))
        names = [*steps, *(attribute for attribute in dir(type(self)) if not attribute.startswith("_"))]
        listed = ", ".join(steps) or "none"
        return AttributeError(
            f"A result has neither a step nor an attribute {name!r}.{did_you_mean(name, names)} "
            f"Steps: {listed}."
        )

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.step_outputs})

    def summary(self) -> str:
        """The run in words, one line a step: status, seconds, tokens, USD, and what went wrong."""
        from tagent_nb.results.summary import summary

        return summary(self)

    @property
    def waiting_steps(self) -> list[str]:
        """Steps that wait, in a run that has ended: for an approval (see
        :meth:`PipelineExecutor.pending_approvals`), or for a batch that their provider has."""
        return [name for name, step in self.steps.items() if step.status is StepStatus.WAITING]

    @property
    def saved_cost(self) -> float:
        """USD that the cache saved, as far as prices are known."""
        return sum(step.saved_cost or 0.0 for step in self.steps.values())

    def budget_shares(self) -> list[Share]:
        """How far each measure of the run's budget is used up; nothing without a budget."""
        from tagent_nb.pipeline import Budget, shares

        if not self.budget:
            return []
        usage = sum(self.token_usage.values(), TokenUsage())
        return shares(Budget.of(self.budget), usage, self.total_cost, unpriced=bool(self.unpriced_steps))

    # -- frames (see frames.py) -----------------------------------------------------

    def to_frame(self) -> pd.DataFrame:
        """One row a step, indexed by step name.

        Columns: ``status``, ``value`` (a short text), ``attempts``, ``seconds``,
        ``input_tokens``, ``output_tokens`` (missing where a provider reported none), ``cost`` (USD, NaN when
        unknown), ``saved_cost``, ``error``.
        """
        from tagent_nb.results.frames import steps_frame

        return steps_frame(self)

    def output_frame(
        self,
        step: str,
        *,
        source: bool = False,
        nested: str = "dict",
        explode: str | Sequence[Any] = (),
        samples: bool = True,
    ) -> pd.DataFrame:
        """A step's value as rows and columns with dtypes; an item a row for a mapped step.

        Args:
            step: Name of the step.
            source: Put the columns of what a mapped step ran over before those of its answers. One whose name
                the answers have, too, is called as in goals, such as ``load.text``. Beside a flattened step
                stand each element and the row of whose list it is, with what that row came from.
            nested: What models and dicts inside a row become: ``"dict"``, or ``"columns"``, one a field with
                dotted names such as ``address.city``, or ``"object"``: they stay what they are.
            explode: Columns of lists that get a row an item, side by side; the index repeats. A column with
                several levels is named by its label or with dots: ``("a", "b")`` or ``"a.b"``.
            samples: Of a step with samples, add columns for each field: ``label_agreement`` (share of the
                answers that are the one in the row) and ``label_0`` and so on, what each sample has.

        Raises:
            DefinitionError: ``nested`` or a column of ``explode`` is unknown, or ``source`` is asked of a
                step that is not mapped.
            UnknownStepError: The step has neither a value nor items, or its source has none.
        """
        from tagent_nb.results.frames import output_frame

        return output_frame(self, step, source=source, nested=nested, explode=explode, samples=samples)

    def samples_frame(self, step: str, *, nested: str = "dict") -> pd.DataFrame:
        """One row a sample of a step that has several, with ``sample`` as the last level of the index.

        Args:
            step: Name of the step.
            nested: As in :meth:`output_frame`.

        Raises:
            DefinitionError: The step has no samples, or ``nested`` is unknown.
            UnknownStepError: There is no such step, or it has not run.
        """
        from tagent_nb.results.frames import samples_frame

        return samples_frame(self, step, nested=nested)

    def usage_frame(self) -> pd.DataFrame:
        """Tokens, calls, USD and USD saved by step, with a ``total`` row."""
        from tagent_nb.results.frames import usage_frame

        return usage_frame(self)

    def events_frame(self) -> pd.DataFrame:
        """One row an event: ``at`` (UTC), ``event``, ``step``, ``item``, ``attempt``, ``detail``."""
        from tagent_nb.results.frames import events_frame

        return events_frame(self)

    def to_csv(self, path: str | Path, step: str | None = None) -> None:
        """Write :meth:`to_frame`, or with ``step`` that step's :meth:`output_frame`, as CSV."""
        self._write(path, step, ".csv")

    def to_parquet(self, path: str | Path, step: str | None = None) -> None:
        """Write :meth:`to_frame`, or with ``step`` that step's :meth:`output_frame`, as Parquet."""
        self._write(path, step, ".parquet")

    def to_file(self, path: str | Path, step: str | None = None, **options: Any) -> None:
        """Write :meth:`to_frame`, or with ``step`` that step's :meth:`output_frame`, to a file.

        Cells that such a file cannot hold, such as lists, become JSON. In Excel a text is a text, also one
        that begins like a formula.

        Args:
            path: The file. Its name says its kind: .csv, .parquet, .xlsx (needs openpyxl), .arrow, .feather.
            step: Name of the step.
            options: Those of :meth:`output_frame`.

        Raises:
            DefinitionError: There is no such kind of file, or it cannot hold the frame.
            UnknownStepError: The step has neither a value nor items.
            OSError: The file cannot be written.
        """
        self._write(path, step, "", **options)

    def _write(self, path: str | Path, step: str | None, kind: str, **options: Any) -> None:
        from tagent_nb.results.files import write_frame

        if step is None and options:
            raise DefinitionError(f"{', '.join(options)}: of which step? Write to_file(path, step, ...).")
        write_frame(self.to_frame() if step is None else self.output_frame(step, **options), path, kind)

    # -- looking closer (see compare.py, evaluate.py, timeline.py) ----------------------------

    def compare(self, other: PipelineResult, names: Sequence[str] = ()) -> Comparison:
        """What differs from another result, of this pipeline or of another one, step by step and row by row.

        Steps are those that both have; items of mapped steps stand side by side by their keys.

        Args:
            other: The other result.
            names: What to call the two; without them, by their pipelines, or by their runs.
        """
        from tagent_nb.results.compare import compare

        return compare(self, other, names)

    def evaluate(self, answer: str, truth: str) -> Evaluation:
        """How good answers are, where the truth is known: accuracy, and precision, recall and F1 by class.

        Each has a 95 % interval, by a bootstrap over the rows.

        Args:
            answer: Step and field of the answers, such as ``"classify.label"``; a step alone is its value.
            truth: Step or input, and field, of what is true, such as ``"load.label"``. Rows without one are
                left out; a row without an answer is a wrong one.

        Raises:
            DefinitionError: The two have not equally many rows, or no row has a truth.
            UnknownStepError: There is no such step or field.
        """
        from tagent_nb.results.evaluate import evaluate

        return evaluate(self, answer, truth)

    def timeline(self) -> Timeline:
        """When each step worked, and which of them held the run up: a Gantt chart, also as a frame.

        In a resumed run the times are those of the sessions in which the steps ended.
        """
        from tagent_nb.results.timeline import timeline

        return timeline(self)

    # -- storing ----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data (events left out).

        Raises:
            EncodeError: A value cannot be stored; the message has the path to it.
        """
        from tagent_nb.results.json import result_to_dict

        return result_to_dict(self)

    def to_json(self, path: str | Path | None = None, *, indent: int | None = 2) -> str:
        """:meth:`to_dict` as JSON text, also written to ``path`` if one is given."""
        from tagent_nb.results.json import result_to_json

        return result_to_json(self, path, indent=indent)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, schemas: Iterable[type[BaseModel]] = ()) -> PipelineResult:
        """Rebuild a result from :meth:`to_dict`; values of models that ``schemas`` lacks come back as dicts.

        Raises:
            CorruptRecordError: The data is not that of a result.
            FormatVersionError: It was written by a newer version of tagent-nb.
        """
        from tagent_nb.results.json import result_fields

        return cls(**result_fields(data, schemas))

    @classmethod
    def from_json(cls, text: str, *, schemas: Iterable[type[BaseModel]] = ()) -> PipelineResult:
        """Rebuild a result; values of models that ``schemas`` lacks come back as dicts."""
        from tagent_nb.serde import parse

        return cls.from_dict(parse(text.encode("utf-8", "surrogatepass")), schemas=schemas)

    def to_pickle(self) -> bytes:
        """The result as a pickle. See :meth:`from_pickle`."""
        from tagent_nb.serde import to_pickle

        return to_pickle(self)

    @classmethod
    def from_pickle(cls, blob: bytes) -> PipelineResult:
        """Rebuild from :meth:`to_pickle`. A pickle can run code: load only what you wrote yourself."""
        from tagent_nb.serde import from_pickle

        return from_pickle(blob, cls)

    def _repr_html_(self) -> str:
        from tagent_nb.results.html import result_html

        return result_html(self)
