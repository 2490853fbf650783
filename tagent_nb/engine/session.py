"""What a run begins with: its id, what is known of it, its definition, and classes for its values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.memory.entries import new_run_id
from tagent_nb.engine.memory.load import find_run, read_memory
from tagent_nb.engine.memory.memory import PipelineMemory
from tagent_nb.engine.memory.store import not_stored
from tagent_nb.pipeline import Pipeline
from tagent_nb.runners import PythonRunner, StepRunner

if TYPE_CHECKING:
    from tagent_nb.engine.context import RunOptions
    from tagent_nb.runners import Models
    from tagent_nb.storage import StorageBackend


async def run_id_of(storage: StorageBackend, pipeline: Pipeline, options: RunOptions) -> str:
    """A new id, or the id of the run to carry on.

    Raises:
        NotStoredError: There is no such run.
    """
    if options.resume is False:
        return new_run_id()
    wanted = options.resume if isinstance(options.resume, str) else None
    return await find_run(storage, pipeline.name, wanted)


async def memory_of(
    storage: StorageBackend,
    pipeline: Pipeline,
    options: RunOptions,
    schemas: Mapping[str, type],
    run_id: str,
    last: PipelineMemory | None,
) -> tuple[PipelineMemory, dict[str, Any]]:
    """What is known of the run, and what it saved without storing it: it was stopped between the two.

    Args:
        last: Memory of the executor's last run: if that is the run, its definition is still at hand.

    Raises:
        StorageError: It cannot be read.
    """
    if options.resume is False:
        memory = PipelineMemory(pipeline.id, run_id, [step.name for step in pipeline.steps])
        memory.pipeline_name = pipeline.name
    else:
        memory = await read_memory(storage, pipeline.name, run_id, schemas)
        if last is not None and last.run_id == memory.run_id:
            memory.pipeline = last.pipeline
    memory.shared_data = pipeline.shared_context
    stored = await storage.memories(pipeline.id, schemas)
    late = not_stored(memory, stored)
    memory.memories = {**stored, **late}
    return memory, late


def definition_of(storage: StorageBackend, pipeline: Pipeline) -> dict[str, Any]:
    """The definition as it is recorded, where it is."""
    if not storage.durable:
        return {}
    from tagent_nb.pipeline import pipeline_to_dict

    bare = pipeline.snapshot()
    bare.inputs = {}  # their values are recorded by themselves
    # What cannot be rebuilt, such as a model object, must not keep a run from being recorded.
    return pipeline_to_dict(bare, strict=False)


class Runners(dict[str, StepRunner]):
    """Runners by kind. Those of agents are made when they are first asked for: not every pipeline has any."""

    def __init__(self) -> None:
        super().__init__(python=PythonRunner())
        self._models: Models | None = None

    def __missing__(self, kind: str) -> StepRunner:
        runner: StepRunner
        if kind == "agent":
            from tagent_nb.runners import AgentRunner

            runner = AgentRunner(self._shared())
        elif kind == "plan":
            from tagent_nb.runners import PlanRunner

            runner = PlanRunner(self._shared())
        else:
            raise KeyError(kind)
        self[kind] = runner
        return runner

    def _shared(self) -> Models:
        """The models of both kinds of agents: one client is enough for each."""
        if self._models is None:
            from tagent_nb.runners import Models

            self._models = Models()
        return self._models
