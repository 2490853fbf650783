"""Phases and tasks of a piece of work: plan, execute, evaluate, with retries; nothing runs here."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from itertools import count
from typing import Any, ClassVar, Self

from tagent_nb.errors import DefinitionError, IllegalTransitionError, did_you_mean


class Phase(Enum):
    """Where the work stands. PAUSED and RESUMING are for machines that can be stopped."""

    INIT = "init"
    PLANNING = "planning"
    EXECUTING = "executing"
    EVALUATING = "evaluating"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    PAUSED = "paused"
    RESUMING = "resuming"


class TaskStatus(Enum):
    """Where a task stands. SKIPPED tasks were never needed: a new plan took their place."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass
class Task:
    """One thing to do.

    Attributes:
        description: What is to be done.
        tool: Name of the tool that does it, or ``"llm"`` for the model itself.
        arguments: Arguments of the tool. They may refer to results of earlier tasks by id; what
            runs the task puts them in (see :attr:`TaskBasedStateMachine.results`).
        max_retries: Attempts after the first.
        status: Where it stands.
        attempts: Attempts begun.
        result: What came out; plain data.
        error: Message of the last failure.
        id: Set when the task is added: ``"task_1"`` and so on, an identifier, so that a template can
            refer to it.
        plan: Number of the plan it belongs to, from 1; 0 for tasks from no plan.
        edited_by_user: Whether a person put ``arguments`` in place of others.
    """

    description: str
    tool: str = "llm"
    arguments: dict[str, Any] = field(default_factory=dict)
    max_retries: int = 2
    status: TaskStatus = TaskStatus.PENDING
    attempts: int = 0
    result: Any = None
    error: str = ""
    id: str = ""
    plan: int = 0
    edited_by_user: bool = False

    def __post_init__(self) -> None:
        if (
            not isinstance(self.max_retries, int)
            or isinstance(self.max_retries, bool)
            or self.max_retries < 0
        ):
            raise DefinitionError(
                f"Task {self.description!r}: max_retries must be a whole number from 0 on, "
                f"not {self.max_retries!r}."
            )

    @property
    def retries(self) -> int:
        """Attempts begun after the first."""
        return max(0, self.attempts - 1)

    def to_dict(self) -> dict[str, Any]:
        """The task as plain data, if its arguments and result are."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**data, "status": self.status.value, "arguments": dict(self.arguments)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a task from :meth:`to_dict`.

        Raises:
            DefinitionError: The data is not that of a task.
        """
        try:
            return cls(**{**data, "status": TaskStatus(data["status"]), "arguments": dict(data["arguments"])})
        except (KeyError, TypeError, ValueError) as error:
            raise not_stored("task", error) from error


class TaskBasedStateMachine:
    """A goal, its tasks, and the phase they are in. What is not allowed is an error.

    A planner goes INIT, PLANNING (:meth:`add_plan`), EXECUTING (:meth:`next_task`,
    :meth:`start_task`, :meth:`complete_task` or :meth:`fail_task`, until no task is left), EVALUATING,
    and from there to PLANNING again while :attr:`may_plan`, to FAILED, or by FINALIZING, where the
    answer gets its form, to COMPLETED. Work whose tasks are known goes straight from INIT to
    EXECUTING. Subclasses change :attr:`TRANSITIONS`.

    Args:
        goal: What is to be achieved.
        tasks: Tasks that are known from the start.
        max_plans: Plans that may be made, the first one included.

    Attributes:
        phase: The current phase; changed by :meth:`transition` only.
        plans: Plans made so far.
        history: Phases passed through, in order.
    """

    TRANSITIONS: ClassVar[Mapping[Phase, frozenset[Phase]]] = {
        Phase.INIT: frozenset({Phase.PLANNING, Phase.EXECUTING, Phase.FAILED}),
        Phase.PLANNING: frozenset({Phase.EXECUTING, Phase.FAILED}),
        Phase.EXECUTING: frozenset({Phase.EVALUATING, Phase.PLANNING, Phase.COMPLETED, Phase.FAILED}),
        Phase.EVALUATING: frozenset(
            {Phase.PLANNING, Phase.EXECUTING, Phase.FINALIZING, Phase.COMPLETED, Phase.FAILED}
        ),
        Phase.FINALIZING: frozenset({Phase.PLANNING, Phase.COMPLETED, Phase.FAILED}),
        Phase.COMPLETED: frozenset(),
        Phase.FAILED: frozenset(),
    }

    def __init__(self, goal: str, tasks: Iterable[Task] = (), *, max_plans: int = 3) -> None:
        self.goal = goal
        self.max_plans = max_plans
        self.plans = 0
        self.phase = Phase.INIT
        self.history: list[Phase] = [Phase.INIT]
        self._tasks: dict[str, Task] = {}
        for task in tasks:
            self.add_task(task)

    # -- phases -----------------------------------------------------------------------------

    def transition(self, phase: Phase) -> None:
        """Move to another phase.

        Raises:
            IllegalTransitionError: It does not follow the current one; the message lists those that do.
        """
        allowed = self.allowed
        if phase not in allowed:
            names = ", ".join(target.name for target in allowed)
            raise IllegalTransitionError(
                f"{self.phase.name} cannot become {phase.name}. "
                + (f"Allowed: {names}." if names else "It is an end; start anew.")
            )
        self.phase = phase
        self.history.append(phase)

    @property
    def allowed(self) -> list[Phase]:
        """The phases that may follow the current one."""
        following = self.TRANSITIONS.get(self.phase, frozenset())
        return [phase for phase in Phase if phase in following]

    @property
    def is_done(self) -> bool:
        """Whether the work has ended, well or not."""
        return self.phase in (Phase.COMPLETED, Phase.FAILED)

    # -- tasks ------------------------------------------------------------------------------

    @property
    def tasks(self) -> list[Task]:
        """All tasks in the order they were added, those of older plans too."""
        return list(self._tasks.values())

    def add_task(self, task: Task) -> Task:
        """Add a task; without an id it gets one.

        Raises:
            DefinitionError: There is a task of this id.
            IllegalTransitionError: The work has ended.
        """
        if self.is_done:
            raise IllegalTransitionError(f"A task cannot be added in {self.phase.name}: the work has ended.")
        task.id = task.id or self._free_id(self._tasks)
        if task.id in self._tasks:
            raise DefinitionError(f"There is a task {task.id!r} already. Give each task its own id.")
        self._tasks[task.id] = task
        return task

    def _free_id(self, taken: Container[str]) -> str:
        return next(name for n in count(len(self._tasks) + 1) if (name := f"task_{n}") not in taken)

    @property
    def may_plan(self) -> bool:
        """Whether ``max_plans`` allows another plan."""
        return self.plans < self.max_plans

    def add_plan(self, tasks: Iterable[Task]) -> list[Task]:
        """Add the tasks of a plan, in PLANNING only. Those of an older plan that still wait are skipped.

        Results of older plans stay, and the new tasks may refer to them.

        Raises:
            DefinitionError: The plan is empty, or repeats an id. Nothing is changed.
            IllegalTransitionError: The phase is another, or ``max_plans`` have been made.
        """
        self._require(Phase.PLANNING, "A plan cannot be added")
        if not self.may_plan:
            raise IllegalTransitionError(
                f"{self.plans} of {self.max_plans} plans have been made. Move to FAILED, or raise max_plans."
            )
        new = list(tasks)
        if not new:
            raise DefinitionError("A plan needs at least one task. Give it one, or move to FAILED.")
        taken = set(self._tasks)
        for task in new:
            if task.id in taken:
                raise DefinitionError(f"There is a task {task.id!r} already. Give each task its own id.")
            if task.id:
                taken.add(task.id)
        for old in self._tasks.values():
            if old.status is TaskStatus.PENDING:
                old.status = TaskStatus.SKIPPED
        self.plans += 1
        for task in new:
            task.id = task.id or self._free_id(taken)
            task.plan = self.plans
            self.add_task(task)
            taken.add(task.id)
        return new

    def task(self, task_id: str) -> Task:
        """The task of this id.

        Raises:
            DefinitionError: There is none.
        """
        task = self._tasks.get(task_id)
        if task is None:
            raise DefinitionError(
                f"There is no task {task_id!r}.{did_you_mean(task_id, self._tasks)} "
                f"Tasks: {', '.join(self._tasks) or 'none'}."
            )
        return task

    def next_task(self) -> Task | None:
        """The first task that waits, a failed one that may be tried again included; or ``None``."""
        return next((task for task in self._tasks.values() if task.status is TaskStatus.PENDING), None)

    def start_task(self, task_id: str) -> Task:
        """Begin an attempt at a task, in EXECUTING only.

        Raises:
            DefinitionError: There is no such task.
            IllegalTransitionError: The phase is another, or the task does not wait.
        """
        self._require(Phase.EXECUTING, f"Task {task_id!r} cannot start")
        task = self._move(task_id, TaskStatus.PENDING, TaskStatus.RUNNING)
        task.attempts += 1
        return task

    def complete_task(self, task_id: str, result: Any = None) -> Task:
        """Note a running task's result.

        Raises:
            DefinitionError: There is no such task.
            IllegalTransitionError: The task is not running.
        """
        task = self._move(task_id, TaskStatus.RUNNING, TaskStatus.COMPLETED)
        task.result, task.error = result, ""
        return task

    def fail_task(self, task_id: str, error: str, *, retry: bool = True) -> bool:
        """Note a running task's failure.

        Args:
            task_id: The task.
            error: What went wrong, for the next plan.
            retry: ``False`` if another attempt cannot help.

        Returns:
            Whether it waits for another attempt; else it is FAILED.

        Raises:
            DefinitionError: There is no such task.
            IllegalTransitionError: The task is not running.
        """
        task = self._move(task_id, TaskStatus.RUNNING, TaskStatus.FAILED)
        task.error = error
        if retry and task.attempts <= task.max_retries:
            task.status = TaskStatus.PENDING
        return task.status is TaskStatus.PENDING

    def release_task(self, task_id: str) -> Task:
        """Let a running task wait again, its attempt not counted: it was interrupted, it did not fail.

        Raises:
            DefinitionError: There is no such task.
            IllegalTransitionError: The task is not running.
        """
        task = self._move(task_id, TaskStatus.RUNNING, TaskStatus.PENDING)
        task.attempts -= 1
        return task

    @property
    def results(self) -> dict[str, Any]:
        """Results of the completed tasks by id."""
        return {
            name: task.result for name, task in self._tasks.items() if task.status is TaskStatus.COMPLETED
        }

    @property
    def failed_tasks(self) -> list[Task]:
        """The tasks of the newest plan that failed for good."""
        return [
            task
            for task in self._tasks.values()
            if task.status is TaskStatus.FAILED and task.plan == self.plans
        ]

    def _require(self, phase: Phase, what: str) -> None:
        if self.phase is not phase:
            remedy = (
                f"Move to {phase.name} first" if phase in self.allowed else f"Only {phase.name} allows it"
            )
            raise IllegalTransitionError(f"{what} in {self.phase.name}. {remedy}.")

    def _move(self, task_id: str, before: TaskStatus, after: TaskStatus) -> Task:
        task = self.task(task_id)
        if task.status is not before:
            raise IllegalTransitionError(
                f"Task {task_id!r} is {task.status.value} and cannot become {after.value}; "
                f"only a {before.value} one can."
            )
        task.status = after
        return task

    # -- storing ----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Goal, phase, tasks and history as plain data."""
        return {
            "goal": self.goal,
            "phase": self.phase.value,
            "tasks": [task.to_dict() for task in self._tasks.values()],
            "history": [phase.value for phase in self.history],
            "plans": self.plans,
            "max_plans": self.max_plans,
        }

    def restore(self, data: Mapping[str, Any]) -> Self:
        """Take over what :meth:`to_dict` gave. Tasks that were running then are released.

        Raises:
            DefinitionError: The data is not that of a state machine; nothing is changed.
        """
        try:
            goal, plans, max_plans = str(data["goal"]), int(data["plans"]), int(data["max_plans"])
            tasks = {task.id: task for task in map(Task.from_dict, data["tasks"])}
            phase, history = Phase(data["phase"]), [Phase(name) for name in data["history"]]
        except (KeyError, TypeError, ValueError) as error:
            raise not_stored("state machine", error) from error
        self.goal, self.plans, self.max_plans = goal, plans, max_plans
        self.phase, self.history, self._tasks = phase, history, tasks
        for task in tasks.values():
            if task.status is TaskStatus.RUNNING:
                self.release_task(task.id)
        return self

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """A new machine from :meth:`to_dict`; see :meth:`restore`.

        A subclass whose constructor takes something else is made first and restored then.

        Raises:
            DefinitionError: The data is not that of a state machine.
        """
        return cls("").restore(data)


def not_stored(what: str, error: Exception) -> DefinitionError:
    """The error for data that is not what ``to_dict`` of such a thing gives."""
    return DefinitionError(
        f"This is not a stored {what}: {type(error).__name__}: {error}. Pass what its to_dict() gave."
    )
