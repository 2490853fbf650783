"""What happens in a run, as frozen facts.

The executor emits these; memory is a fold over them, storage appends them, widgets and logs
subscribe to them. A producer never knows its observers. Every event names its run; events of a
step name the unit of work: ``step``, ``item`` (the row's key in a mapped step, else ``None``)
and, where it matters, ``attempt`` (counted from 1).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

Components = Mapping[str, str]
"""Fingerprint of a unit of work: component name to digest (``"goal"``, ``"input:load.text"``)."""


class _NoEntries(dict[str, Any]):
    """An empty dict that is shared and so refuses changes; a copy of it is a usual one."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("What an event says cannot be changed. Copy it first: dict(event.metadata).")

    __setitem__ = __ior__ = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[()]]:
        return dict, ()


NO_ENTRIES: Mapping[str, Any] = _NoEntries()
"""What all events without entries have in common: a map of 100,000 rows would keep as many empty dicts."""


def no_entries() -> Mapping[str, Any]:
    return NO_ENTRIES


ROWS_IN_CALL, ASKED_ALONE = "rows_in_call", "asked_alone"
"""Where the metadata of an item has how many items shared its call of a model, and why it was asked for by
itself after that."""


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens and calls that were used.

    Attributes:
        input_tokens: Tokens sent to the model, as far as providers reported them.
        output_tokens: Tokens the model wrote, reasoning included, as far as providers reported them.
        cached_tokens: Part of the input that the provider served from its own cache.
        reasoning_tokens: Part of the output spent on reasoning.
        requests: Calls to the model.
        tool_calls: Calls of tools by the model.
        assumed_input_tokens: Tokens sent for answers whose provider reported none, by the rule of thumb
            that budgets go by. They count against budgets, and are no part of ``input_tokens``.
        assumed_output_tokens: Tokens of these answers, likewise.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    requests: int = 0
    tool_calls: int = 0
    assumed_input_tokens: int = 0
    assumed_output_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output tokens together, as far as providers reported them."""
        return self.input_tokens + self.output_tokens

    @property
    def unmeasured(self) -> bool:
        """Whether there are answers whose tokens no provider reported."""
        return bool(self.assumed_input_tokens or self.assumed_output_tokens)

    @property
    def known_tokens(self) -> int | None:
        """Input and output tokens together; ``None`` when not all of them were reported."""
        return None if self.unmeasured else self.total_tokens

    @property
    def counted(self) -> TokenUsage:
        """What counts against budgets: assumed tokens as if they had been reported."""
        if not self.unmeasured:
            return self
        return replace(
            self,
            input_tokens=self.input_tokens + self.assumed_input_tokens,
            output_tokens=self.output_tokens + self.assumed_output_tokens,
            assumed_input_tokens=0,
            assumed_output_tokens=0,
        )

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.requests + other.requests,
            self.tool_calls + other.tool_calls,
            self.assumed_input_tokens + other.assumed_input_tokens,
            self.assumed_output_tokens + other.assumed_output_tokens,
        )

    def __neg__(self) -> TokenUsage:
        return TokenUsage(**{name: -getattr(self, name) for name in self.__slots__})

    def __bool__(self) -> bool:
        return self is not NO_USAGE and self != NO_USAGE

    def to_dict(self) -> dict[str, int]:
        """The counts by name; assumed ones where there are any."""
        counts = {name: getattr(self, name) for name in self.__slots__}
        return {name: count for name, count in counts.items() if count or name not in _ASSUMED}


_ASSUMED = ("assumed_input_tokens", "assumed_output_tokens")

NO_USAGE = TokenUsage()
"""Nothing was used."""


class Output(Protocol):
    """A step's value, which may still be bytes: decoded when it is read."""

    @property
    def value(self) -> Any: ...

    @property
    def digest(self) -> str: ...

    @property
    def classes(self) -> frozenset[type]: ...

    @property
    def storable(self) -> bool: ...

    @property
    def problem(self) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class Event:
    """Base of all events: the run's id and the time (seconds since the epoch).

    It compares and shows events of all kinds: code made for each of them would be half of the time that their
    import takes.
    """

    run_id: str
    at: float = field(default_factory=time.time)

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        names = self.__dataclass_fields__
        return [getattr(self, name) for name in names] == [getattr(other, name) for name in names]

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self.__dataclass_fields__))

    def __repr__(self) -> str:
        fields = (f"{name}={getattr(self, name)!r}" for name in self.__dataclass_fields__)
        return f"{type(self).__qualname__}({', '.join(fields)})"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class StepEvent(Event):
    """Base of the events of one step, or of one item of a mapped step."""

    step: str
    item: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class RunStarted(Event):
    """A run began; ``definition`` is the pipeline as plain data, kept to explain later changes.

    ``memories`` are those that were saved before it.
    ``budget`` is that of the run, as :meth:`Budget.of` reads it; empty without one.
    ``forced`` steps are answered by neither cache nor record until they have ended; ``use_cache`` and
    ``offline`` are as in :meth:`PipelineExecutor.execute`.
    """

    pipeline: str
    steps: tuple[str, ...]
    definition: Mapping[str, Any] = field(default_factory=no_entries)
    host: str = ""
    pid: int = 0
    memories: Mapping[str, Any] = field(default_factory=no_entries)
    budget: str = ""
    forced: tuple[str, ...] = ()
    use_cache: bool = True
    offline: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class RunResumed(Event):
    """A run that was interrupted or had failed is carried on; ``kept`` steps are not run again.

    ``forced`` are those that are forced from now on; the others are as in :class:`RunStarted`.
    """

    steps: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    definition: Mapping[str, Any] = field(default_factory=no_entries)
    host: str = ""
    pid: int = 0
    budget: str = ""
    forced: tuple[str, ...] = ()
    use_cache: bool = True
    offline: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class InputTaken(Event):
    """The run reads a value that no step makes: ``output``, as it was when the run began, or was carried on
    after it had changed. ``name`` is what steps call it."""

    name: str
    output: Output


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class RunPaused(Event):
    """No new step starts until :class:`RunUnpaused`; running ones go on."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class RunUnpaused(Event):
    """Steps start again."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class RunFinished(Event):
    """The run ended. ``cancelled`` and failed runs can be resumed, and those with steps ``waiting`` for
    an approval. One that ran out of time has failed, and is ``timed_out``."""

    success: bool
    cancelled: bool = False
    seconds: float = 0.0
    waiting: tuple[str, ...] = ()
    timed_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class StepStarted(StepEvent):
    """An attempt began. A mapped step announces itself once, with its number of ``items``."""

    attempt: int = 1
    items: int | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class StepStreamed(StepEvent):
    """A piece of text that a running step wrote (model tokens or printed lines). Never stored."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class StepProgress(StepEvent):
    """Something a running step did, such as a tool call; ``detail`` is plain data."""

    kind: str
    detail: Mapping[str, Any] = field(default_factory=no_entries)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class StepWaiting(StepEvent):
    """A running step waits for something outside, such as a rate limit; its timeout stands still.

    ``seconds`` is how long at least, ``None`` when that is unknown. Never stored.
    """

    reason: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class StepUnblocked(StepEvent):
    """A step that waited works again. Never stored."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class ApprovalRequested(StepEvent):
    """A value waits for an approval, and need not be computed again for it.

    ``output`` is the step's result or, with ``tool``, the arguments by name; ``call`` is the id of a tool's
    call. ``usage`` and ``cost`` (USD) are what a result took until now, and ``facts`` and
    ``memories`` what the step records if it is approved.
    """

    output: Output
    call: str = ""
    tool: str = ""
    key: str = ""
    attempt: int = 1
    seconds: float = 0.0
    usage: TokenUsage = NO_USAGE
    cost: float | None = 0.0
    metadata: Mapping[str, Any] = field(default_factory=no_entries)
    facts: Mapping[str, Any] = field(default_factory=no_entries)
    memories: Mapping[str, Any] = field(default_factory=no_entries)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class ApprovalGiven(StepEvent):
    """The decision on what waited for approval: ``"approved"``, ``"edited"``, ``"rejected"`` or ``"retry"``.

    ``digest`` is that of the value that waited, ``output`` the user's own in its place. ``used``:
    a run took the decision at once; else the next session of the run does.
    """

    verdict: str
    digest: str = ""
    call: str = ""
    reason: str = ""
    output: Output | None = None
    used: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class CallRecorded(StepEvent):
    """A model or a tool has answered. It is recorded before the answer is used.

    Attributes:
        kind: ``"model"`` or ``"tool"``.
        key: SHA-256 of the call in canonical form.
        request: What distinguishes the call from others, as plain data.
        answer: Plain data.
        usage: Tokens and calls of this answer. They count with the attempt, or by themselves if this dies.
        cost: USD of this answer; ``None`` when the price is unknown.
    """

    kind: str
    key: str
    attempt: int = 1
    request: Mapping[str, Any] = field(default_factory=no_entries)
    answer: Any = None
    usage: TokenUsage = NO_USAGE
    cost: float | None = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class BatchPrepared(StepEvent):
    """A batch of requests is about to be sent to a provider. It is recorded before that.

    Attributes:
        marker: What the ids of its requests begin with: ``marker-0``, ``marker-1``, and so on.
        rows: Items of the step, one a request, in this order.
        keys: SHA-256 of each request in canonical form.
        of_run: The run that has sent it, where this one takes answers from it; empty for one of its own.
    """

    marker: str
    rows: tuple[str, ...]
    keys: tuple[str, ...]
    of_run: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class BatchSubmitted(StepEvent):
    """The provider has taken a batch. It is recorded before anything waits for it.

    Attributes:
        marker: That of its :class:`BatchPrepared`.
        handle: What finds it again, as plain data: ``id``, ``provider_name``, ``model_name``,
            ``request_count`` and the like.
        supposed: Whether it was taken for that batch by its time and size alone, since its process died
            before it was recorded, and the provider does not say more.
    """

    marker: str
    handle: Mapping[str, Any] = field(default_factory=no_entries)
    supposed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class BatchCancelled(StepEvent):
    """The provider was asked to cancel a batch: what it has not answered is to be sent again."""

    marker: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class StepRetried(StepEvent):
    """An attempt failed and another follows after ``delay`` seconds."""

    attempt: int
    error_type: str
    message: str
    delay: float
    usage: TokenUsage = NO_USAGE
    cost: float | None = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class StepFinished(StepEvent):
    """A unit of work ended with a value. ``cost`` is USD, ``None`` when the price is unknown."""

    output: Output
    key: str = ""
    components: Components = field(default_factory=no_entries)
    attempt: int = 1
    seconds: float = 0.0
    usage: TokenUsage = NO_USAGE
    cost: float | None = 0.0
    metadata: Mapping[str, Any] = field(default_factory=no_entries)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class StepCached(StepEvent):
    """A value came from the cache. ``saved_cost`` is what computing it had cost (USD)."""

    output: Output
    key: str
    components: Components = field(default_factory=no_entries)
    saved_usage: TokenUsage = NO_USAGE
    saved_cost: float | None = 0.0
    metadata: Mapping[str, Any] = field(default_factory=no_entries)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class StepFailed(StepEvent):
    """A unit of work ended without a value, after its last attempt."""

    error_type: str
    message: str
    traceback: str = ""
    attempt: int = 1
    seconds: float = 0.0
    usage: TokenUsage = NO_USAGE
    cost: float | None = 0.0
    metadata: Mapping[str, Any] = field(default_factory=no_entries)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class StepSkipped(StepEvent):
    """A step was not run; ``cause`` names the step to blame, or ``None`` for its condition."""

    reason: str
    cause: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class StepCancelled(StepEvent):
    """A step was stopped before it ended. It runs again when the run is resumed.

    ``usage`` and ``cost`` (USD) are what its last attempt had used until then.
    """

    attempt: int = 1
    seconds: float = 0.0
    usage: TokenUsage = NO_USAGE
    cost: float | None = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class FactLearned(StepEvent):
    """A step recorded a fact for the later steps of this run."""

    key: str
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class MemorySaved(StepEvent):
    """A step saved a memory that survives this run."""

    key: str
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class SharedDataSaved(Event):
    """The values that all steps share, by name, as they were when the memory was saved."""

    shared: Mapping[str, Any] = field(default_factory=no_entries)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class Warned(Event):
    """Something the user should know that does not stop the run."""

    message: str
    step: str | None = None


def _unfrozen(kind: type[Event]) -> Any:
    """A class of events that are being made: frozen ones take three times as long to set a field."""
    return type(f"_{kind.__name__}", (kind,), {"__slots__": (), "__setattr__": object.__setattr__})


_Started, _Finished, _Cached = map(_unfrozen, (StepStarted, StepFinished, StepCached))


def step_started(run_id: str, step: str, item: str | None, attempt: int, why: str) -> StepStarted:
    """A :class:`StepStarted` of now. Of these there are as many as units of work, so they are made fast."""
    event: Any = object.__new__(_Started)
    event.run_id = run_id
    event.at = time.time()
    event.step = step
    event.item = item
    event.attempt = attempt
    event.items = None
    event.why = why
    event.__class__ = StepStarted
    made: StepStarted = event
    return made


def step_finished(
    run_id: str,
    step: str,
    item: str | None,
    output: Output,
    key: str,
    components: Mapping[str, str],
    attempt: int,
    seconds: float,
    usage: TokenUsage,
    cost: float | None,
    metadata: Mapping[str, Any],
) -> StepFinished:
    """A :class:`StepFinished` of now."""
    event: Any = object.__new__(_Finished)
    event.run_id = run_id
    event.at = time.time()
    event.step = step
    event.item = item
    event.output = output
    event.key = key
    event.components = components
    event.attempt = attempt
    event.seconds = seconds
    event.usage = usage
    event.cost = cost
    event.metadata = metadata
    event.__class__ = StepFinished
    made: StepFinished = event
    return made


def step_cached(
    run_id: str,
    step: str,
    item: str | None,
    output: Output,
    key: str,
    components: Mapping[str, str],
    saved_usage: TokenUsage,
    saved_cost: float | None,
    metadata: Mapping[str, Any],
) -> StepCached:
    """A :class:`StepCached` of now."""
    event: Any = object.__new__(_Cached)
    event.run_id = run_id
    event.at = time.time()
    event.step = step
    event.item = item
    event.output = output
    event.key = key
    event.components = components
    event.saved_usage = saved_usage
    event.saved_cost = saved_cost
    event.metadata = metadata
    event.__class__ = StepCached
    made: StepCached = event
    return made


class Observer(Protocol):
    """Anything that can be called with an event. It must return fast; it runs on the run's loop."""

    def __call__(self, event: Event, /) -> None: ...


PASSING = (StepStreamed, StepStarted, StepWaiting, StepUnblocked)
"""Events that only observers of the running run see: storage does not keep them."""

RunContinued = RunResumed
"""Former name of :class:`RunResumed`."""

StepGoesOn = StepUnblocked
"""Former name of :class:`StepUnblocked`."""
