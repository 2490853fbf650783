"""Which step may start when. Iterative and incremental: a run looks at each edge once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any, cast

from tagent_nb.errors import (
    CycleError,
    DefinitionError,
    IllegalTransitionError,
    UnknownStepError,
    did_you_mean,
)
from tagent_nb.pipeline.enums import DependencyType, StepStatus
from tagent_nb.pipeline.graph import duplicate_names, find_cycle, unknown_name
from tagent_nb.pipeline.pipeline import Pipeline
from tagent_nb.pipeline.step import PipelineStep

PENDING, READY, RUNNING = StepStatus.PENDING, StepStatus.READY, StepStatus.RUNNING
COMPLETED, CACHED = StepStatus.COMPLETED, StepStatus.CACHED
FAILED, SKIPPED, CANCELLED = StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.CANCELLED


@dataclass(slots=True)
class Change:
    """What a step's new status means for others.

    It is not to be changed.

    Attributes:
        ready: Steps that may start now.
        upstream_failed: Steps that can never run, each with the step to blame. They stay PENDING until the
            caller marks them SKIPPED, which in turn says what that rules out.
    """

    ready: list[str] = field(default_factory=list)
    upstream_failed: list[tuple[str, str]] = field(default_factory=list)


NO_CHANGE = Change()
_NONE_FAILED: list[tuple[str, str]] = []


class StepStatuses(MutableMapping[str, StepStatus]):
    """Status by step name. To set one is to :meth:`~PipelineScheduler.mark` it; none can be taken out."""

    def __init__(self, scheduler: PipelineScheduler) -> None:
        self._scheduler = scheduler
        self._statuses = scheduler._statuses

    def __getitem__(self, name: str) -> StepStatus:
        return self._statuses[name]

    def __setitem__(self, name: str, status: StepStatus | str) -> None:
        self._scheduler.mark(name, status)

    def __delitem__(self, name: str) -> None:
        raise DefinitionError(
            f"The status of step {name!r} cannot be deleted: the steps of a scheduler are fixed. "
            "Mark the step as skipped, or make a scheduler of a pipeline without it."
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._statuses)

    def __len__(self) -> int:
        return len(self._statuses)

    def __repr__(self) -> str:
        return repr({name: status.value for name, status in self._statuses.items()})


class PipelineScheduler:
    """Execution order, readiness and status of the steps of one run.

    Args:
        pipeline: What runs; later changes of it are not seen.

    Raises:
        DefinitionError: Two steps have one name.
        CycleError: Steps wait for each other; the message has the path ``a -> b -> a``.
        UnknownStepError: A step depends on one that the pipeline does not have.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._steps = {step.name: step for step in pipeline.steps}
        if len(self._steps) < len(pipeline.steps):
            counts = Counter(step.name for step in pipeline.steps)
            raise DefinitionError(" ".join(duplicate_names(counts)))
        self._statuses: dict[str, StepStatus] = dict.fromkeys(self._steps, PENDING)
        self._unfinished = len(self._steps)
        self._upstream_failed: set[str] = set()
        # Edges (above, below) that only order two steps; all others are STRONG.
        self._weak: set[tuple[str, str]] = set()
        self._implied: dict[str, list[str]] = {}
        self._dependents: dict[str, list[str]] = {name: [] for name in self._steps}
        self._open: dict[str, int] = {}
        self._connect()
        self._order = self._sorted()
        if len(self._order) < len(self._steps):
            raise CycleError(self.detect_cycle() or [])
        self._ready = {name for name, count in self._open.items() if not count}
        self._statuses.update(dict.fromkeys(self._ready, READY))

    def _connect(self) -> None:
        counts = self._open
        dependents: dict[Any, list[str]] = self._dependents
        for name, step in self._steps.items():
            names = step.bare_names
            if names is None:
                self._connect_implied(name, step)
                continue
            # Nothing else is implied, and names alone are STRONG: no need of a closer look.
            try:
                for above in names:
                    dependents[above].append(name)
            except KeyError:  # one that has a type, or is no step
                for above in takewhile(dependents.__contains__, names):
                    dependents[above].pop()
                self._connect_implied(name, step)
            else:
                counts[name] = len(names)
                if names and type(names) is not tuple:  # it may be changed later
                    self._implied[name] = list(map(str, dict.fromkeys(names)))

    def _connect_implied(self, name: str, step: PipelineStep) -> None:
        above = self._implied[name] = []
        for dependency in self.pipeline.dependencies(step):
            if dependency.name not in self._steps:
                raise UnknownStepError(
                    f"Step {name!r} depends on unknown step {dependency.name!r}."
                    f"{unknown_name(self.pipeline, dependency.name)}"
                )
            above.append(dependency.name)
            self._dependents[dependency.name].append(name)
            if dependency.type is not DependencyType.STRONG:
                self._weak.add((dependency.name, name))
        self._open[name] = len(above)

    @property
    def step_status(self) -> StepStatuses:
        """Status by step name, as it stands; to set an entry is to :meth:`mark` the step."""
        return StepStatuses(self)

    @cached_property
    def dependency_graph(self) -> dict[str, list[str]]:
        """Names of the steps that each step waits for, each name once."""
        # Made when it is read: neither the order nor a run needs it as a whole.
        return {name: list(self.above(name)) for name in self._steps}

    def above(self, name: str) -> Sequence[str]:
        """Names of the steps that a step waits for, each name once."""
        implied = self._implied.get(name)
        if implied is not None:
            return implied
        names = cast("tuple[str, ...]", self._steps[name].bare_names or ())
        return names if len(names) < 2 else tuple(dict.fromkeys(names))

    def _sorted(self) -> list[str]:
        """Kahn's algorithm (https://doi.org/10.1145/368996.369025); short if there is a cycle."""
        left = dict(self._open)
        order = [name for name, count in left.items() if not count]
        dependents = self._dependents
        for name in order:
            for below in dependents[name]:
                count = left[below] - 1
                left[below] = count
                if not count:
                    order.append(below)
        return order

    # -- questions --------------------------------------------------------------------------

    def get_execution_order(self) -> list[str]:
        """All step names, each after the steps it waits for."""
        return list(self._order)

    def get_ready_steps(self) -> list[PipelineStep]:
        """The steps that may start now, in definition order."""
        if len(self._ready) < 2:
            return [self._steps[name] for name in self._ready]
        return [self._steps[name] for name in sorted(self._ready, key=self._positions.__getitem__)]

    def status_of(self, name: str) -> StepStatus:
        """The status of a step.

        Raises:
            UnknownStepError: There is no such step.
        """
        status = self._statuses.get(name)
        if status is None:
            raise self._unknown(name)
        return status

    def blocked_steps(self) -> dict[str, list[str]]:
        """The steps that wait, each with the unfinished steps it waits for.

        A step whose list is empty is blocked for good: what it waited for ended without a value.
        """
        statuses = self._statuses
        return {
            name: [above for above in self.dependency_graph[name] if not statuses[above].is_final]
            for name, status in statuses.items()
            if status is PENDING
        }

    def has_deadlock(self) -> bool:
        """Whether steps are left, yet none is ready, runs or waits for its next attempt.

        Steps below a failed one that are not yet marked SKIPPED are such steps.
        """
        if self.is_done or self._ready:
            return False
        return all(status is PENDING or status.is_final for status in self._statuses.values())

    @property
    def is_done(self) -> bool:
        """Whether every step has ended."""
        return not self._unfinished

    def detect_cycle(self) -> list[str] | None:
        """A path in the direction of the graph's arrows that ends where it starts, or ``None``.

        The constructor refuses cycles; there is one only if ``dependency_graph`` was changed since.
        """
        return find_cycle(self.dependency_graph)

    def downstream(self, names: Iterable[str]) -> set[str]:
        """These steps and all that depend on them, directly or not.

        Raises:
            UnknownStepError: One of them does not exist.
        """
        return self._reach(names, self._dependents)

    def upstream(self, names: Iterable[str]) -> set[str]:
        """These steps and all they depend on, directly or not.

        Raises:
            UnknownStepError: One of them does not exist.
        """
        return self._reach(names, self.dependency_graph)

    def _reach(self, names: Iterable[str], neighbours: Mapping[str, list[str]]) -> set[str]:
        waiting = [names] if isinstance(names, str) else list(names)
        for name in waiting:
            self.status_of(name)
        reached = set(waiting)
        while waiting:
            for name in neighbours[waiting.pop()]:
                if name not in reached:
                    reached.add(name)
                    waiting.append(name)
        return reached

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self._steps)}

    # -- progress ---------------------------------------------------------------------------

    def mark(self, step: str, status: StepStatus | str) -> Change:
        """Note a step's status, and say what it means for others.

        A final status may be noted again; that changes nothing.

        Args:
            step: The step's name.
            status: Its new status, or the value of one, such as ``"completed"``.

        Raises:
            UnknownStepError: There is no such step.
            DefinitionError: There is no such status.
            IllegalTransitionError: The step has ended, or ``status`` is PENDING.
        """
        before = self._statuses.get(step)
        if before is None:
            raise self._unknown(step)
        if not isinstance(status, StepStatus):
            status = _status(step, status)
        # Identities, not sets: to hash a member of an Enum is a Python call, and this is the hot path.
        if (before is not READY and before is not RUNNING) and (
            before is COMPLETED
            or before is CACHED
            or before is FAILED
            or before is SKIPPED
            or before is CANCELLED
        ):
            if before is status:
                return NO_CHANGE
            raise _illegal(step, before, status, "Start another run to run it again.")
        if status is COMPLETED or status is CACHED:
            self._end(step, status)
            return Change(self._release(step), _NONE_FAILED)
        if status is FAILED or status is SKIPPED or status is CANCELLED:
            self._end(step, status)
            return self._rule_out(step)
        if status is PENDING and before is not PENDING:
            raise _illegal(step, before, status, "Only a step that has never been ready is pending.")
        if status is READY:
            self._ready.add(step)
        else:
            self._ready.discard(step)
        self._statuses[step] = status
        return NO_CHANGE

    def _end(self, step: str, status: StepStatus) -> None:
        self._statuses[step] = status
        self._ready.discard(step)
        self._unfinished -= 1

    def _release(self, step: str) -> list[str]:
        """The steps that waited for this one alone."""
        ready = []
        counts = self._open
        for name in self._dependents[step]:
            count = counts[name] - 1
            counts[name] = count
            if not count and self._statuses[name] is PENDING and name not in self._upstream_failed:
                self._statuses[name] = READY
                self._ready.add(name)
                ready.append(name)
        return ready

    def _rule_out(self, step: str) -> Change:
        """What follows from an end without a value."""
        change = Change()
        for name in self._dependents[step]:
            self._open[name] -= 1
            if name in self._upstream_failed or self._statuses[name] is not PENDING:
                continue
            if (step, name) not in self._weak:
                self._upstream_failed.add(name)
                change.upstream_failed.append((name, step))
            elif not self._open[name]:
                self._statuses[name] = READY
                self._ready.add(name)
                change.ready.append(name)
        return change

    def _unknown(self, name: str) -> UnknownStepError:
        return UnknownStepError(
            f"Pipeline {self.pipeline.name!r} has no step {name!r}.{did_you_mean(name, self._steps)} "
            "Its steps are fixed when the run starts."
        )


def _status(step: str, status: object) -> StepStatus:
    """The status of this value."""
    statuses = {member.value: member for member in StepStatus}
    match = statuses.get(status) if isinstance(status, str) else None
    if match is None:
        raise DefinitionError(
            f"Step {step!r} cannot be marked as {status!r}: there is no such status."
            f"{did_you_mean(str(status), statuses)} Use one of {', '.join(statuses)}."
        )
    return match


def _illegal(step: str, before: StepStatus, after: StepStatus, remedy: str) -> IllegalTransitionError:
    return IllegalTransitionError(
        f"Step {step!r} is {before.value} and cannot become {after.value}. {remedy}"
    )
