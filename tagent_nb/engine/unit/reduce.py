"""Steps with ``reduce_over``: one answer of many rows, or one a group, by way of answers to parts of them."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.approval.gate import Approvals
from tagent_nb.engine.background import in_thread, is_cancelled
from tagent_nb.engine.memory.store import known_facts
from tagent_nb.engine.unit.attempt import encoded, unprepared
from tagent_nb.engine.unit.chunks import LEAST_FILL, chunked
from tagent_nb.engine.unit.failures import FailureLimit, least_good, too_few
from tagent_nb.engine.unit.map import MapExecution, source_rows, whole
from tagent_nb.engine.unit.prepared import PreparedStep, StepOutputs
from tagent_nb.engine.unit.work import ItemUnits, Preparation, WorkItem, read_heavy
from tagent_nb.errors import BudgetExceededError, StepError, TemplateError
from tagent_nb.events import StepCached, StepFailed, StepFinished, StepSkipped, StepStarted
from tagent_nb.formatting import count
from tagent_nb.pipeline import PipelineStep, StepStatus, answers_step, measured_goal, rows_step
from tagent_nb.results import (
    ItemResult,
    Row,
    grouped_frame,
    is_frame,
    is_missing,
    label_keys,
    plain,
    rows_in,
)
from tagent_nb.templating import Reference, group_column, lookup, render

if TYPE_CHECKING:
    from tagent_nb.engine.context import RunContext
    from tagent_nb.engine.memory.memory import PipelineMemory
    from tagent_nb.engine.recorder import Recorder
    from tagent_nb.pipeline import Change

DEFAULT_WINDOW = 8_000
"""Tokens that a model is taken to read at once, its answer included, where nothing says how many it does."""

MOST_TOKENS = 1.8
"""Most tokens that a model counts where the rule of thumb, four bytes a token, counts one."""

BYTES_A_TOKEN = 4
"""Bytes of text that count as one token."""

MOST_ROOM = 100_000
"""Most tokens of rows in one call, however much the model reads: of more, goals cannot print every value."""

LEAST_ROOM = 50
"""Tokens of rows for which it is worth asking."""

AT_ONCE = 500
"""Rows up to which a part is cut beside the run's loop, and not in a thread."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one call reads.

    Attributes:
        key: That of its item: ``0.3`` is the fourth chunk of rows, ``1.0`` the first of answers to chunks;
            those of a group have its label before them: ``good/0.3``.
        rows: The rows, or answers to parts of them.
        names: What these are called: keys of rows, or of parts.
        is_final: Whether its answer is one of the step.
        is_answers: Whether it reads answers.
    """

    key: str
    rows: Sequence[Any]
    names: Sequence[str]
    is_final: bool
    is_answers: bool

    @property
    def text(self) -> str:
        """In words, for messages."""
        of = "answer" if self.is_answers else "row"
        if len(self.names) == 1:
            return f"{self.key!r}, of {of} {self.names[0]}"
        return f"{self.key!r}, of {len(self.names):,} {of}s, {self.names[0]} to {self.names[-1]}"


class Reduction:
    """The calls of a step with ``reduce_over``, a level after the other. A run and a plan ask it alike.

    Args:
        context: Of the run.
        preparation: Works out units.
        prepared: The step.
        outputs: What it may read, by name.
        memory: Of the run.

    Attributes:
        labels: The values of ``group_by``, in the order in which they first appear; one ``None`` without it.
        left_out: In words, the rows that are not read.
        answers: By group, what there is of its answer so far.

    Raises:
        StepError: There are no rows to reduce, or no groups of them.
        TemplateError: The value lacks what ``reduce_over`` or ``group_by`` names.
    """

    def __init__(
        self,
        context: RunContext,
        preparation: Preparation,
        prepared: PreparedStep,
        outputs: StepOutputs,
        memory: PipelineMemory,
    ) -> None:
        self._context = context
        self._preparation = preparation
        self._prepared = prepared
        self._step = prepared.step
        self._outputs = outputs
        # Known once for all levels: else the keys of combinations would depend on when others learn.
        self._facts = known_facts(memory, prepared.step)
        self._variants: dict[tuple[bool, bool], PreparedStep] = {}
        self._units: dict[tuple[bool, bool], ItemUnits] = {}
        self._cut: list[list[Part | tuple[str, Any]]] = []
        self._level = 0
        self._around: dict[bool, tuple[int, int, int]] = {}
        self.left_out: list[str] = []
        rows = source_rows(self._step, outputs[prepared.source.step], prepared.source).rows
        self.labels, self.answers = self._grouped(_named(rows, prepared.source, memory))
        self._prefixes = (
            [""] if self._step.group_by is None else [f"{key}/" for key in label_keys(self.labels)]
        )

    # -- the rows ---------------------------------------------------------------------------

    def _grouped(self, rows: list[tuple[str, Any]]) -> tuple[list[Any], list[list[tuple[str, Any]]]]:
        """Groups of rows with a value: their labels, and their rows, each with its name."""
        name, source = self._step.name, self._prepared.source
        kept = [place for place, (_, row) in enumerate(rows) if row is not None]
        if len(kept) < len(rows):
            self.left_out.append(
                f"Step {name!r}: {len(rows) - len(kept):,} of {count(len(rows), 'row')} of {source.text!r} "
                "have no value (they failed, or were skipped) and are left out."
            )
        if self._step.group_by is None:
            return [None], [[rows[place] for place in kept]] if kept else []
        labels = self._labels(self._step.group_by, rows, kept)
        groups: dict[Any, list[tuple[str, Any]]] = {}
        for place, label in zip(kept, labels, strict=True):
            if is_missing(label):
                continue
            try:
                groups.setdefault(label, []).append(rows[place])
            except TypeError:
                raise StepError(
                    f"Step {name!r} cannot group by {self._step.group_by!r}: in row {rows[place][0]} it is a "
                    f"{type(label).__name__}, which names no group. Name a field with single values."
                ) from None
        missing = sum(map(is_missing, labels))
        if missing:
            self.left_out.append(
                f"Step {name!r}: {missing:,} of {count(len(rows), 'row')} of {source.text!r} have no "
                f"{self._step.group_by!r}, are in no group, and are left out."
            )
        return list(groups), list(groups.values())

    def _labels(self, group_by: str, rows: list[tuple[str, Any]], kept: list[int]) -> list[Any]:
        """What each of the rows at these places is grouped by."""
        source = self._prepared.source
        column = group_column(group_by, source)
        if isinstance(column, Reference):
            output = self._outputs[column.step]
            cells = _column(None if output is None else output.value, column)
            if not isinstance(cells, list) or len(cells) != len(rows):
                has = f"{len(cells):,} cells" if isinstance(cells, list) else f"a {type(cells).__name__}"
                raise StepError(
                    f"Step {self._step.name!r} cannot group by {group_by!r}: it has {has}, and "
                    f"{source.text!r} has {count(len(rows), 'row')}. Name a column of as many rows, or a "
                    "field of the rows themselves."
                )
            return [plain(cells[place]) for place in kept]
        labels = []
        for place in kept:
            name, row = rows[place]
            try:
                labels.append(plain(lookup(row, column, name=f"row {name}")))
            except TemplateError as error:
                raise StepError(f"Step {self._step.name!r} cannot group by {group_by!r}: {error}") from None
        return labels

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to answer about: the step is skipped. No groups are an empty frame."""
        return not self.answers and self._step.group_by is None

    @property
    def why_empty(self) -> str:
        """Why the step is skipped."""
        return f"{self._prepared.source.text} has no rows"

    # -- the levels -------------------------------------------------------------------------

    async def parts(self) -> list[Part]:
        """The calls of the next level; none where each group has its answer.

        Raises:
            StepError: A row, or two answers, do not fit into a call.
            TemplateError: The goal reads something of the rows that is not there.
        """
        if self.is_empty:
            return []
        if sum(map(len, self.answers)) > AT_ONCE:
            return await in_thread(self._parts)
        return self._parts()

    def _parts(self) -> list[Part]:
        is_answers = self._level > 0
        self._cut = []
        for prefix, values in zip(self._prefixes, self.answers, strict=True):
            if is_answers and len(values) <= 1:
                self._cut.append([*values])
                continue
            chunks = self._chunks(values, is_answers)
            if is_answers and len(chunks) == len(values):
                raise StepError(
                    f"Step {self._step.name!r}: its answers to parts of the rows are so long that no two of "
                    f"them fit into one call ({self._about_room(is_answers)}). Let the goal or max_tokens "
                    "(--setting max_tokens=) keep them short, choose a model that reads more, or set "
                    "reduce_tokens (--reduce-tokens)."
                )
            cut: list[Part | tuple[str, Any]] = []
            for number, places in enumerate(chunks):
                if is_answers and len(places) == 1:
                    cut.append(values[places[0]])  # nothing to combine
                    continue
                names, rows = zip(*(values[place] for place in places), strict=True)
                final = len(chunks) == 1
                cut.append(Part(f"{prefix}{self._level}.{number}", list(rows), names, final, is_answers))
            self._cut.append(cut)
        return [part for cut in self._cut for part in cut if isinstance(part, Part)]

    def take(self, answers: Mapping[str, Any]) -> None:
        """Go on to the next level with the answers to parts, by key; parts without one are left out."""
        self._level += 1
        self.answers = [
            [
                (part.key, answers[part.key]) if isinstance(part, Part) else part
                for part in cut
                if not isinstance(part, Part) or part.key in answers
            ]
            for cut in self._cut
        ]

    def later(self, least: float, most: float) -> tuple[tuple[int, int], tuple[float, float]]:
        """The calls that follow those of :meth:`parts`, and tokens of their prompts; each from and to.

        Args:
            least: Tokens of an answer, at least.
            most: The same, at most.
        """
        sizes = [len(cut) for cut in self._cut if len(cut) > 1]
        if not sizes:
            return (0, 0), (0.0, 0.0)
        room, around = self._room(True), self._sizes_around(True)[1]
        most_in_call = max(2, int(room / max(1.0, least)))
        least_in_call = max(2, int(room * LEAST_FILL / max(1.0, most)))
        low = high = 0
        read_low = read_high = 0.0
        for size in sizes:
            # A call makes one answer of at most so many.
            low += math.ceil((size - 1) / (most_in_call - 1))
            read_low += size * least
            while size > 1:
                read_high += size * most
                size = math.ceil(size / least_in_call)
                high += size
        return (low, high), (read_low + low * around, read_high + high * around)

    @property
    def value(self) -> Any:
        """The value of the step, when no parts are left."""
        values = [group[0][1] if group else None for group in self.answers]
        if self._step.group_by is None:
            return values[0]
        column = group_column(self._step.group_by, self._prepared.source)
        path = column.path if isinstance(column, Reference) else column
        return grouped_frame(values, self.labels, path[-1])

    # -- units ------------------------------------------------------------------------------

    async def units(self, part: Part) -> tuple[PreparedStep, ItemUnits]:
        """What makes the unit of a part, and those of all parts that are asked as it is."""
        kind = (part.is_answers, part.is_final and self._step.approve)
        variant = self._variant(*kind)
        if kind not in self._units:
            self._units[kind] = await self._preparation.item_units(variant, self._outputs)
        return variant, self._units[kind]

    async def work_item(self, part: Part) -> WorkItem:
        """The unit of a part."""
        _, units = await self.units(part)
        return await units.unit(part.key, part.rows)

    def _variant(self, is_answers: bool, final: bool = False) -> PreparedStep:
        kind = (is_answers, final)
        if kind not in self._variants:
            step = (answers_step if is_answers else rows_step)(self._step, final=final)
            self._variants[kind] = PreparedStep(self._context, step, self._prepared.above)
            self._variants[kind].facts = self._facts
            self._variants[kind].trusts_records = not is_answers
        return self._variants[kind]

    # -- how much fits ----------------------------------------------------------------------

    def _chunks(self, values: Sequence[tuple[str, Any]], is_answers: bool) -> list[range]:
        most = self._room(is_answers) * BYTES_A_TOKEN
        sizes, marks = self._measured(values, is_answers)
        if not is_answers and max(sizes) > most:
            place = sizes.index(max(sizes))
            raise StepError(
                f"Step {self._step.name!r}: row {values[place][0]} has about "
                f"{sizes[place] // BYTES_A_TOKEN:,} tokens, which do not fit into one call "
                f"({self._about_room(is_answers)}). Shorten it in a Python step, let the goal print less of "
                "it, choose a model that reads more, or set reduce_tokens (--reduce-tokens)."
            )
        return chunked(sizes, marks, most)

    def _measured(self, values: Sequence[tuple[str, Any]], is_answers: bool) -> tuple[list[int], list[bytes]]:
        """Bytes that each row takes in the prompt, and a digest of how it looks there."""
        variant = self._variant(is_answers)
        goal, source = measured_goal(variant.step), variant.source.step
        inputs = {} if goal is not variant.step.goal else self._values_beside(variant)
        facts, memories = self._facts

        def text(rows: list[Any]) -> bytes:
            return render(
                goal,
                {**inputs, source: rows},
                step=self._step.name,
                shared=self._context.pipeline.shared_context,
                facts=facts,
                memories=memories,
            ).encode("utf-8", "replace")

        try:
            none = len(text([]))
        except TemplateError:  # it reads a row by its number, say
            none = 0
        texts = [text([value]) for _, value in values]
        # Between two rows there are a comma and a space.
        sizes = [max(1, len(line) - none + 2) for line in texts]
        return sizes, [hashlib.sha256(line).digest() for line in texts]

    def _values_beside(self, variant: PreparedStep) -> dict[str, Any]:
        """What a unit reads besides its rows."""
        names = variant.read_names - {variant.source.step}
        return {
            name: None if output is None else output.value
            for name, output in self._outputs.items()
            if name in names
        }

    def _room(self, is_answers: bool) -> int:
        """Tokens of rows that fit into a call.

        Raises:
            StepError: There is no room for any.
        """
        step = self._step
        if step.reduce_tokens is not None:
            return step.reduce_tokens
        window, around, answer = self._sizes_around(is_answers)
        room = min(MOST_ROOM, int((window - answer) / MOST_TOKENS) - around)
        if room < LEAST_ROOM:
            raise StepError(
                f"Step {step.name!r}: there is no room for rows in a call ({self._about_room(is_answers)}). "
                "Let the goal refer to less besides them, or choose a model that reads more."
            )
        return room

    def _sizes_around(self, is_answers: bool) -> tuple[int, int, int]:
        """Tokens that the model reads at once, those of the prompt without rows, and those of an answer."""
        if is_answers not in self._around:
            self._around[is_answers] = self._sizes_of(self._variant(is_answers))
        return self._around[is_answers]

    def _sizes_of(self, variant: PreparedStep) -> tuple[int, int, int]:
        from tagent_nb.runners import (
            StepContext,
            answer_range,
            frame_tokens,
            least_window,
            prompt,
            tokens_of,
        )

        facts, memories = self._facts
        step_context = StepContext(
            "",
            "",
            self._step.name,
            inputs={**self._values_beside(variant), variant.source.step: []},
            shared=self._context.pipeline.shared_context,
            constraints=variant.constraints,
            instructions=variant.instructions,
            facts=facts,
            memories=memories,
        )
        try:
            task = prompt(variant.step, step_context)
        except TemplateError:  # as above
            task = variant.step.goal
        around = tokens_of(task) + frame_tokens(variant.step, step_context)
        return least_window(variant.model) or DEFAULT_WINDOW, around, answer_range(variant.step)[1]

    def _about_room(self, is_answers: bool) -> str:
        if self._step.reduce_tokens is not None:
            return f"reduce_tokens is {self._step.reduce_tokens:,}"
        window, around, answer = self._sizes_around(is_answers)
        return (
            f"the model reads {window:,} tokens at once, about {around:,} are the prompt without rows, and "
            f"an answer may take {answer:,}"
        )


class ReduceExecution:
    """Runs the steps with ``reduce_over`` of one run.

    Args:
        context: Of the run.
        recorder: Of the run.
        preparation: Says what a part is about.
        approvals: Of the run.
        mapping: Runs parts as it runs the items of mapped steps.
    """

    def __init__(
        self,
        context: RunContext,
        recorder: Recorder,
        preparation: Preparation,
        approvals: Approvals,
        mapping: MapExecution,
    ) -> None:
        self._context = context
        self._recorder = recorder
        self._preparation = preparation
        self._approvals = approvals
        self._mapping = mapping

    async def run(self, prepared: PreparedStep, outputs: StepOutputs) -> Change:
        """Run the parts of the rows, then what combines their answers, until one is left for each group."""
        notes: dict[str, Any] = {"item_keys": [], "item_index": [], "levels": []}
        began = time.monotonic()
        try:
            outcome = await self._reduced(prepared, outputs, notes, began)
        except _Broken as broken:
            failure = unprepared(self._recorder, prepared.step, broken.error)
            outcome = replace(failure, seconds=time.monotonic() - began, metadata=notes)
        return await self._recorder.record(outcome)

    async def _reduced(
        self, prepared: PreparedStep, outputs: StepOutputs, notes: dict[str, Any], began: float
    ) -> StepFinished | StepCached | StepFailed | StepSkipped:
        from tagent_nb.runners import model_name

        recorder, step = self._recorder, prepared.step
        with _reading():
            work = await whole(self._preparation, prepared, outputs)
            await read_heavy(outputs.values())
            reduction = Reduction(self._context, self._preparation, prepared, outputs, recorder.memory)
            parts = await reduction.parts()
        for warning in reduction.left_out:
            recorder.warn(warning, step.name)
        if reduction.is_empty:
            return StepSkipped(run_id=self._context.run_id, step=step.name, reason=reduction.why_empty)
        why = await self._preparation.why_it_runs(work)
        notes["model"] = model_name(prepared.model)
        while parts:
            notes["item_keys"] += [part.key for part in parts]
            notes["item_index"] += [part.key for part in parts]
            notes["levels"].append(len(parts))
            total = len(notes["item_keys"])
            recorder.publish(StepStarted(run_id=self._context.run_id, step=step.name, items=total, why=why))
            await self._run_parts(reduction, step, parts)
            items = self._items(step)
            failure = self._failure(step, parts, items)
            if failure is not None:
                return replace(failure, seconds=time.monotonic() - began, metadata=notes)
            with _reading():
                answers = {part.key: items[part.key].output for part in parts}
                await read_heavy(answers.values())
                reduction.take({key: output.value for key, output in answers.items() if output is not None})
                parts = await reduction.parts()
        with _reading():
            output = await in_thread(encoded, self._context, reduction.value)
        common: dict[str, Any] = {
            "run_id": self._context.run_id,
            "step": step.name,
            "output": output,
            "key": work.key,
            "components": work.components,
            "metadata": notes,
        }
        items = self._items(step)
        statuses = {items[key].status for key in notes["item_keys"]}
        if statuses == {StepStatus.CACHED}:
            return StepCached(**common)
        return StepFinished(seconds=time.monotonic() - began, **common)

    async def _run_parts(self, reduction: Reduction, step: PipelineStep, parts: list[Part]) -> None:
        left = 0
        for final in (False, True):
            chosen = [part for part in parts if part.is_final is final]
            if chosen:
                variant, units = await reduction.units(chosen[0])
                rows = [(part.key, part.key, part.rows) for part in chosen]
                left += await self._mapping.run_items(variant, units, rows, FailureLimit(step))
        # From here on the next level acts on what they gave.
        await self._recorder.settled()
        if left:
            self._approvals.leave(step.name, left)

    def _items(self, step: PipelineStep) -> Mapping[str, ItemResult]:
        return self._recorder.memory.steps[step.name].items or {}

    def _failure(
        self, step: PipelineStep, parts: list[Part], items: Mapping[str, ItemResult]
    ) -> StepFailed | None:
        """Why the step cannot go on after these parts; ``None`` if it can."""
        mine = {part.key: items[part.key] for part in parts}
        good = sum(item.status.has_value for item in mine.values())
        over_budget = next(
            (item for item in mine.values() if item.error_type == BudgetExceededError.__name__), None
        )
        failed = [part for part in parts if not mine[part.key].status.has_value]
        if not failed:
            return None
        least = least_good(step.min_success, len(parts)) or 1
        kind = StepError.__name__
        first, item = failed[0], mine[failed[0].key]
        if over_budget is not None:
            kind = over_budget.error_type
            message = f"{good} of {len(parts)} parts are done. {over_budget.error}"
        elif first.is_answers:
            message = (
                f"Answers to parts of the rows could not be combined. The first is part {first.text}: "
                f"{item.error_type}: {item.error}"
            )
        elif good < least:
            message = (
                f"{too_few(good, len(parts), least, step.min_success, 'parts of the rows')} "
                f"The first failure is part {first.text}: {item.error_type}: {item.error}"
            )
        else:
            rows = sum(len(part.names) for part in failed)
            self._recorder.warn(
                f"Step {step.name!r}: {len(failed)} of {len(parts)} parts of the rows failed, and the "
                f"{count(rows, 'row')} in them are left out. The first is part {first.text}: "
                f"{item.error_type}: {item.error}",
                step.name,
            )
            return None
        return StepFailed(run_id=self._context.run_id, step=step.name, error_type=kind, message=message)


class _Broken(Exception):  # noqa: N818
    """The user's objects raised something outside of an attempt."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def _reading() -> Iterator[None]:
    """While values of the user are read: what they raise is a failure of the step, and not of the run."""
    try:
        yield
    except BaseException as error:  # the user's objects may raise anything
        if is_cancelled():
            raise
        raise _Broken(error) from error


def _column(value: Any, column: Reference) -> Any:
    """The cells of a column of a frame, or of a field of the items of a list."""
    rows = None if is_frame(value) else rows_in(value)
    if rows is None:
        return lookup(value, column.path, name=column.step)
    return [
        None if row is None else lookup(row, column.path, name=f"{column.step}[{place}]")
        for place, row in enumerate(rows)
    ]


def _named(rows: Sequence[Row], source: Reference, memory: PipelineMemory) -> list[tuple[str, Any]]:
    """Rows, each with what it is called: as the items of the mapped step that gave them, else by its key."""
    above = memory.steps.get(source.step)
    items = list(above.items or ()) if above is not None and not source.path else []
    keys = items if len(items) == len(rows) else [key for key, _, _ in rows]
    return [(key, row) for key, (_, _, row) in zip(keys, rows, strict=True)]
