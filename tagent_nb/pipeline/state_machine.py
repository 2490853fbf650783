"""Phases and tasks of a piece of work: plan, execute, evaluate, with retries; nothing runs here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from tagent_nb.errors import DefinitionError, IllegalTransitionError, did_you_mean


class Phase(Enum):
    """Where the work stands. PAUSED and RESUMING are for machines that can be stopped."""

    INIT = "init"
    PLANNING = "planning"
    EXECUTING = "executing"
    EVALUATING = "evaluating"
    COMPLETED = "completed"
    FAILED = "failed"
    PAUSED = "paused"
    RESUMING = "resuming"


class TaskStatus(Enum):
    """Where a task stands."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass
class Task:
    """One thing to do.

    Attributes:
        description: What is to be done.
        tool: Name of the tool that does it, or ``"llm"`` for the model itself.
        arguments: Arguments of the tool.
        max_retries: Attempts after the first.
        attempts: Attempts made.
        result: What came out; plain data.
        error: Message of the last failure.
        id: Set when the task is added: ``"task-1"`` and so on.
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

    def to_dict(self) -> dict[str, Any]:
        """The task as plain data."""
        return {**self.__dict__, "status": self.status.value, "arguments": dict(self.arguments)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Task:
        """Rebuild a task from :meth:`to_dict`."""
        return cls(**{**data, "status": TaskStatus(data["status"])})


_START = frozenset({Phase.PLANNING, Phase.EXECUTING, Phase.FAILED})


class TaskBasedStateMachine:
    """A goal, its tasks, and the phase they are in. Illegal moves are errors.

    Args:
        goal: What is to be achieved.
        tasks: Tasks that are known from the start.

    Attributes:
        phase: The current phase.
        tasks: All tasks, in order; a new plan adds to them.
        history: Phases passed through, in order.
    """

    TRANSITIONS: ClassVar[Mapping[Phase, frozenset[Phase]]] = {
        Phase.INIT: _START,
        Phase.PLANNING: frozenset({Phase.EXECUTING, Phase.FAILED}),
        Phase.EXECUTING: frozenset({Phase.EVALUATING, Phase.PLANNING, Phase.COMPLETED, Phase.FAILED}),
        Phase.EVALUATING: frozenset({Phase.PLANNING, Phase.EXECUTING, Phase.COMPLETED, Phase.FAILED}),
        Phase.COMPLETED: frozenset(),
        Phase.FAILED: frozenset(),
    }

    def __init__(self, goal: str, tasks: Iterable[Task] = ()) -> None:
        self.goal = goal
        self.phase = Phase.INIT
        self.tasks: list[Task] = []
        self.history: list[Phase] = [Phase.INIT]
        for task in tasks:
            self.add_task(task)

    # -- phases -----------------------------------------------------------------------------

    def transition(self, phase: Phase) -> None:
        """Move to another phase.

        Raises:
            IllegalTransitionError: The phase does not follow; the message lists those that do.
        """
        allowed = self.TRANSITIONS.get(self.phase, frozenset())
        if phase not in allowed:
            names = ", ".join(one.name for one in Phase if one in allowed) or "nothing: it has ended"
            raise IllegalTransitionError(f"{self.phase.name} cannot become {phase.name}. Allowed: {names}.")
        self.phase = phase
        self.history.append(phase)

    @property
    def is_done(self) -> bool:
        """Whether the work has ended, well or not."""
        return self.phase in (Phase.COMPLETED, Phase.FAILED)

    # -- tasks ------------------------------------------------------------------------------

    def add_task(self, task: Task) -> Task:
        """Add a task and give it an id."""
        task.id = task.id or f"task-{len(self.tasks) + 1}"
        if any(one.id == task.id for one in self.tasks):
            raise DefinitionError(f"There is a task {task.id!r} already. Give each task its own id.")
        self.tasks.append(task)
        return task

    def task(self, task_id: str) -> Task:
        """The task of this id.

        Raises:
            DefinitionError: There is none.
        """
        for task in self.tasks:
            if task.id == task_id:
                return task
        raise DefinitionError(
            f"There is no task {task_id!r}.{did_you_mean(task_id, [t.id for t in self.tasks])}"
        )

    def next_task(self) -> Task | None:
        """The first task that waits, or ``None``."""
        return next((task for task in self.tasks if task.status is TaskStatus.PENDING), None)

    def start_task(self, task_id: str) -> Task:
        """Begin an attempt at a task, in EXECUTING only."""
        if self.phase is not Phase.EXECUTING:
            raise IllegalTransitionError(
                f"Task {task_id!r} cannot start in {self.phase.name}. Move to EXECUTING first."
            )
        task = self._move(task_id, TaskStatus.PENDING, TaskStatus.RUNNING)
        task.attempts += 1
        return task

    def complete_task(self, task_id: str, result: Any = None) -> Task:
        """Note a running task's result."""
        task = self._move(task_id, TaskStatus.RUNNING, TaskStatus.COMPLETED)
        task.result, task.error = result, ""
        return task

    def fail_task(self, task_id: str, error: str) -> bool:
        """Note a running task's failure. Returns whether it will be tried again."""
        task = self._move(task_id, TaskStatus.RUNNING, TaskStatus.FAILED)
        task.error = error
        again = task.attempts <= task.max_retries
        if again:
            task.status = TaskStatus.PENDING
        return again

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
            "tasks": [task.to_dict() for task in self.tasks],
            "history": [phase.value for phase in self.history],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskBasedStateMachine:
        """Rebuild a machine from :meth:`to_dict`."""
        machine = TaskBasedStateMachine(data["goal"], [Task.from_dict(one) for one in data["tasks"]])
        machine.phase = Phase(data["phase"])
        machine.history = [Phase(one) for one in data["history"]]
        return machine
