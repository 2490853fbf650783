"""What a run works with, and how it is to go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tagent_nb.runners import Ledger, Quirks

if TYPE_CHECKING:
    from tagent_nb.cache import ResultCache
    from tagent_nb.events import CallRecorded, Observer
    from tagent_nb.pipeline import Approver, Budget, Price
    from tagent_nb.runners import CallMiddleware, StepRunner
    from tagent_nb.storage import StorageBackend


@dataclass(frozen=True)
class RunOptions:
    """How one run is to go; see :meth:`PipelineExecutor.execute`.

    Attributes:
        timeout: Most seconds of this sitting, in place of the pipeline's.
        inherits: Names of the switches that are as they were in the run that is carried on.
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
    inherits: frozenset[str] = frozenset()
    still_forced: frozenset[str] = frozenset()

    def forces(self, step: str) -> bool:
        """Whether neither cache nor record may answer for this step."""
        return self.force is True or (self.force is not False and step in self.force)

    def passes_cache(self, step: str) -> bool:
        """Whether the cache may not answer for this step."""
        return step in self.still_forced or self.forces(step)


@dataclass
class Equipment:
    """What a run works with."""

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
    ledger: Ledger = field(default_factory=Ledger)
    recorded: Sequence[CallRecorded] | None = None
    observers: list[Observer] = field(default_factory=list)
    approver: Approver | None = None
    secret_values: str = "warn"
    quirks: Quirks = field(default_factory=Quirks)
