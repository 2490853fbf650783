"""How a step gets its value: the protocol of runners, the context of one attempt, and its calls.

Every request to a model and every call of a tool passes the middleware of its context, the first one
outermost, and then leaves. Middleware may answer by itself (a record of an earlier call), wait (a limit),
refuse (a budget) or look on (a trace). No middleware knows the others.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import CodeType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tagent_nb.events import (
    NO_USAGE,
    Event,
    FactLearned,
    MemorySaved,
    StepProgress,
    StepStreamed,
    StepUnblocked,
    StepWaiting,
    TokenUsage,
)
from tagent_nb.pipeline import PipelineStep, Price
from tagent_nb.redaction import hide, redact
from tagent_nb.serde import own_copy, to_tree

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models import Model, ModelRequestParameters
    from pydantic_ai.settings import ModelSettings

F = TypeVar("F", bound=Callable[..., Any])

USER_CODE: dict[CodeType, str] = {}
"""What of a step runs on the loop in each function that calls code of users, in words."""


def calls_user_code(what: str) -> Callable[[F], F]:
    """Mark a function that calls code of a user on the loop, so that a step that blocks it can be named.

    Args:
        what: What of the step that code is, as in ``"a check of it"``. The function has a ``context``, or a
            ``self`` that has one.
    """

    def mark(function: F) -> F:
        USER_CODE[function.__code__] = what
        return function

    return mark


def _ignore(event: Event) -> None:
    """Takes events that no observer needs."""


def _uncounted(step: str, usage: TokenUsage, cost: float | None) -> None:
    """Takes amounts that no ledger counts."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A value of an earlier attempt that the user sent back, and her reason."""

    value: Any
    reason: str


UNKNOWN_REASON = "unknown_finish_reason"
"""Where the metadata of an attempt, and of an answer, has a finish reason whose meaning is not known."""


@dataclass
class Quirks:
    """What a run has learnt of the servers of its models.

    Attributes:
        unstreamed: Models that are asked without streaming; see
            :func:`~tagent_nb.runners.models.openai_protocol.unstreamed_key`.
        unusable: Steps and items whose last answer had to be paid and could not be used.
    """

    unstreamed: set[str] = field(default_factory=set)
    unusable: set[tuple[str, str | None]] = field(default_factory=set)


class Admission(Protocol):
    """Whether a request may be sent now, where it is not sent at once; see :attr:`ModelCall.admission`."""

    def open(self) -> bool:
        """Reserve what the request may take, and say whether it may be sent.

        Raises:
            BudgetExceededError: It may not, whatever the requests under way take.
        """
        ...

    def open_anyway(self) -> None:
        """Reserve what a request may take that has been sent already."""
        ...

    def keep(self) -> None:
        """Reserve it to the end of the session, since the request is answered in a later one."""
        ...

    def close(self) -> None:
        """Give back what is reserved, since the request is to be sent again."""
        ...

    def is_held(self) -> bool:
        """Whether the request could be sent if nothing was kept for those that are answered later."""
        ...

    async def changed(self) -> None:
        """Wait until something may be sent that could not."""
        ...


class Batched(Protocol):
    """What sends the requests of a unit together with those of others."""

    def takes(self, call: ModelCall) -> bool:
        """Whether it sends this request, or has sent it; else it is asked at once."""
        ...

    async def ask(self, call: ModelCall) -> ModelResponse:
        """The answer, when the batch of the request is answered.

        Raises:
            RetryableError: The provider has not answered it.
            StepError: Its batch was cancelled.
        """
        ...

    async def go_on(self, context: StepContext) -> None:
        """Wait until the unit may work on its answer, or on its failure.

        Args:
            context: Of the attempt, whose timeout stands still meanwhile.
        """
        ...


@dataclass
class StepContext:
    """Everything one attempt of a step may see and say. Python steps get it as ``context``.

    Attributes:
        run_id: The run.
        pipeline: The pipeline's name.
        step: The step's name.
        item: The row's key in a mapped step, else ``None``.
        attempt: Counted from 1.
        inputs: Values of the steps it reads, by name. In a mapped step the name of the source
            stands for the current item.
        shared: The pipeline's ``shared_context``.
        constraints: The pipeline's constraints and the step's own.
        instructions: System prompt of the user's own: the step's, else the pipeline's.
        facts: Facts learned earlier in this run.
        memories: Saved memories of this pipeline.
        namespace: Names that a Python body sees, such as the notebook's.
        model: Model of this step: a string or a pydantic-ai model object.
        idempotency_key: The same for every attempt at the same work; give it to services that
            accept one, since an effect may happen more than once.
        emit: Takes an event; usable from any thread.
        usage: Tokens and calls spent by this attempt, failed ones included.
        cost: USD spent by this attempt; ``None`` when a price is unknown.
        metadata: Plain data that ends in ``result.step_metadata``.
        middleware: What each call to a model or a tool passes, the first one outermost.
        offline: Whether no model may be asked: every answer comes from middleware.
        prices: The user's own prices by model.
        refusals: Values of earlier attempts that the user sent back, oldest first.
        on_spend: Called with everything that is spent and the step's name; on any thread.
        learned: Facts and memories of this attempt so far, as events.
        limit: The timeout of the attempt, where it has one.
        watched: Whether an observer reads what the step prints; else it is printed where all is, and
            answers are not streamed.
        quirks: What the run has learnt of the servers of its models.
        batch: Takes the requests of a step that sends them in batches; ``None`` where each is sent at once.
        rows: Brings the rows of its step together that one call asks for; ``None`` where each is asked for by
            itself.
    """

    run_id: str
    pipeline: str
    step: str
    item: str | None = None
    attempt: int = 1
    inputs: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    constraints: list[str] = field(default_factory=list)
    instructions: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    memories: Mapping[str, Any] = field(default_factory=dict)
    namespace: Mapping[str, Any] = field(default_factory=dict)
    model: Any = None
    idempotency_key: str = ""
    emit: Callable[[Event], None] = _ignore
    usage: TokenUsage = NO_USAGE
    cost: float | None = 0.0
    metadata: dict[str, Any] = field(default_factory=dict)
    middleware: Sequence[CallMiddleware] = ()
    offline: bool = False
    prices: Mapping[str, Price] = field(default_factory=dict)
    on_spend: Callable[[str, TokenUsage, float | None], None] = _uncounted
    refusals: Sequence[Refusal] = ()
    learned: Sequence[Event] = ()
    limit: asyncio.Timeout | None = None
    watched: bool = True
    quirks: Quirks = field(default_factory=Quirks)
    batch: Batched | None = None
    rows: SharedRows | None = None
    tool_calls: dict[tuple[str, str], set[int]] = field(default_factory=dict, init=False, repr=False)
    _waits: int = field(default=0, init=False, repr=False)
    _events: int = field(default=0, init=False, repr=False)
    _stopped: tuple[float, float] | None = field(default=None, init=False, repr=False)

    @cached_property
    def stop(self) -> threading.Event:
        """Set when the attempt is cancelled or timed out; long loops may look at it."""
        return threading.Event()

    def learn(self, key: str, value: Any) -> None:
        """Record a fact for the later steps of this run, once this attempt succeeds.

        Raises:
            EncodeError: The value cannot be stored; the message has the path to it.
        """
        to_tree(value, path=f"fact {key!r}")
        value = own_copy(value)
        self.emit(FactLearned(run_id=self.run_id, step=self.step, item=self.item, key=key, value=value))

    def save_memory(self, key: str, value: Any) -> None:
        """Save a memory that later runs of this pipeline see, once this attempt succeeds.

        Raises:
            EncodeError: The value cannot be stored; the message has the path to it.
        """
        to_tree(value, path=f"memory {key!r}")
        value = own_copy(value)
        self.emit(MemorySaved(run_id=self.run_id, step=self.step, item=self.item, key=key, value=value))

    def write(self, text: str) -> None:
        """Show text in this step's area while it runs, without secrets of the environment."""
        self.emit(StepStreamed(run_id=self.run_id, step=self.step, item=self.item, text=redact(text)))

    def progress(self, kind: str, **detail: Any) -> None:
        """Report something that happened, such as a tool call, without secrets of the environment."""
        shown = hide(detail)[0]
        self.emit(StepProgress(run_id=self.run_id, step=self.step, item=self.item, kind=kind, detail=shown))

    def spend(self, usage: TokenUsage, cost: float | None, *, counts: float | None = None) -> None:
        """Add tokens and USD to what this attempt used. ``None`` makes the whole cost unknown.

        Args:
            usage: Tokens and calls.
            cost: USD.
            counts: USD that count against budgets in place of ``cost``, where that is only assumed.
        """
        self.add(usage, cost)
        self.on_spend(self.step, usage, cost if counts is None else counts)

    def add(self, usage: TokenUsage, cost: float | None) -> None:
        """Add to what this attempt used what budgets have counted already."""
        self.usage = self.usage + usage
        self.cost = None if cost is None or self.cost is None else self.cost + cost

    @contextmanager
    def waiting(self, reason: str, seconds: float | None = None) -> Iterator[None]:
        """Wait for something else inside this block: the step shows as WAITING, and its timeout stands still.

        On the run's loop only.

        Args:
            reason: What it waits for, in words.
            seconds: How long at least; ``None`` when unknown.
        """
        with self.untimed():
            self._events += 1
            self.emit(
                StepWaiting(
                    run_id=self.run_id, step=self.step, item=self.item, reason=reason, seconds=seconds
                )
            )
            try:
                yield
            finally:
                self._events -= 1
                if not self._events:
                    self.emit(StepUnblocked(run_id=self.run_id, step=self.step, item=self.item))

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """Let the attempt's timeout stand still inside this block. On the run's loop only."""
        if not self._waits:
            self._stop_clock()
        self._waits += 1
        try:
            yield
        finally:
            self._waits -= 1
            if not self._waits:
                self._start_clock()

    def _stop_clock(self) -> None:
        ends = None if self.limit is None or self.limit.expired() else self.limit.when()
        if self.limit is not None and ends is not None:
            self._stopped = (ends, asyncio.get_running_loop().time())
            self.limit.reschedule(None)

    def _start_clock(self) -> None:
        if self.limit is not None and self._stopped is not None:
            ends, began = self._stopped
            self._stopped = None
            self.limit.reschedule(ends + asyncio.get_running_loop().time() - began)


class ToolContext(StepContext):
    """The context of a step as one call of a tool sees it: the same one, with a key of the call's own."""

    _key: str
    __slots__ = ("_key",)

    @classmethod
    def of(cls, context: StepContext, key: str) -> ToolContext:
        """A view of ``context``: what is spent, learned and noted on one of them is on both."""
        view = object.__new__(cls)
        view.__dict__ = context.__dict__
        view._key = key
        return view

    @property
    def idempotency_key(self) -> str:  # type: ignore[override]  # a step's key is never set
        """The same whenever the same call is made for the same work."""
        return self._key


class SharedRows(Protocol):
    """Brings rows of a step together that share a call: :class:`~tagent_nb.runners.row_groups.RowGroups`."""

    def asking(self) -> AbstractContextManager[None]:
        """An attempt at a row is under way."""
        ...

    async def answer(self, seat: Any) -> ModelResponse:
        """Wait for a row's part of an answer."""
        ...


class StepRunner(Protocol):
    """Turns a step into its value. ``version`` is part of the fingerprint: raise it when equal
    inputs may give another value than before. A runner whose calls all pass the context's middleware says
    so by an attribute ``replays = True``; an offline run asks no other."""

    version: str

    async def run(self, step: PipelineStep, context: StepContext) -> Any:
        """Return the value of one attempt.

        Raises:
            StepError: Another attempt cannot help.
            Exception: Anything else is retried as the step says.
        """
        ...


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One request to a model.

    Attributes:
        context: Of the attempt that asks.
        model: Whom it asks.
        messages: The conversation so far; the last one is the question.
        settings: Such as temperature and max_tokens.
        parameters: Tools and the form of the answer.
        admission: Says when a request may be sent that waits for its batch; ``None`` where nothing limits it.
    """

    context: StepContext
    model: Model[Any]
    messages: list[ModelMessage]
    settings: ModelSettings | None
    parameters: ModelRequestParameters
    admission: Admission | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool by a model.

    Attributes:
        context: Of the attempt whose model calls.
        tool: The tool's name.
        arguments: As the tool's function takes them.
        id: The model's id of this call; empty where it gives none.
        function: The user's function; ``None`` for a tool of a server.
        parameters: JSON Schema of the arguments; empty where it is unknown.
        single: The one parameter whose fields these are, as they are for a model; empty if they are all.
        check: Gives other arguments as the tool takes them, or raises :class:`ValueError`.
    """

    context: StepContext
    tool: str
    arguments: Mapping[str, Any]
    id: str = ""
    function: Callable[..., Any] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    single: str = ""
    check: Callable[[Any], Mapping[str, Any]] | None = None


class CallMiddleware:
    """Stands between a step and what it calls. By itself it lets everything pass.

    Attributes:
        of_rows: Whether it sees each row of a call that several rows share, in place of the call: as a call
            for that row alone.
    """

    of_rows = False

    async def model_call(
        self, call: ModelCall, proceed: Callable[[ModelCall], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """Answer a request to a model, usually by ``await proceed(call)``."""
        return await proceed(call)

    async def tool_call(self, call: ToolCall, proceed: Callable[[ToolCall], Awaitable[Any]]) -> Any:
        """Answer a call of a tool, usually by ``await proceed(call)``."""
        return await proceed(call)
