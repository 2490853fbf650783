"""Memories by pipeline, kept in storage, and the phases of a run."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, create_model

from tagent_nb import (
    FileStorageBackend,
    MemoryStorageBackend,
    Pipeline,
    PipelineExecutor,
    ResultCache,
    StepMemoryEntry,
    StepStatus,
    errors,
    events,
)
from tagent_nb.engine import PipelineMemory, PipelineMemoryManager, PipelineStateMachine, read_memory, submit
from tagent_nb.engine.memory.load import find_run, read_previous
from tagent_nb.naming import storage_id
from tagent_nb.pipeline import Phase
from tagent_nb.serde import StoredValue

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
from tagent_nb.engine.memory.load import PipelineMemoryManager

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


class TestGettingAStoredMemory:
    """``get_pipeline_memory`` holds what was stored, without another call."""

    def test_a_fresh_manager_has_what_another_saved(self, tmp_path: Path) -> None:
        storage = FileStorageBackend(tmp_path)
        first = PipelineMemoryManager(storage)
        memory = first.get_pipeline_memory("reviews")
        memory.save_step_result("score", Answer(score=3))
        asyncio.run(first.save("reviews"))
        fresh = PipelineMemoryManager(FileStorageBackend(tmp_path), {"Answer": Answer})
        got = fresh.get_pipeline_memory("reviews")
        assert got.run_id == memory.run_id
        assert got.get_step_result("score") == Answer(score=3)
        assert fresh.get_pipeline_memory("reviews") is got

    async def test_it_works_inside_a_running_loop(self, tmp_path: Path) -> None:
        first = PipelineMemoryManager(FileStorageBackend(tmp_path))
        first.get_pipeline_memory("reviews").save_step_result("a", 0)
        await first.save("reviews")
        fresh = PipelineMemoryManager(FileStorageBackend(tmp_path))
        assert fresh.get_pipeline_memory("reviews").has_step_result("a")

    def test_it_has_what_the_newest_run_recorded(self, tmp_path: Path) -> None:
        pipeline = Pipeline("sums").share(rate=2)

        @pipeline.task
        def one() -> int:
            return 1

        PipelineExecutor(pipeline, storage=tmp_path).run()
        memory = PipelineMemoryManager(FileStorageBackend(tmp_path)).get_pipeline_memory("sums")
        assert memory.get_step_result("one") == 1
        assert memory.shared_data == {"rate": 2}

    def test_on_the_loop_that_reads_it_is_refused_with_the_remedy(self, tmp_path: Path) -> None:
        manager = PipelineMemoryManager(FileStorageBackend(tmp_path))

        async def inside() -> None:
            manager.get_pipeline_memory("reviews")

        with pytest.raises(errors.RunError, match=r"await manager.load\('reviews'\)"):
            submit(inside()).result()

    def test_what_cannot_be_read_is_no_empty_memory(self, tmp_path: Path) -> None:
        pipeline = Pipeline("sums")
        pipeline.task(lambda: 1, name="one")
        PipelineExecutor(pipeline, storage=tmp_path).run()
        for file in tmp_path.rglob("*"):
            if file.is_file():
                file.write_bytes(b"x" * file.stat().st_size)
        with pytest.raises(errors.StorageError):
            PipelineMemoryManager(FileStorageBackend(tmp_path)).get_pipeline_memory("sums")

    async def test_saving_what_is_not_at_hand_writes_nothing(self) -> None:
        storage = MemoryStorageBackend()
        await PipelineMemoryManager(storage).save("reviews")
        assert await storage.runs(storage_id("reviews")) == []


class TestSharedData:
    async def test_it_persists(self, tmp_path: Path) -> None:
        manager = PipelineMemoryManager(FileStorageBackend(tmp_path))
        memory = manager.get_pipeline_memory("reviews")
        memory.shared_data["limits"] = {"most": 3}
        await manager.save("reviews")
        memory.shared_data["limits"]["most"] = 4  # a change inside counts, too
        memory.shared_data["answer"] = Answer(score=1)
        await manager.save("reviews")
        fresh = PipelineMemoryManager(FileStorageBackend(tmp_path), {"Answer": Answer})
        loaded = await fresh.load("reviews")
        assert loaded.shared_data == {"limits": {"most": 4}, "answer": Answer(score=1)}

    async def test_unchanged_it_is_not_written_again(self) -> None:
        storage = MemoryStorageBackend()
        manager = PipelineMemoryManager(storage)
        memory = manager.get_pipeline_memory("reviews")
        memory.shared_data["most"] = 3
        await manager.save("reviews")
        await manager.save("reviews")
        memory.save_step_result("a", 1)
        await manager.save("reviews")
        loaded = PipelineMemoryManager(storage)
        (await loaded.load("reviews")).save_step_result("b", 2)
        await loaded.save("reviews")
        stored = await storage.read_run(memory.pipeline_id, memory.run_id)
        assert [type(event).__name__ for event in stored] == [
            "RunStarted",
            "SharedDataSaved",
            "StepFinished",
            "StepFinished",
        ]

    async def test_what_cannot_be_stored_is_refused_with_the_path_to_it(self) -> None:
        manager = PipelineMemoryManager(MemoryStorageBackend())
        manager.get_pipeline_memory("reviews").shared_data["fn"] = {"inner": len}
        with pytest.raises(errors.EncodeError, match="inner"):
            await manager.save("reviews")


class TestDependenciesUsed:
    """The steps whose values a step read, in every configuration."""

    @staticmethod
    def flow() -> Pipeline:
        pipeline = Pipeline("flow")
        pipeline.task(lambda: [1, 2], name="load")
        pipeline.task(lambda: 1, name="other")

        @pipeline.task(depends_on=["other"])
        def total(load: list[int]) -> int:
            return sum(load)

        pipeline.step("say", "{{ total }} of {{ load[0] }}", depends_on=["other"], model="test")
        pipeline.step("each", "{{ item }}", map_over="load", model="test")
        return pipeline

    READ = {"load": [], "other": [], "total": ["load"], "say": ["total", "load"], "each": ["load"]}  # noqa: RUF012

    @pytest.mark.parametrize("durable", [True, False])
    @pytest.mark.parametrize("cached", [True, False])
    def test_with_and_without_cache_and_storage(self, tmp_path: Path, durable: bool, cached: bool) -> None:
        executor = PipelineExecutor(
            self.flow(),
            storage=tmp_path / "runs" if durable else None,
            cache=ResultCache(tmp_path / "cache") if cached else None,
        )
        assert executor.run().success
        assert executor.memory is not None
        used = {name: entry.dependencies_used for name, entry in executor.memory.step_results.items()}
        assert {name: sorted(read) for name, read in used.items()} == {
            name: sorted(read) for name, read in self.READ.items()
        }

    def test_for_results_that_are_saved_by_hand(self) -> None:
        state = PipelineStateMachine(self.flow(), PipelineMemoryManager())
        state.pipeline_memory.save_step_result("load", [1])
        state.pipeline_memory.save_step_result("total", 1)
        state.pipeline_memory.save_step_result("say", "1")
        state.pipeline_memory.save_step_result("elsewhere", 1)
        used = {name: entry.dependencies_used for name, entry in state.pipeline_memory.step_results.items()}
        assert used == {"load": [], "total": ["load"], "say": ["total", "load"], "elsewhere": []}


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

    async def test_what_is_not_stored_is_reported_with_what_is(self) -> None:
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
        state = machine()
        assert state.phase is Phase.INIT
        assert state.goal == "what it is for"
        state.apply(started())
        assert state.phase is Phase.EXECUTING
        state.apply(finished("a"))
        state.apply(finished("b"))
        state.apply(events.RunFinished(run_id=RUN, success=True))
        assert state.phase is Phase.COMPLETED
        assert state.history == [
            Phase.INIT,
            Phase.PLANNING,
            Phase.EXECUTING,
            Phase.EVALUATING,
            Phase.COMPLETED,
        ]

    def test_a_run_that_failed_is_failed(self) -> None:
        state = machine()
        state.apply(started())
        state.apply(events.RunFinished(run_id=RUN, success=False))
        assert state.phase is Phase.FAILED

    def test_a_run_can_be_paused_and_go_on(self) -> None:
        state = machine()
        state.apply(started())
        state.apply(events.RunPaused(run_id=RUN))
        assert state.phase is Phase.PAUSED
        state.apply(events.RunUnpaused(run_id=RUN))
        assert state.phase is Phase.EXECUTING

    def test_a_resumed_run_knows_what_is_done(self) -> None:
        state = machine()
        state.pipeline_memory.apply(started())
        state.pipeline_memory.apply(finished("a"))
        state.apply(events.RunResumed(run_id=RUN, steps=("a", "b"), kept=("a",)))
        assert state.phase is Phase.EXECUTING
        assert Phase.RESUMING in state.history
        assert [step.name for step in state.get_ready_steps()] == ["b"]

    def test_a_resumed_run_forgets_what_is_not_kept(self) -> None:
        state = machine()
        state.pipeline_memory.apply(started())
        state.pipeline_memory.apply(finished("a"))
        state.apply(events.RunResumed(run_id=RUN, steps=("a", "b")))
        assert [step.name for step in state.get_ready_steps()] == ["a"]

    def test_what_the_phase_does_not_allow_is_an_error(self) -> None:
        state = machine()
        with pytest.raises(errors.IllegalTransitionError):
            state.apply(events.RunPaused(run_id=RUN))
        state.apply(started())
        with pytest.raises(errors.IllegalTransitionError):
            state.apply(started())


class TestSteps:
    def test_the_scheduler_hears_of_every_step(self) -> None:
        state = machine()
        state.apply(started())
        step: dict[str, Any] = {"run_id": RUN, "step": "a"}
        seen = []
        for event in (
            events.StepStarted(**step),
            events.StepRetried(**step, attempt=1, error_type="E", message="m", delay=0.0),
            events.StepStarted(**step, attempt=2),
            events.FactLearned(**step, key="k", value=1),
            finished("a"),
        ):
            state.apply(event)
            seen.append(state.scheduler.status_of("a").value)
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
        state = machine()
        state.apply(started())
        change = state.apply(event)
        assert change is not None
        assert state.scheduler.status_of("a") is status
        assert change.ready == (["b"] if status.has_value else [])
        assert change.upstream_failed == ([] if status.has_value else [("b", "a")])
        assert state.progress == (1, 2)

    def test_an_item_is_not_its_step(self) -> None:
        state = machine()
        state.apply(started())
        assert state.apply(finished("a", item="0")) is None
        assert state.scheduler.status_of("a") is StepStatus.READY
        assert state.progress == (0, 2)

    def test_results_in_memory_count_as_completed(self) -> None:
        pipeline = chain()
        manager = PipelineMemoryManager()
        manager.get_pipeline_memory(pipeline.name).save_step_result("a", 0)
        state = PipelineStateMachine(pipeline, manager)
        assert state.scheduler.status_of("a") is StepStatus.COMPLETED
        assert [step.name for step in state.get_ready_steps()] == ["b"]

    def test_the_machine_as_plain_data(self) -> None:
        state = machine()
        state.apply(started())
        state.apply(finished("a"))
        data = state.to_dict()
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


class TestResultsSavedBesideTheMachine:
    """The specification's own loop: ask what is ready, run it, save its result in the memory."""

    def test_the_loop_of_the_specification_ends(self) -> None:
        state = machine(Pipeline("p").step("a", "g").step("b", "{{ a }}").step("c", "{{ a }} {{ b }}"))
        ran = []
        while ready := state.get_ready_steps():
            for step in ready:
                ran.append(step.name)
                state.pipeline_memory.save_step_result(step.name, None)
        assert ran == ["a", "b", "c"]
        assert state.progress == (3, 3)
        assert state.scheduler.is_done

    def test_entries_and_events_count_as_well(self) -> None:
        state = machine(Pipeline("p").step("a", "g").step("b", "{{ a }}").step("c", "g"))
        memory = state.pipeline_memory
        memory.step_results["a"] = StepMemoryEntry("a", "pid", 1, datetime.now(UTC), "x")
        assert [step.name for step in state.get_ready_steps()] == ["b", "c"]
        memory.apply(events.StepFailed(run_id=RUN, step="b", error_type="E", message="m"))
        memory.apply(finished("c", item="0"))  # an item is not its step
        memory.apply(finished("elsewhere"))  # nor a step of this pipeline
        assert [step.name for step in state.get_ready_steps()] == ["c"]
        assert state.progress == (2, 3)

    def test_a_value_for_a_failed_step_makes_those_below_ready(self) -> None:
        state = machine()
        state.apply(started())
        state.apply(events.StepFailed(run_id=RUN, step="a", error_type="E", message="m"))
        assert state.get_ready_steps() == []
        state.pipeline_memory.save_step_result("a", 1)
        assert [step.name for step in state.get_ready_steps()] == ["b"]

    def test_saving_and_applying_can_be_mixed(self) -> None:
        state = machine()
        state.pipeline_memory.save_step_result("a", 1)
        change = state.apply(finished("b"))
        assert change is not None
        assert state.scheduler.is_done


class TestStoringTheMachine:
    @staticmethod
    def worked() -> PipelineStateMachine:
        pipeline = Pipeline("work", "what it is for").step("a", "g", output_schema=Answer)
        pipeline.step("b", "{{ a }}").step("c", "g").step("d", "{{ c }}").step("e", "g").step("f", "{{ e }}")
        state = PipelineStateMachine(pipeline, PipelineMemoryManager())
        state.pipeline_memory.shared_data["rate"] = 2
        state.apply(started())
        state.apply(finished("a", Answer(score=2)))
        state.apply(events.StepFailed(run_id=RUN, step="c", error_type="E", message="m"))
        state.apply(events.StepSkipped(run_id=RUN, step="d", reason="r"))
        state.apply(events.StepCached(run_id=RUN, step="e", output=StoredValue.of((1, 2)), key="k"))
        state.apply(events.StepStarted(run_id=RUN, step="b"))
        return state

    def test_a_fresh_process_goes_on_where_it_was(self, tmp_path: Path) -> None:
        one = self.worked()
        (tmp_path / "state.json").write_text(json.dumps(one.to_dict()))
        program = """
import json, sys
from pathlib import Path
from pydantic import BaseModel
from tagent_nb import Pipeline, PipelineMemoryManager, PipelineStateMachine

class Answer(BaseModel):
    score: int

data = json.loads(Path(sys.argv[1]).read_text())
built = PipelineStateMachine.from_dict(data, schemas=[Answer])
pipeline = Pipeline("work", "what it is for").step("a", "g", output_schema=Answer)
pipeline.step("b", "{{ a }}").step("c", "g").step("d", "{{ c }}").step("e", "g").step("f", "{{ e }}")
restored = PipelineStateMachine(pipeline, PipelineMemoryManager()).restore(data)
for one in (built, restored):
    print([step.name for step in one.get_ready_steps()])
    print({name: status.value for name, status in one.scheduler.step_status.items()})
    print(one.pipeline_memory.run_id, one.phase.value, one.goal)
    print(one.pipeline_memory.get_step_result("a"), one.pipeline_memory.get_step_result("e"))
    print(one.pipeline_memory.shared_data, len(one.pipeline_memory.execution_history))
"""
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "state.json")],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[:5] == lines[5:]
        # What ran when the state was taken is ready again; all else is as it was.
        statuses = (
            "{'a': 'completed', 'b': 'ready', 'c': 'failed', 'd': 'skipped', 'e': 'cached', 'f': 'ready'}"
        )
        assert lines[:5] == [
            "['b', 'f']",
            statuses,
            f"{RUN} executing what it is for",
            "score=2 (1, 2)",
            "{'rate': 2} 5",
        ]

    def test_statuses_are_as_they_were(self) -> None:
        state = self.worked()
        again = PipelineStateMachine.from_dict(json.loads(json.dumps(state.to_dict())), schemas=[Answer])
        assert dict(again.scheduler.step_status) == {**state.scheduler.step_status, "b": StepStatus.READY}
        assert again.progress == state.progress
        assert again.history == state.history

    def test_a_value_that_cannot_be_stored_is_computed_again(self) -> None:
        state = machine()
        state.apply(finished("a", len))
        data = json.loads(json.dumps(state.to_dict()))
        again = PipelineStateMachine.from_dict(data, memory_manager=PipelineMemoryManager())
        assert again.pipeline_memory.steps["a"].output is not None
        assert (
            again.pipeline_memory.steps["a"].output.problem == state.pipeline_memory.steps["a"].output.problem
        )

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data.pop("run_id"),
            lambda data: data["steps"].update(a="done"),
            lambda data: data["events"].append({"event": "Nothing"}),
            lambda data: data["shared_data"].update(x={"$t": "no such type"}),
            lambda data: data.update(phase="nowhere"),
            lambda data: data.update(events=[3]),
        ],
    )
    def test_what_is_no_state_is_refused_and_nothing_changes(self, damage: Any) -> None:
        data = json.loads(json.dumps(self.worked().to_dict()))
        damage(data)
        state = machine(Pipeline("work").step("a", "g"))
        before = state.pipeline_memory
        with pytest.raises(errors.DefinitionError, match="This is not a stored state machine"):
            state.restore(data)
        assert state.pipeline_memory is before
        assert state.phase is Phase.INIT
        with pytest.raises(errors.DefinitionError):
            PipelineStateMachine.from_dict({"goal": ""})

    def test_the_state_of_another_pipeline_is_refused(self) -> None:
        with pytest.raises(errors.DefinitionError, match="the state of pipeline 'work'"):
            machine().restore(self.worked().to_dict())

    def test_classes_and_functions_that_are_missing_are_named(self) -> None:
        with pytest.raises(errors.DefinitionError, match=r"schemas=\[Answer\]"):
            PipelineStateMachine.from_dict(self.worked().to_dict())

    def test_two_schemas_of_one_name_each_read_the_values_of_their_own_step(self) -> None:
        def schema(kind: type) -> type[BaseModel]:
            return create_model("Result", n=(kind, ...))

        whole, part = schema(int), schema(float)
        pipeline = Pipeline("two").step("a", "g", output_schema=whole).step("b", "g", output_schema=part)
        state = PipelineStateMachine(pipeline, PipelineMemoryManager())
        state.pipeline_memory.save_step_result("a", whole(n=3))
        state.pipeline_memory.save_step_result("b", part(n=3.0))
        data = json.loads(json.dumps(state.to_dict()))
        again = PipelineStateMachine(pipeline, PipelineMemoryManager()).restore(data).pipeline_memory
        assert type(again.get_step_result("a")) is whole
        assert type(again.get_step_result("b")) is part
        assert type(again.get_step_result("b").n) is float
