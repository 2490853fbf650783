"""One pipeline of a notebook and what belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tagent_nb.engine import PipelineExecutor, RunHandle
from tagent_nb.events import Event
from tagent_nb.pipeline import Pipeline, PipelineStep
from tagent_nb.results import PipelineResult, StepResult

if TYPE_CHECKING:
    from tagent_nb.storage import StorageBackend


class RunWatcher(Protocol):
    """One run, as a view sees it. Both are called on the run's loop and must return fast."""

    def __call__(self, event: Event, /) -> None:
        """Take an event."""

    def end(self, outcome: PipelineResult | BaseException) -> None:
        """Take the result or the error; called once."""


Watch = Callable[[], RunWatcher]
"""Called when a run begins; gives what watches it."""


@dataclass
class CellNames:
    """What the options of a step's cell name, to be looked up again before each run.

    Attributes:
        step: The step, as the cell made it.
        schema: Name of its output schema; empty without one.
        checks: Names of its checks.
        tools: Names and globs of its tools.
        model: Its model: the name of an object, or what the model is called; empty without one.
        objects: What each name stood for when it was last looked up, by option and name.
    """

    step: PipelineStep
    schema: str = ""
    checks: Sequence[str] = ()
    tools: Sequence[str] = ()
    model: str = ""
    objects: dict[tuple[str, str], Any] = field(default_factory=dict)

    def made(self, step: PipelineStep) -> bool:
        """Whether this is still the step of the cell, though a check was added to it in Python."""
        return step is self.step or (step.goal is self.step.goal and step.body is self.step.body)


@dataclass
class Workspace:
    """One pipeline of a notebook and what belongs to it.

    Attributes:
        pipeline: The definition.
        storage: Where its runs are recorded.
        where: As it was named: a folder, a URL or a backend; ``None`` is the notebook's own folder.
        keep_last: How many runs are kept when one ends; ``None`` is what ``where`` says, else all.
        cached: Whether unchanged steps are answered from the cache.
        recording: File whose calls answer agent steps; then every run is offline.
        max_concurrency: Most attempts at the same time; ``None`` as the executor has it.
        executor: The executor of the last run; ``None`` before the first.
        handle: The last run, which may still go on.
        watches: Called at the start of every run of this pipeline, however it is started.
        redefined: Steps put since the last run began: the states of them are no longer true.
        names: What the cells of steps name, by step.
        model_name: What ``%tagent_pipeline --model`` names, and what that stood for; ``None`` without it.
    """

    pipeline: Pipeline
    storage: StorageBackend
    where: StorageBackend | str | Path | None = None
    keep_last: int | None = None
    cached: bool = True
    recording: str | None = None
    max_concurrency: int | None = None
    executor: PipelineExecutor | None = None
    handle: RunHandle | None = None
    watches: list[Watch] = field(default_factory=list)
    redefined: set[str] = field(default_factory=set)
    names: dict[str, CellNames] = field(default_factory=dict)
    model_name: tuple[str, Any] | None = None

    @property
    def running(self) -> bool:
        """Whether a run goes on."""
        return self.handle is not None and not self.handle.done()

    @property
    def paused(self) -> bool:
        """Whether a run goes on, and starts nothing further for now."""
        memory = None if self.executor is None else self.executor.memory
        return self.running and memory is not None and memory.paused

    @property
    def result(self) -> PipelineResult | None:
        """The result of the last run of this kernel: live while it goes on, ``None`` before the first."""
        return None if self.executor is None else self.executor.result

    def states(self) -> dict[str, StepResult] | None:
        """States by step of the last run, without those that a redefinition made untrue."""
        memory = None if self.executor is None else self.executor.memory
        if memory is None:
            return None
        return {name: state for name, state in memory.steps.items() if name not in self.redefined}
