"""Memories by pipeline, kept in storage, and the phases of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tagent_nb import FileStorageBackend, MemoryStorageBackend, Pipeline, StepStatus, errors, events
from tagent_nb.engine.state import (
    PipelineMemory,
    PipelineMemoryManager,
    PipelineStateMachine,
    find_run,
    read_memory,
    read_previous,
)
from tagent_nb.pipeline.codec import StoredValue
from tagent_nb.pipeline.names import storage_id
from tagent_nb.pipeline.state_machine import Phase

RUN = "run-1"


class Answer(BaseModel):
    score: int


def chain() -> Pipeline:
    """a -> b"""
    return Pipeline("chain", "what it is for").step("a", "A").step("b", "{{ a }}")


def machine(pipeline: Pipeline | None = None) -> PipelineStateMachine:
    pipeline = pipeline or chain()
    manager = PipelineMemoryManager()
    manager.put(pipeline.name, PipelineMemory(pipeline.id, RUN, [step.name for step in pipeline.steps]))
    return PipelineStateMachine(pipeline, manager)


def started(*steps: str) -> events.RunStarted:
    return events.RunStarted(run_id=RUN, pipeline="chain", steps=steps or ("a", "b"))


def finished(step: str, value: Any = 1, **fields: Any) -> events.StepFinished:
    return events.StepFinished(run_id=RUN, step=step, output=StoredValue.of(value), **fields)


class TestMemoryManager:
    def test_a_pipeline_has_one_memory(self) -> None:
        manager = PipelineMemoryManager()
        memory = manager.get_pipeline_memory("reviews")
        assert manager.get_pipeline_memory("reviews") is memory
        assert manager.get_pipeline_memory("others") is not memory
        assert memory.pipeline_name == "reviews"
        assert memory.pipeline_id == storage_id("reviews")

    def test_a_given_memory_takes_its_place(self) -> None:
        manager = PipelineMemoryManager()
        memory = PipelineMemory("pid")
        manager.put("reviews", memory)
        assert manager.get_pipeline_memory("reviews") is memory

    async def test_saved_results_are_loaded_by_a_fresh_manager(self, tmp_path: Path) -> None:
        manager = PipelineMemoryManager(FileStorageBackend(tmp_path))
        memory = manager.get_pipeline_memory("reviews")
        memory.save_step_result("load", [1, 2])
        memory.save_step_result("score", Answer(score=3))
        await manager.save("reviews")
        fresh = PipelineMemoryManager(FileStorageBackend(tmp_path))
        loaded = await fresh.load("reviews", schemas={"Answer": Answer})
        assert loaded.run_id == memory.run_id
        assert loaded.get_step_result("load") == [1, 2]
        assert loaded.get_step_result("score") == Answer(score=3)
        assert loaded.pipeline_name == "reviews"
        assert fresh.get_pipeline_memory("reviews") is loaded

    def test_saved_results_are_loaded_in_another_process(self, tmp_path: Path) -> None:
        program = """
import asyncio, sys
from tagent_nb import FileStorageBackend
from tagent_nb.engine.state import PipelineMemoryManager

async def main(act, folder):
    manager = PipelineMemoryManager(FileStorageBackend(folder))
    if act == "save":
        manager.get_pipeline_memory("reviews").save_step_result("load", {"rows": 2})
        await manager.save("reviews")
    else:
        print((await manager.load("reviews")).get_step_result("load"))

asyncio.run(main(*sys.argv[1:]))
"""
        for act in ("save", "load"):
            done = subprocess.run(
                [sys.executable, "-c", program, act, str(tmp_path)],
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr
        assert done.stdout == "{'rows': 2}\n"

    async def test_saving_again_writes_only_what_is_new(self) -> None:
        storage = MemoryStorageBackend()
        manager = PipelineMemoryManager(storage)
        memory = manager.get_pipeline_memory("reviews")
        memory.save_step_result("a", 1)
        await manager.save("reviews")
        await manager.save("reviews")
        memory.save_step_result("b", 2)
        await manager.save("reviews")
        stored = await storage.read_run(memory.pipeline_id, memory.run_id)
        assert [type(event).__name__ for event in stored] == ["RunStarted", "StepFinished", "StepFinished"]

    async def test_a_loaded_memory_goes_on_where_it_was(self) -> None:
        storage = MemoryStorageBackend()
        first = PipelineMemoryManager(storage)
        first.get_pipeline_memory("reviews").save_step_result("a", 1)
        await first.save("reviews")
        second = PipelineMemoryManager(storage)
        loaded = await second.load("reviews")
        loaded.save_step_result("b", 2)
        await second.save("reviews")
        assert len(await storage.read_run(loaded.pipeline_id, loaded.run_id)) == 3

    async def test_a_memory_that_began_with_a_run_is_stored_as_it_is(self) -> None:
        storage = MemoryStorageBackend()
        manager = PipelineMemoryManager(storage)
        memory = manager.get_pipeline_memory("chain")
        memory.apply(started())
        memory.apply(finished("a"))
        await manager.save("chain")
        stored = await storage.read_run(memory.pipeline_id, memory.run_id)
        assert [type(event).__name__ for event in stored] == ["RunStarted", "StepFinished"]

    async def test_without_storage_memories_live_as_long_as_the_manager(self) -> None:
        manager = PipelineMemoryManager()
        manager.get_pipeline_memory("reviews").save_step_result("a", 1)
        await manager.save("reviews")
        assert manager.get_pipeline_memory("reviews").get_step_result("a") == 1
        with pytest.raises(errors.NotStoredError, match="No run of pipeline 'reviews' is stored"):
            await manager.load("reviews")


class TestReading:
    async def test_the_newest_run_is_read_unless_another_is_named(self) -> None:
        storage = MemoryStorageBackend()
        pid = storage_id("chain")
        for number, run_id in enumerate(("run-1", "run-2")):
            start = events.RunStarted(run_id=run_id, at=float(number), pipeline="chain", steps=("a",))
            done = events.StepFinished(
                run_id=run_id, at=float(number), step="a", output=StoredValue.of(number)
            )
            await storage.append(pid, run_id, [start, done])
        assert (await read_memory(storage, "chain")).get_step_result("a") == 1
        assert (await read_memory(storage, "chain", "run-1")).get_step_result("a") == 0
        assert await find_run(storage, "chain") == "run-2"
        assert await find_run(storage, "chain", "run-1") == "run-1"
        previous = await read_previous(storage, "chain", "run-2")
        assert previous is not None
        assert previous.run_id == "run-1"

    async def test_what_is_not_stored_is_told_with_what_is(self) -> None:
        storage = MemoryStorageBackend()
        with pytest.raises(errors.NotStoredError, match="Run it first, under the same name and storage"):
            await read_memory(storage, "chain")
        with pytest.raises(errors.NotStoredError, match="Stored are: none"):
            await find_run(storage, "chain", "run-1")
        assert await read_previous(storage, "chain", "run-1") is None
        await storage.append(storage_id("chain"), RUN, [started()])
        with pytest.raises(errors.NotStoredError, match="Did you mean 'run-1'\\? Stored are: run-1"):
            await find_run(storage, "chain", "run-2")


class TestPhases:
    def test_a_run_goes_through_its_phases(self) -> None:
        one = machine()
        assert one.phase is Phase.INIT
        assert one.goal == "what it is for"
        one.apply(started())
        assert one.phase is Phase.EXECUTING
        one.apply(finished("a"))
        one.apply(finished("b"))
        one.apply(events.RunFinished(run_id=RUN, success=True))
        assert one.phase is Phase.COMPLETED
        assert one.history == [
            Phase.INIT,
            Phase.PLANNING,
            Phase.EXECUTING,
            Phase.EVALUATING,
            Phase.COMPLETED,
        ]

    def test_a_run_that_failed_is_failed(self) -> None:
        one = machine()
        one.apply(started())
        one.apply(events.RunFinished(run_id=RUN, success=False))
        assert one.phase is Phase.FAILED

    def test_a_run_can_be_paused_and_go_on(self) -> None:
        one = machine()
        one.apply(started())
        one.apply(events.RunPaused(run_id=RUN))
        assert one.phase is Phase.PAUSED
        one.apply(events.RunUnpaused(run_id=RUN))
        assert one.phase is Phase.EXECUTING

    def test_a_resumed_run_knows_what_is_done(self) -> None:
        one = machine()
        one.pipeline_memory.apply(started())
        one.pipeline_memory.apply(finished("a"))
        one.apply(events.RunContinued(run_id=RUN, steps=("a", "b"), kept=("a",)))
        assert one.phase is Phase.EXECUTING
        assert Phase.RESUMING in one.history
        assert [step.name for step in one.get_ready_steps()] == ["b"]

    def test_a_resumed_run_forgets_what_is_not_kept(self) -> None:
        one = machine()
        one.pipeline_memory.apply(started())
        one.pipeline_memory.apply(finished("a"))
        one.apply(events.RunContinued(run_id=RUN, steps=("a", "b")))
        assert [step.name for step in one.get_ready_steps()] == ["a"]

    def test_what_the_phase_does_not_allow_is_an_error(self) -> None:
        one = machine()
        with pytest.raises(errors.IllegalTransitionError):
            one.apply(events.RunPaused(run_id=RUN))
        one.apply(started())
        with pytest.raises(errors.IllegalTransitionError):
            one.apply(started())


class TestSteps:
    def test_the_scheduler_hears_of_every_step(self) -> None:
        one = machine()
        one.apply(started())
        step: dict[str, Any] = {"run_id": RUN, "step": "a"}
        seen = []
        for event in (
            events.StepStarted(**step),
            events.StepRetried(**step, attempt=1, error_type="E", message="m", delay=0.0),
            events.StepStarted(**step, attempt=2),
            events.FactLearned(**step, key="k", value=1),
            finished("a"),
        ):
            one.apply(event)
            seen.append(one.scheduler.status_of("a").value)
        assert seen == ["running", "waiting", "running", "running", "completed"]

    @pytest.mark.parametrize(
        ("event", "status"),
        [
            (finished("a"), StepStatus.COMPLETED),
            (events.StepCached(run_id=RUN, step="a", output=StoredValue.of(1), key="k"), StepStatus.CACHED),
            (events.StepFailed(run_id=RUN, step="a", error_type="E", message="m"), StepStatus.FAILED),
            (events.StepSkipped(run_id=RUN, step="a", reason="r"), StepStatus.SKIPPED),
            (events.StepCancelled(run_id=RUN, step="a"), StepStatus.CANCELLED),
        ],
    )
    def test_an_end_says_what_follows(self, event: events.StepEvent, status: StepStatus) -> None:
        one = machine()
        one.apply(started())
        change = one.apply(event)
        assert change is not None
        assert one.scheduler.status_of("a") is status
        assert change.ready == (["b"] if status.has_value else [])
        assert change.doomed == ([] if status.has_value else [("b", "a")])
        assert one.progress == (1, 2)

    def test_an_item_is_not_its_step(self) -> None:
        one = machine()
        one.apply(started())
        assert one.apply(finished("a", item="0")) is None
        assert one.scheduler.status_of("a") is StepStatus.READY
        assert one.progress == (0, 2)

    def test_results_in_memory_count_as_completed(self) -> None:
        pipeline = chain()
        manager = PipelineMemoryManager()
        manager.get_pipeline_memory(pipeline.name).save_step_result("a", 0)
        one = PipelineStateMachine(pipeline, manager)
        assert one.scheduler.status_of("a") is StepStatus.COMPLETED
        assert [step.name for step in one.get_ready_steps()] == ["b"]

    def test_the_machine_as_plain_data(self) -> None:
        one = machine()
        one.apply(started())
        one.apply(finished("a"))
        data = one.to_dict()
        assert json.loads(json.dumps(data)) == data
        expected = {
            "goal": "what it is for",
            "phase": "executing",
            "tasks": [],
            "history": ["init", "planning", "executing"],
            "pipeline": "chain",
            "run_id": RUN,
            "steps": {"a": "completed", "b": "ready"},
        }
        assert {name: data[name] for name in expected} == expected

    def test_what_cannot_run_is_refused(self) -> None:
        with pytest.raises(errors.CycleError):
            machine(Pipeline("round").step("a", "{{ b }}").step("b", "{{ a }}"))
        with pytest.raises(errors.UnknownStepError):
            machine(Pipeline("gap").step("a", "{{ b }}"))
