"""What a run is about, what it works with, and how it is to go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tagent_nb.runners import Ledger, Quirks

if TYPE_CHECKING:
    from tagent_nb.cache import ResultCache
    from tagent_nb.events import CallRecorded, Observer, Output, StepCached, StepFinished
    from tagent_nb.pipeline import Approver, Budget, Pipeline, Price
    from tagent_nb.runners import CallMiddleware, StepRunner
    from tagent_nb.storage import StorageBackend


@dataclass(frozen=True)
class RunOptions:
    """How one run is to go; see :meth:`PipelineExecutor.execute`.

    Attributes:
        timeout: Most seconds of this session, in place of the pipeline's.
        retry_failed: Steps whose failed items are run again though the step has a value, or ``True``: all.
        inherits: Names of the switches that are as they were in the run that is carried on.
        wait: Whether the run waits for batches; else it ends while the provider has them.
        still_forced: Steps that this run was to force and that have not ended since: the cache does not
            answer for them. Records do: what they hold of these steps was made since.
    """

    resume: bool | str = False
    force: bool | frozenset[str] = frozenset()
    until: str | None = None
    offline: bool = False
    use_cache: bool = True
    on_change: str = "refuse"
    budget: Budget | Literal[False] | None = None
    timeout: float | None = None
    retry_failed: bool | frozenset[str] = False
    wait: bool = True
    inherits: frozenset[str] = frozenset()
    still_forced: frozenset[str] = frozenset()

    def forces(self, step: str) -> bool:
        """Whether neither cache nor record may answer for this step."""
        return self.force is True or (self.force is not False and step in self.force)

    def retries(self, step: str) -> bool:
        """Whether failed items of this step are run again though it has a value."""
        return self.retry_failed is True or (self.retry_failed is not False and step in self.retry_failed)

    def passes_cache(self, step: str) -> bool:
        """Whether the cache may not answer for this step."""
        return step in self.still_forced or self.forces(step)


@dataclass(frozen=True)
class RunServices:
    """What a run works with.

    Attributes:
        model: The run's own model, before the pipeline's.
        namespace: Names that Python bodies see.
        schemas: Classes that stored values may become, by name and by step.
        middleware: What each call to a model or a tool passes, the first one outermost.
        paid: What a call passes besides that is paid.
        budget: Most that the run may spend.
        ledger: What it has spent and reserved.
        recorded: Calls that answer for models in an offline run.
        observers: Called with every event; one that fails is taken out.
        max_concurrency: Most attempts at the same time.
        network_concurrency: Most attempts at steps that ask models over the network, where these do not
            count among the others; ``None`` where they do.
        batch_poll: Seconds between two looks at a batch, at first and at most.
    """

    storage: StorageBackend
    cache: ResultCache | None
    runners: Mapping[str, StepRunner]
    model: Any
    namespace: Mapping[str, Any]
    schemas: Mapping[str, type]
    max_concurrency: int
    retry_delay: float
    middleware: Sequence[CallMiddleware] = ()
    paid: Sequence[CallMiddleware] = ()
    prices: Mapping[str, Price] = field(default_factory=dict)
    budget: Budget | None = None
    ledger: Ledger = field(default_factory=Ledger)
    recorded: Sequence[CallRecorded] | None = None
    observers: list[Observer] = field(default_factory=list)
    approver: Approver | None = None
    secret_values: str = "warn"
    quirks: Quirks = field(default_factory=Quirks)
    network_concurrency: int | None = None
    batch_poll: tuple[float, float] = (30.0, 600.0)


@dataclass(frozen=True)
class RunContext:
    """What stays the same while a run goes on.

    Attributes:
        run_id: The run.
        pipeline: A snapshot, which is never changed.
        services: What the run works with.
        options: How it is to go.
        inputs: Values that no step makes, by name.
        reads_inputs: Names of the inputs that each step reads, of those steps that read any.
        recorded: Recorded events by (step, item), for units whose fingerprint is still the same.
        keyed: Whether fingerprints are worked out.
        retried: Failed items that are run again, by step; filled when it is judged what is recorded.
        trusted: Mapped steps whose items answer though they were recorded without fingerprints: neither the
            step nor what it reads has changed; filled likewise.
        token: That of the run's lease; ``None`` for a run that records nothing.
    """

    run_id: str
    pipeline: Pipeline
    services: RunServices
    options: RunOptions
    inputs: Mapping[str, Output]
    reads_inputs: Mapping[str, Sequence[str]]
    recorded: Mapping[tuple[str, str | None], StepFinished | StepCached]
    keyed: bool
    token: int | None = None
    retried: dict[str, int] = field(default_factory=dict)
    trusted: set[str] = field(default_factory=set)
