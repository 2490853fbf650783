"""What is recorded of a run: its steps, their items and values, and in words how they ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tagent_nb.errors import NotStoredError, did_you_mean
from tagent_nb.events import NO_USAGE, Event, Output, TokenUsage, no_entries
from tagent_nb.formatting import count, is_lost, short_text
from tagent_nb.pipeline import StepStatus

if TYPE_CHECKING:
    from tagent_nb.pipeline import Share


V = TypeVar("V")


class OutputMap(Mapping[str, Any]):
    """Step name to value. A stored value is decoded when it is first read.

    To read one that could not be stored raises :class:`NotStoredError`, except in the process that made it.
    """

    def __init__(self, outputs: Mapping[str, Output]) -> None:
        self._outputs = outputs

    def __getitem__(self, name: str) -> Any:
        output = self._outputs[name]
        if is_lost(output):
            raise NotStoredError(
                f"The value of step {name!r} was not stored, so only the process that ran it had it "
                f"({output.problem}). Run the step again: force=[{name!r}], or %tagent_run --force {name}."
            )
        return output.value

    def __contains__(self, name: object) -> bool:
        return name in self._outputs

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        shown = {
            name: f"(not stored: {output.problem})" if is_lost(output) else repr(output.value)
            for name, output in self._outputs.items()
        }
        return "{" + ", ".join(f"{name!r}: {text}" for name, text in shown.items()) + "}"


class LazyMap(Mapping[str, V]):
    """A mapping that is made when it is first read. It is copied and pickled as a dict.

    Args:
        make: Makes it.
    """

    def __init__(self, make: Callable[[], Mapping[str, V]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> Mapping[str, V]:
        return self._make()

    def __getitem__(self, name: str) -> V:
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def _fill(record: Any, state: tuple[None, dict[str, Any]]) -> None:
    """Set what a pickled record has; what its version did not know yet has its default."""
    values = state[1]
    for field_ in fields(record):
        default = field_.default if field_.default_factory is MISSING else field_.default_factory()
        setattr(record, field_.name, values.get(field_.name, default))


@dataclass(slots=True)
class ItemResult:
    """One item of a mapped step: its key, its label in the source's index, and how it ended.

    ``reason`` says why it was skipped. ``rows_in_call`` is how many items shared the call of a model that its
    value came from (0 in steps where none do), and ``asked_alone`` why it was asked for by itself after that.
    ``batch`` is the id of the batch that its answer came in.
    """

    key: str
    index: Any
    status: StepStatus = StepStatus.PENDING
    output: Output | None = None
    error_type: str = ""
    error: str = ""
    attempts: int = 0
    seconds: float = 0.0
    usage: TokenUsage = NO_USAGE
    cost: float | None = 0.0
    reason: str = ""
    rows_in_call: int = 0
    asked_alone: str = ""
    batch: str = ""

    def __setstate__(self, state: Any) -> None:
        _fill(self, state)


@dataclass(slots=True)
class StepResult:
    """How one step ended, and what it took.

    Attributes:
        status: Its last status.
        attempts: Attempts made in this run, those of its items together for a mapped step.
        seconds: Wall time of the step in seconds, retries included.
        usage: Tokens and calls, failed attempts included.
        cost: USD; ``None`` when a price is unknown.
        saved_cost: USD that the cache saved; ``None`` when unknown.
        reason: Why it was skipped, or why it ran again.
        waits_for: What it waits for now, such as a rate limit; empty while it works.
        items: The items of a mapped step by key, in the source's order.
    """

    name: str
    status: StepStatus = StepStatus.PENDING
    output: Output | None = None
    attempts: int = 0
    seconds: float = 0.0
    usage: TokenUsage = NO_USAGE
    cost: float | None = 0.0
    saved_cost: float | None = 0.0
    error_type: str = ""
    error: str = ""
    traceback: str = ""
    reason: str = ""
    waits_for: str = ""
    key: str = ""
    components: Mapping[str, str] = field(default_factory=no_entries)
    metadata: Mapping[str, Any] = field(default_factory=no_entries)
    started_at: float | None = None
    ended_at: float | None = None
    items: dict[str, ItemResult] | None = None
    items_total: int | None = None

    def __setstate__(self, state: Any) -> None:
        _fill(self, state)

    @property
    def value(self) -> Any:
        """The step's value; ``None`` when it has none."""
        return self.output.value if self.output is not None else None

    @property
    def rows(self) -> dict[str, ItemResult] | None:
        """Items whose values are the step's value: those of a step with ``reduce_over`` only lead to it."""
        return None if self.output is not None and "levels" in self.metadata else self.items


class RunRecord(Protocol):
    """What frames, HTML, JSON and texts read of a :class:`~tagent_nb.PipelineResult`, which makes them."""

    pipeline_name: str
    success: bool
    execution_time: float
    total_cost: float
    cost_per_step: dict[str, float | None]
    token_usage: dict[str, TokenUsage]
    step_outputs: Mapping[str, Any]
    step_metadata: Mapping[str, dict[str, Any]]
    final_output: Any
    failed_steps: list[str]
    error_details: dict[str, str]
    run_id: str
    cancelled: bool
    timed_out: bool
    unpriced_steps: list[str]
    steps: dict[str, StepResult]
    events: list[Event]
    warnings: list[str]
    final_step: str
    inputs: Mapping[str, Any]
    sources: Mapping[str, str]
    samples: Mapping[str, int]
    flattened: Sequence[str]
    dependencies: Mapping[str, Sequence[str]]
    definitions: Mapping[str, Mapping[str, str]]

    @property
    def waiting_steps(self) -> list[str]: ...

    def budget_shares(self) -> Sequence[Share]: ...


# -- in words ----------------------------------------------------------------------------------


def steps_of(result: RunRecord) -> dict[str, StepResult]:
    """The steps of a result; made of its other fields where it was put together by hand."""
    if result.steps:
        return result.steps
    from tagent_nb.serde import StoredValue

    steps = {}
    for name in dict.fromkeys([*result.step_outputs, *result.failed_steps, *result.cost_per_step]):
        step = steps[name] = StepResult(name)
        if name in result.step_outputs:
            step.status = StepStatus.COMPLETED
            step.output = StoredValue.of(result.step_outputs[name])
        elif name in result.failed_steps:
            step.status = StepStatus.FAILED
        step.error = result.error_details.get(name, "")
        step.usage = result.token_usage.get(name, TokenUsage())
        step.cost = result.cost_per_step.get(name, 0.0)
        step.metadata = result.step_metadata.get(name, {})
    return steps


def error_line(step: StepResult) -> str:
    """Type and message of what went wrong, on one line; the reason of a skipped step."""
    if step.status is StepStatus.SKIPPED:
        return step.reason
    if not step.error and not step.error_type:
        return ""
    return short_text(f"{step.error_type}: {step.error}" if step.error_type else step.error, 300)


def ending(step: StepResult) -> str:
    """How a step ended without a value, in words; empty for one with a value, or that did not run."""
    if step.status is StepStatus.FAILED:
        what = step.error_type + (f": {short_text(step.error, 120)}" if step.error else "")
        return failed_items(step) or f"it failed ({what})"
    if step.status is StepStatus.CANCELLED:
        return "it was stopped"
    if step.status is StepStatus.SKIPPED:
        return f"it was skipped ({step.reason})"
    return ""


def outcome(result: RunRecord) -> tuple[StepStatus, str]:
    """How a run ended: the status that it looks like, and a word."""
    if result.cancelled:
        return StepStatus.CANCELLED, "cancelled"
    if result.timed_out:
        return StepStatus.FAILED, "timed out"
    if result.success:
        return StepStatus.COMPLETED, "success"
    if result.failed_steps:
        return StepStatus.FAILED, "failed"
    if result.waiting_steps:
        return StepStatus.WAITING, f"waiting for {waiting_kinds(result)}"
    return StepStatus.PENDING, "not finished"


def failure(result: RunRecord) -> str:
    """What kept a run from success, a line a step."""
    failed = [result.steps[name] for name in result.failed_steps]
    lines = [
        f"  {step.name}: {step.error_type}: {short_text(step.error, 300)}".rstrip(" :") for step in failed
    ]
    for what, names in _waiting(result).items():
        lines.append(f"  {', '.join(names)}: waits for {'an approval' if what == APPROVAL else 'its batch'}")
    stopped = "was stopped by its timeout" if result.timed_out else "was stopped" if result.cancelled else ""
    head = stopped or ("failed" if result.failed_steps else "is not complete")
    return "\n".join([f"Run {result.run_id} of pipeline {result.pipeline_name!r} {head}.", *lines])


APPROVAL, BATCH = "approval", "batches"
"""What steps wait for in a run that has ended."""


def _waiting(result: RunRecord) -> dict[str, list[str]]:
    """The steps that wait, by what they wait for."""
    waiting: dict[str, list[str]] = {}
    for name in result.waiting_steps:
        reason = result.steps[name].waits_for
        kind = BATCH if "batch" in reason and not reason.startswith(APPROVAL) else APPROVAL
        waiting.setdefault(kind, []).append(name)
    return waiting


def waiting_kinds(result: RunRecord) -> str:
    """What a run waits for that has ended: approval, batches, or both."""
    return " and ".join(_waiting(result))


def waiting_words(result: RunRecord) -> str:
    """The same, with the steps: ``approval of draft and batches of classify``."""
    return " and ".join(f"{what} of {', '.join(names)}" for what, names in _waiting(result).items())


def failed_items(step: StepResult) -> str:
    """How many items of a mapped step have failed, in words; empty if none has."""
    items = list((step.items or {}).values())
    bad = sum(item.status is StepStatus.FAILED for item in items)
    return f"{bad} of {count(len(items), 'item')} failed" if bad else ""


def skipped_items(step: StepResult) -> int:
    """How many items of a mapped step its condition has left out."""
    items = list((step.items or {}).values())  # at once: the run goes on in another thread
    return sum(item.status is StepStatus.SKIPPED for item in items)


def no_value(steps: Mapping[str, StepResult], name: str, run: str) -> str:
    """The message for a value that is not there.

    Args:
        steps: The steps of the run, by name.
        name: What was asked for.
        run: What the run is called.
    """
    step = steps.get(name)
    if step is None:
        names = ", ".join(steps) or "none"
        return f"Run {run!r} has no step {name!r}.{did_you_mean(name, steps)} Steps: {names}."
    why = ending(step)
    if not why:
        why = "it has not run" if step.status is StepStatus.PENDING else f"it is {step.status.value}"
    more = ""
    if step.items:
        more = f" result.output_frame({name!r}) has its items."
    elif step.traceback:
        more = f" result.error_details[{name!r}] has its traceback."
    return f"Step {name!r} of run {run!r} has no value: {why}.{more}"
