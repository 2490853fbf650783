"""The specification of the core, line by line: models, scheduler, state, storage. One line of it, one test.

The specification is in four tasks; each section here is one of them, and each test quotes its line. Details
are tested where the parts are; what stands here is that every line holds.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import pickle
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai.models.test import TestModel
from redis_server import RedisServer

import tagent_nb
from tagent_nb import (
    DependencyType,
    ExecutionMode,
    FileStorageBackend,
    Pipeline,
    PipelineExecutor,
    PipelineMemory,
    PipelineMemoryManager,
    PipelineResult,
    PipelineScheduler,
    PipelineStateMachine,
    PipelineStep,
    SQLiteStorageBackend,
    StepContext,
    StepMemoryEntry,
    StepStatus,
    StorageBackend,
    TaskBasedStateMachine,
    TokenUsage,
    open_storage,
)


class Verdict(BaseModel):
    label: str
    score: int = 0


def three_steps() -> Pipeline:
    pipeline = Pipeline("reviews", "Judge reviews.")
    pipeline.step("load", "Load.").step("judge", "Judge.", depends_on=["load"])
    return pipeline.step("report", "Report.", depends_on=["judge"])


# -- 1.1 Pipeline models -------------------------------------------------------------------------


def test_a_step_is_a_dataclass_with_all_required_fields() -> None:
    """Create `PipelineStep` dataclass with all required fields."""
    assert dataclasses.is_dataclass(PipelineStep)
    step = PipelineStep(name="a", goal="Do it.")
    fields = {
        "name": "a",
        "goal": "Do it.",
        "constraints": [],
        "depends_on": [],
        "execution_mode": ExecutionMode.SERIAL,
        "timeout": None,
        "retry_count": 0,
        "max_retries": 3,
        "tools_filter": None,
        "output_schema": None,
    }
    values = {name: getattr(step, name) for name in fields}
    # Sequences of a step are tuples, since steps do not change.
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()} == fields


@pytest.mark.parametrize(("field", "message"), [("name", "name"), ("goal", "goal")])
def test_a_step_without_name_or_goal_is_a_value_error(field: str, message: str) -> None:
    """`if not self.name: raise ValueError("Step name cannot be empty")`, and the same for the goal."""
    with pytest.raises(ValueError, match=f"(?i){message}"):
        PipelineStep(**{"name": "a", "goal": "Do it.", field: ""})


def test_a_step_has_an_output_schema_and_validates_outputs() -> None:
    """Add `output_schema` field for Pydantic model definitions; `validate_output`."""
    step = PipelineStep(name="judge", goal="Judge.", output_schema=Verdict)
    assert step.validate_output({"label": "good"}) == Verdict(label="good")
    verdict = Verdict(label="bad")
    assert step.validate_output(verdict) is verdict
    with pytest.raises(ValueError, match="judge"):
        step.validate_output("good")
    assert PipelineStep(name="a", goal="Do it.").validate_output("as it is") == "as it is"


def test_a_pipeline_is_built_by_calls_that_follow_each_other() -> None:
    """Create `Pipeline` class with fluent builder interface."""
    pipeline = Pipeline("reviews", "Judge reviews.")
    assert (pipeline.name, pipeline.description) == ("reviews", "Judge reviews.")
    assert (list(pipeline.steps), list(pipeline.global_constraints)) == ([], [])
    assert dict(pipeline.shared_context) == {}
    assert pipeline.step("load", "Load.").step("judge", "Judge.", depends_on=["load"]) is pipeline
    assert [step.name for step in pipeline.steps] == ["load", "judge"]


def test_results_have_the_fields_and_keep_outputs_by_step() -> None:
    """Create enhanced `PipelineResult` class; `step_outputs`, `learned_facts`, `saved_memories`, costs."""
    pipeline = three_steps()
    executor = PipelineExecutor(pipeline, model=TestModel())
    result = executor.run()
    assert isinstance(result, PipelineResult)
    assert (result.pipeline_name, result.success, result.execution_time > 0) == ("reviews", True, True)
    assert set(result.step_outputs) == set(result.step_metadata) == {"load", "judge", "report"}
    assert (dict(result.learned_facts), dict(result.saved_memories)) == ({}, {})
    assert set(result.cost_per_step) == set(result.token_usage) == {"load", "judge", "report"}
    assert isinstance(result.total_cost, float)
    assert all(isinstance(usage, TokenUsage) for usage in result.token_usage.values())
    assert (list(result.failed_steps), dict(result.error_details)) == ([], {})


def test_outputs_are_got_by_step_and_type() -> None:
    """`get_step_output(step_name, expected_type)` gives the output of that type, or None."""
    pipeline = Pipeline("one").step("judge", "Judge.", output_schema=Verdict)
    result = PipelineExecutor(pipeline, model=TestModel(custom_output_args={"label": "good"})).run()
    assert result.get_step_output("judge", Verdict) == Verdict(label="good")
    assert result.get_step_output("judge", StepMemoryEntry) is None
    assert result.get_step_output("none", Verdict) is None


def test_the_final_output_or_that_of_the_last_step() -> None:
    """`get_final_output_or_last_step()`; an optional final aggregated output."""
    pipeline = Pipeline("two")
    pipeline.task(lambda: 1, name="z")
    pipeline.task(lambda z: z + 1, name="a")
    result = PipelineExecutor(pipeline).run()
    assert result.final_output is None
    assert result.get_final_output_or_last_step() == 2
    final = Pipeline("two", final="z")
    final.task(lambda: 1, name="z")
    final.task(lambda z: z + 1, name="a")
    result = PipelineExecutor(final).run()
    assert (result.final_output, result.get_final_output_or_last_step()) == (1, 1)


def test_modes_and_kinds_of_dependencies_are_enums() -> None:
    """Create `ExecutionMode` and `DependencyType` enums."""
    assert issubclass(ExecutionMode, Enum)
    assert issubclass(DependencyType, Enum)
    assert {"SERIAL", "CONCURRENT"} <= set(ExecutionMode.__members__)


def test_a_pipeline_lists_its_problems() -> None:
    """Add validation logic: duplicate names and unknown dependencies, as a list of texts."""
    pipeline = three_steps().step("end", "End.", depends_on=["nowhere"])
    (problem,) = pipeline.validate()
    assert "'end'" in problem
    assert "'nowhere'" in problem
    assert three_steps().validate() == []


def test_a_second_step_of_a_name_is_a_problem() -> None:
    """Check for duplicate step names: `errors.append("Duplicate step names found")`."""
    (problem,) = three_steps().step("load", "Load again.").validate()
    assert problem.startswith("Duplicate step names found")
    assert "'load'" in problem


@pytest.mark.parametrize("form", ["json", "pickle"])
def test_models_survive_both_formats(form: str) -> None:
    """Serialization supports JSON and pickle formats: steps, pipelines and results."""
    pipeline = three_steps()
    result = PipelineExecutor(pipeline, model=TestModel()).run()
    for value in (pipeline.get_step("judge"), pipeline, result):
        again = (
            type(value).from_json(value.to_json()) if form == "json" else pickle.loads(pickle.dumps(value))
        )
        assert again.to_dict() == value.to_dict()
        assert (again == value) or value is result


def test_the_models_have_type_hints() -> None:
    """All models have comprehensive type hints: every parameter and every return."""
    for kind in (PipelineStep, Pipeline, PipelineResult, PipelineScheduler, PipelineMemory):
        for name, function in inspect.getmembers(kind, inspect.isfunction):
            if name.startswith("_") or function.__module__.partition(".")[0] != "tagent_nb":
                continue
            hints = function.__annotations__
            parameters = set(inspect.signature(function).parameters) - {"self"}
            assert parameters | {"return"} <= set(hints), f"{kind.__name__}.{name}"


# -- 1.2 Pipeline scheduler ----------------------------------------------------------------------


def test_the_scheduler_has_a_graph_of_step_names() -> None:
    """Implement dependency graph builder using step names."""
    scheduler = PipelineScheduler(three_steps())
    graph = {name: list(needed) for name, needed in scheduler.dependency_graph.items()}
    assert graph == {"load": [], "judge": ["load"], "report": ["judge"]}


def test_the_order_has_every_step_behind_what_it_needs() -> None:
    """Create topological sort algorithm for execution order: `get_execution_order()`."""
    pipeline = Pipeline("order").step("c", "C.", depends_on=["b", "a"]).step("b", "B.", depends_on=["a"])
    pipeline.step("a", "A.")
    assert PipelineScheduler(pipeline).get_execution_order() == ["a", "b", "c"]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_cycle_is_a_value_error_that_names_it(length: int) -> None:
    """Add circular dependency detection: `raise ValueError`."""
    pipeline = Pipeline("cycle")
    for number in range(length):
        pipeline.step(f"s{number}", "Go.", depends_on=[f"s{(number + 1) % length}"])
    with pytest.raises(ValueError, match="s0"):
        PipelineScheduler(pipeline)


def test_ready_steps_and_statuses_follow_what_is_done() -> None:
    """Implement `get_ready_steps()` method; add step status tracking."""
    scheduler = PipelineScheduler(three_steps())
    done = []
    while ready := list(scheduler.get_ready_steps()):
        for step in ready:
            name = getattr(step, "name", step)
            scheduler.step_status[name] = StepStatus.COMPLETED
            done.append(name)
    assert done == ["load", "judge", "report"]
    assert set(scheduler.step_status.values()) == {StepStatus.COMPLETED}


def test_a_deadlock_is_detected() -> None:
    """Create deadlock detection mechanism: nothing is ready, nothing runs, and not all is done."""
    scheduler = PipelineScheduler(three_steps())
    assert not scheduler.has_deadlock()
    scheduler.mark("load", StepStatus.FAILED)
    assert list(scheduler.get_ready_steps()) == []
    assert scheduler.has_deadlock()
    assert set(scheduler.blocked_steps()) <= {"judge", "report"}


def test_duplicate_names_are_an_error_of_the_scheduler() -> None:
    """A scheduler of two steps of one name has no order that means anything."""
    with pytest.raises(ValueError, match="'load'"):
        PipelineScheduler(three_steps().step("load", "Load again."))


# -- 1.3 State management ------------------------------------------------------------------------


def test_the_memory_has_its_parts_and_keeps_results() -> None:
    """`PipelineMemory(pipeline_id)`: save_step_result, get_step_result, has_step_result."""
    memory = PipelineMemory("reviews")
    assert (memory.pipeline_id, dict(memory.step_results), dict(memory.shared_data)) == ("reviews", {}, {})
    assert (list(memory.execution_history), memory.current_step) == ([], None)
    memory.save_step_result("load", [1, 2])
    assert memory.has_step_result("load")
    assert not memory.has_step_result("judge")
    assert (memory.get_step_result("load"), memory.get_step_result("judge")) == ([1, 2], None)


def test_an_entry_says_what_when_and_by_which_execution() -> None:
    """Save step result with timestamp and metadata; execution history."""
    memory = PipelineMemory("reviews")
    memory.save_step_result("load", [1, 2])
    entry = memory.step_results["load"]
    assert isinstance(entry, StepMemoryEntry)
    assert (entry.step_name, entry.pipeline_id, entry.data) == ("load", "reviews", [1, 2])
    assert isinstance(entry.timestamp, datetime)
    assert isinstance(entry.execution_id, str)
    assert (list(entry.dependencies_used), dict(entry.metadata)) == ([], {})
    assert "load" in json.dumps([dict(event) for event in memory.execution_history], default=str)


def test_the_state_machine_extends_the_task_based_one() -> None:
    """Extend `TaskBasedStateMachine` for pipeline context."""
    pipeline = three_steps()
    machine = PipelineStateMachine(pipeline, PipelineMemoryManager(open_storage("memory:")))
    assert isinstance(machine, TaskBasedStateMachine)
    assert machine.pipeline is pipeline
    assert isinstance(machine.scheduler, PipelineScheduler)
    assert machine.pipeline_memory.pipeline_id


def test_the_loop_of_the_specification_ends() -> None:
    """`get_ready_steps()` against `pipeline_memory`: progress moves with what is saved."""
    machine = PipelineStateMachine(three_steps(), PipelineMemoryManager(open_storage("memory:")))
    done = []
    while ready := machine.get_ready_steps():
        for step in ready:
            machine.pipeline_memory.save_step_result(step.name, step.name.upper())
            done.append(step.name)
    assert done == ["load", "judge", "report"]


def test_state_can_be_serialized_and_restored() -> None:
    """Create state serialization for checkpointing; add pipeline resumption logic."""
    manager = PipelineMemoryManager(open_storage("memory:"))
    machine = PipelineStateMachine(three_steps(), manager)
    machine.pipeline_memory.save_step_result("load", [1])
    state = json.loads(json.dumps(machine.to_dict()))
    other = PipelineStateMachine(three_steps(), PipelineMemoryManager(open_storage("memory:")))
    other.restore(state)
    assert [step.name for step in other.get_ready_steps()] == ["judge"]
    assert other.pipeline_memory.get_step_result("load") == [1]


def test_steps_share_a_context() -> None:
    """Add shared context management between steps."""
    pipeline = Pipeline("shared").share(limit=2)

    @pipeline.task
    def first(context: StepContext) -> list[int]:
        return list(range(context.shared["limit"]))

    assert PipelineExecutor(pipeline).run()["first"] == [0, 1]


def test_memory_persists_across_restarts(tmp_path: Path) -> None:
    """Memory persists across pipeline restarts, and a run goes on where it stopped."""
    calls, mended = tmp_path / "calls", tmp_path / "mended"

    def executor() -> PipelineExecutor:
        pipeline = Pipeline("restarted")

        @pipeline.task
        def load() -> int:
            with calls.open("a") as file:
                file.write("load ")
            return 1

        @pipeline.task(max_retries=0)
        def report(load: int) -> int:
            with calls.open("a") as file:
                file.write("report ")
            if not mended.exists():
                raise ValueError("not yet")
            return load + 1

        return PipelineExecutor(pipeline, storage=tmp_path / "runs")

    assert not executor().run().success
    mended.touch()
    assert executor().run(resume=True)["report"] == 2
    assert calls.read_text() == "load report report "


# -- 1.4 Persistence -----------------------------------------------------------------------------


def test_the_interface_of_storage_is_four_async_methods() -> None:
    """`StorageBackend(ABC)`: save, load, delete, list_pipelines, all async."""
    for name in ("save", "load", "delete", "list_pipelines"):
        assert inspect.iscoroutinefunction(getattr(StorageBackend, name))


async def four(storage: StorageBackend) -> None:
    data = {"text": "ä", "at": datetime(2026, 1, 2), "where": Path("a/b"), "rows": [{"n": 1}]}
    await storage.save("reviews", data)
    assert await storage.load("reviews") == data
    assert await storage.list_pipelines() == ["reviews"]
    await storage.save("reviews", {"text": "newer"})
    assert await storage.load("reviews") == {"text": "newer"}
    await storage.delete("reviews")
    assert await storage.list_pipelines() == []


async def test_file_storage(tmp_path: Path) -> None:
    """Implement file-based storage; `FileStorageBackend(base_path)`, dates and paths in the data."""
    storage = FileStorageBackend(tmp_path / "store")
    await four(storage)
    await storage.close()


def test_the_folder_of_file_storage_has_the_specified_default() -> None:
    """`base_path: str = "./pipeline_memory"`."""
    (default, *_) = inspect.signature(FileStorageBackend).parameters.values()
    assert str(default.default).removeprefix("./") == "pipeline_memory"


async def test_sqlite_storage(tmp_path: Path) -> None:
    """Add database storage option (SQLite)."""
    storage = SQLiteStorageBackend(tmp_path / "store.db")
    await four(storage)
    await storage.close()


@pytest.mark.requires("redis-server")
async def test_redis_storage(tmp_path: Path) -> None:
    """Create Redis storage for distributed execution."""
    server = RedisServer(tmp_path)
    try:
        storage = open_storage(server.url)
        await four(storage)
        await storage.close()
    finally:
        server.kill()


async def test_a_damaged_file_is_recovered(tmp_path: Path) -> None:
    """Add automatic backup and recovery: a copy of what was overwritten answers for a damaged file."""
    storage = FileStorageBackend(tmp_path / "store")
    await storage.save("reviews", {"version": 1})
    await storage.save("reviews", {"version": 2})
    (newest,) = [
        path
        for path in (tmp_path / "store").rglob("*")
        if path.is_file() and b'"version":2' in path.read_bytes()
    ]
    newest.write_bytes(newest.read_bytes()[:-10])
    assert await storage.load("reviews") == {"version": 1}
    assert any(str(newest) in problem for problem in storage.problems)
    await storage.close()


async def test_retention(tmp_path: Path) -> None:
    """Implement data retention policies: by count and age."""
    storage = open_storage(tmp_path / "runs")
    pipeline = Pipeline("kept")
    pipeline.task(lambda: 1, name="one")
    executor = PipelineExecutor(pipeline, storage=storage)
    for _ in range(3):
        await executor.execute()
    assert len(await storage.prune(pipeline.id, keep_last=1)) == 2
    assert len(await storage.runs(pipeline.id)) == 1
    assert await storage.prune(pipeline.id, older_than=timedelta(days=1)) == []
    await storage.close()


# -- Testing, documentation ----------------------------------------------------------------------


def test_every_public_name_is_documented() -> None:
    """API documentation for all public methods: each class and function, and each of their methods."""
    missing = []
    for name in tagent_nb.__all__:
        thing: Any = getattr(tagent_nb, name)
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        parts = {name: thing}
        if inspect.isclass(thing):
            own = {k: v for k, v in vars(thing).items() if inspect.isfunction(v) and not k.startswith("_")}
            parts |= {f"{name}.{method}": function for method, function in own.items()}
        missing += [called for called, part in parts.items() if not inspect.getdoc(part)]
    assert missing == []


@pytest.mark.parametrize(
    "page",
    [
        "adr/0001-steps-are-immutable.md",
        "tutorial/first-pipeline.md",
        "how-to/migrate-from-tagent.md",
        "how-to/troubleshooting.md",
    ],
)
def test_the_documents_are_there(page: str) -> None:
    """Architecture decision records, usage examples, migration guides, troubleshooting guides."""
    assert (Path(__file__).parent.parent / "docs" / page).stat().st_size > 500
