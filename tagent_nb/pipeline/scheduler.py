"""Which step may start when. Iterative and incremental: a run looks at each edge once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from tagent_nb.errors import CycleError, IllegalTransitionError, UnknownStepError, did_you_mean
from tagent_nb.pipeline.models import Dependency, DependencyType, Pipeline, PipelineStep, StepStatus

_FINAL = frozenset(status for status in StepStatus if status.is_final)
_VALUED = frozenset(status for status in StepStatus if status.has_value)


@dataclass(slots=True)
class Change:
    """What the end of a step means for others.

    Attributes:
        ready: Steps that may start now.
        doomed: Steps that can never run, each with the step to blame. They stay PENDING until the
            caller marks them SKIPPED.
    """

    ready: list[str] = field(default_factory=list)
    doomed: list[tuple[str, str]] = field(default_factory=list)


_NOTHING = Change()


class PipelineScheduler:
    """Execution order, readiness and status of the steps of one run.

    Args:
        pipeline: What runs; later changes of it are not seen.

    Attributes:
        dependency_graph: Names of the steps that each step waits for.
        step_status: Status by step name.

    Raises:
        CycleError: Steps wait for each other; the message has the path ``a -> b -> a``.
        UnknownStepError: A step depends on one that the pipeline does not have.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._steps = {step.name: step for step in pipeline.steps}
        self.step_status: dict[str, StepStatus] = dict.fromkeys(self._steps, StepStatus.PENDING)
        self.dependency_graph: dict[str, list[str]] = {}
        self._dependents: dict[str, list[tuple[str, bool]]] = {name: [] for name in self._steps}
        self._open: dict[str, int] = {}
        self._doomed: set[str] = set()
        self._unfinished = len(self._steps)
        for name, step in self._steps.items():
            self._connect(name, _dependencies(pipeline, step))
        self._order = self._sort()
        if len(self._order) < len(self._steps):
            raise CycleError(self.detect_cycle() or [])
        for name, count in self._open.items():
            if count == 0:
                self.step_status[name] = StepStatus.READY

    def _connect(self, name: str, dependencies: Iterable[Dependency]) -> None:
        above: list[str] = []
        for dependency in dependencies:
            dependents = self._dependents.get(dependency.name)
            if dependents is None:
                if dependency.type is DependencyType.OPTIONAL:
                    continue
                raise UnknownStepError(
                    f"Step {name!r} depends on unknown step {dependency.name!r}."
                    f"{did_you_mean(dependency.name, self._steps)} "
                    "Add a step of that name or correct the name."
                )
            above.append(dependency.name)
            dependents.append((name, dependency.type is DependencyType.STRONG))
        self.dependency_graph[name] = above
        self._open[name] = len(above)

    def _sort(self) -> list[str]:
        """Kahn's algorithm (https://doi.org/10.1145/368996.369025); short if there is a cycle."""
        left = dict(self._open)
        order = [name for name, count in left.items() if count == 0]
        dependents = self._dependents
        for name in order:
            for below, _ in dependents[name]:
                left[below] -= 1
                if left[below] == 0:
                    order.append(below)
        return order

    # -- questions --------------------------------------------------------------------------

    def get_execution_order(self) -> list[str]:
        """All step names, each after the steps it waits for."""
        return list(self._order)

    def get_ready_steps(self) -> list[PipelineStep]:
        """The steps that may start now, in definition order."""
        return [step for name, step in self._steps.items() if self.step_status[name] is StepStatus.READY]

    def status_of(self, name: str) -> StepStatus:
        """The status of a step.

        Raises:
            UnknownStepError: There is no such step.
        """
        status = self.step_status.get(name)
        if status is None:
            raise self._unknown(name)
        return status

    def blocked_steps(self) -> dict[str, list[str]]:
        """The steps that wait, each with the unfinished steps it waits for."""
        status = self.step_status
        return {
            name: [above for above in self.dependency_graph[name] if status[above] not in _FINAL]
            for name in self._steps
            if status[name] is StepStatus.PENDING
        }

    def has_deadlock(self) -> bool:
        """Whether steps are left, yet none is ready, runs or waits for its next attempt."""
        return not self.is_done and all(
            status is StepStatus.PENDING or status in _FINAL for status in self.step_status.values()
        )

    @property
    def is_done(self) -> bool:
        """Whether every step has ended."""
        return self._unfinished == 0

    def detect_cycle(self) -> list[str] | None:
        """A path that ends where it starts, or ``None``. (Of a finished scheduler always ``None``.)"""
        sorted_names = set(self._sort())
        stuck = next((name for name in self._steps if name not in sorted_names), None)
        if stuck is None:
            return None
        # Every stuck step waits for another stuck step, so that walking up must come round.
        path: dict[str, None] = {}
        name = stuck
        while name not in path:
            path[name] = None
            name = next(above for above in self.dependency_graph[name] if above not in sorted_names)
        walked = list(path)
        around = walked[walked.index(name) :]
        around.reverse()
        first = min(around, key=list(self._steps).index)
        turned = around[around.index(first) :] + around[: around.index(first)]
        return [*turned, first]

    def downstream(self, names: Iterable[str]) -> set[str]:
        """These steps and all that depend on them, directly or not."""
        return self._reach(names, lambda name: [below for below, _ in self._dependents[name]])

    def upstream(self, names: Iterable[str]) -> set[str]:
        """These steps and all they depend on, directly or not."""
        return self._reach(names, lambda name: self.dependency_graph[name])

    def _reach(self, names: Iterable[str], neighbours: object) -> set[str]:
        found: set[str] = set()
        waiting = deque(names)
        while waiting:
            name = waiting.popleft()
            self.status_of(name)
            if name not in found:
                found.add(name)
                waiting.extend(neighbours(name))  # type: ignore[operator]
        return found

    # -- progress ---------------------------------------------------------------------------

    def mark(self, step: str, status: StepStatus) -> Change:
        """Note a step's status, and tell what it means for others.

        Raises:
            UnknownStepError: There is no such step.
            IllegalTransitionError: The step has ended already.
        """
        before = self.step_status.get(step)
        if before is None:
            raise self._unknown(step)
        if before in _FINAL:
            if before is status:
                return _NOTHING
            raise IllegalTransitionError(
                f"Step {step!r} is {before.value} and cannot become {status.value}. "
                "Start another run to run it again."
            )
        self.step_status[step] = status
        if status not in _FINAL:
            return _NOTHING
        self._unfinished -= 1
        dependents = self._dependents[step]
        if not dependents:
            return _NOTHING
        change = Change()
        valued = status in _VALUED
        for name, strong in dependents:
            self._open[name] -= 1
            if name in self._doomed:
                continue
            if strong and not valued:
                self._doomed.add(name)
                if self.step_status[name] is StepStatus.PENDING:
                    change.doomed.append((name, step))
            elif self._open[name] == 0 and self.step_status[name] is StepStatus.PENDING:
                self.step_status[name] = StepStatus.READY
                change.ready.append(name)
        return change

    def _unknown(self, name: str) -> UnknownStepError:
        return UnknownStepError(
            f"Pipeline {self.pipeline.name!r} has no step {name!r}.{did_you_mean(name, self._steps)}"
        )


def _dependencies(pipeline: Pipeline, step: PipelineStep) -> Iterable[Dependency]:
    """Short cut for steps that cannot imply anything: no template, body, condition or map."""
    if step.body is None and step.when is None and step.map_over is None and "{" not in step.goal:
        return step.dependencies
    return pipeline.dependencies(step)
