"""A result keeps every value, falsy ones too, and knows which step was the last in time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tagent_nb import (
    FileStorageBackend,
    Pipeline,
    PipelineExecutor,
    PipelineMemory,
    PipelineMemoryManager,
    ResultCache,
    StepContext,
    events,
)
from tagent_nb.errors import CorruptRecordError, DefinitionError, NotStoredError, UnknownStepError
from tagent_nb.pipeline import StepStatus
from tagent_nb.results import ItemResult, OutputMap, PipelineResult, StepResult
from tagent_nb.serde import StoredValue


class Answer(BaseModel):
    label: str


def result_of(
    outputs: dict[str, Any], ended: dict[str, float] | None = None, **fields: Any
) -> PipelineResult:
    steps = {
        name: StepResult(name, StepStatus.COMPLETED, StoredValue.of(value), ended_at=(ended or {}).get(name))
        for name, value in outputs.items()
    }
    stored = OutputMap({name: StoredValue.of(value) for name, value in outputs.items()})
    return PipelineResult("p", True, 1.0, step_outputs=stored, steps=steps, **fields)


def test_every_field_of_the_specification_is_there() -> None:
    result = PipelineResult(
        pipeline_name="p",
        success=True,
        execution_time=1.0,
        total_cost=0.5,
        cost_per_step={"a": 0.5},
        token_usage={},
        step_outputs={"a": Answer(label="x")},
        step_metadata={"a": {}},
        final_output=Answer(label="y"),
        learned_facts={"k": 1},
        saved_memories={},
        failed_steps=[],
        error_details={},
    )
    assert result.get_step_output("a", Answer) == Answer(label="x")
    assert result.get_final_output_or_last_step() == Answer(label="y")


async def test_a_value_that_was_not_stored_is_no_none(tmp_path: Path) -> None:
    """The process that made it has it; in a run that is opened again, the error says so."""
    pipeline = Pipeline("odd")
    pipeline.task(made, name="odd")
    pipeline.task(nothing)
    executor = PipelineExecutor(pipeline, storage=tmp_path / "runs")
    assert (await executor.execute())["odd"] == {"x": [1j]}
    opened = await executor.load_result()
    message = (
        "The value of step 'odd' was not stored, so only the process that ran it had it (output.x[0]: an "
        "object of class builtins.complex cannot be stored. Return plain data, a dataclass, a pydantic model "
        "or a DataFrame). Run the step again: force=['odd'], or %tagent_run --force odd."
    )
    for read in (lambda: opened["odd"], lambda: opened.step_outputs["odd"]):
        with pytest.raises(NotStoredError) as caught:
            read()
        assert str(caught.value) == message
    assert opened["nothing"] is None
    assert "odd" in opened.step_outputs
    assert list(opened.step_outputs) == ["odd", "nothing"]
    assert repr(opened.step_outputs).startswith("{'odd': (not stored: output.x[0]: an object of class")
    assert repr(opened.step_outputs).endswith("'nothing': None}")
    assert opened.to_frame().loc["odd", "value"].startswith("(not stored: output.x[0]")
    assert "not stored" in opened._repr_html_()


def made() -> dict[str, list[complex]]:
    return {"x": [1j]}


def nothing() -> None:
    return None


@pytest.mark.parametrize("value", [None, 0, "", [], {}, False, 0.0])
def test_falsy_values_are_values(value: Any) -> None:
    result = result_of({"a": value})
    assert result["a"] == value
    assert result.get_step_output("a", type(value)) == value
    assert result.get_step_output("a") == value
    assert result.get_final_output_or_last_step() == value
    assert "a" in result.step_outputs


def test_a_value_of_another_type_is_none() -> None:
    result = result_of({"a": 1})
    assert result.get_step_output("a", str) is None
    assert result.get_step_output("a", int) == 1
    assert result.get_step_output("nothing", int) is None


def test_a_falsy_final_output_counts() -> None:
    assert result_of({"a": 1}, final_output=0).get_final_output_or_last_step() == 0


def test_the_last_step_is_the_last_in_time_not_in_the_alphabet() -> None:
    assert result_of({"z": 1, "a": 2}, {"z": 2.0, "a": 5.0}).get_final_output_or_last_step() == 2
    assert result_of({"z": 1, "a": 2}, {"z": 5.0, "a": 2.0}).get_final_output_or_last_step() == 1


def test_without_times_the_last_one_listed_is_the_last() -> None:
    assert result_of({"b": 1, "a": 2}).get_final_output_or_last_step() == 2
    by_hand = PipelineResult("p", True, 0.0, step_outputs={"b": 1, "a": 2})
    assert by_hand.get_final_output_or_last_step() == 2


def test_without_any_value_there_is_no_last_step() -> None:
    assert PipelineResult("p", False, 0.0).get_final_output_or_last_step() is None


def test_an_unknown_step_is_one_clear_error() -> None:
    with pytest.raises(UnknownStepError) as caught:
        result_of({"load": 1}, run_id="run-1")["laod"]
    assert str(caught.value) == ("Run 'run-1' has no step 'laod'. Did you mean 'load'? Steps: load.")
    with pytest.raises(KeyError, match="Run 'p' has no step 'x'. Steps: none"):
        PipelineResult("p", True, 0.0)["x"]


def test_the_map_of_outputs_decodes_only_what_is_read() -> None:
    outputs = OutputMap({"good": StoredValue.of(1), "damaged": StoredValue.from_blob(b"{", "d")})
    assert list(outputs) == ["good", "damaged"]
    assert len(outputs) == 2
    assert outputs["good"] == 1
    assert OutputMap({"a": StoredValue.of(1)}) == {"a": 1}
    assert repr(OutputMap({"a": StoredValue.of(1)})) == "{'a': 1}"


def test_a_step_without_an_output_has_no_value() -> None:
    assert StepResult("a").value is None
    assert StepResult("a", output=StoredValue.of(3)).value == 3


def test_what_the_cache_saved_is_the_sum_of_what_is_known() -> None:
    steps = {
        "a": StepResult("a", saved_cost=0.25),
        "b": StepResult("b", saved_cost=None),
        "c": StepResult("c", saved_cost=0.5),
    }
    assert PipelineResult("p", True, 0.0, steps=steps).saved_cost == 0.75


def test_results_do_not_share_their_containers() -> None:
    changed, other = PipelineResult("p", True, 0.0), PipelineResult("p", True, 0.0)
    changed.warnings.append("x")
    changed.learned_facts["k"] = 1
    assert other.warnings == []
    assert other.learned_facts == {}


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, "<PipelineResult 'p': completed, 1 values, 1.0 s, $0.0000, run not recorded>"),
        ({"run_id": "r", "total_cost": 0.5, "unpriced_steps": ["a"]}, "$0.5000 and unknown prices, run r>"),
        ({"run_id": "r", "unpriced_steps": ["a"]}, "1.0 s, unknown prices, run r>"),
        ({"cancelled": True}, "cancelled"),
    ],
)
def test_the_repr_is_one_line_without_values(fields: dict[str, Any], shown: str) -> None:
    assert shown in repr(result_of({"a": "x" * 1000}, **fields))


def test_an_item_starts_pending() -> None:
    assert ItemResult("k", 0).status is StepStatus.PENDING


@pytest.mark.parametrize("kind", ["runs", "runs.db"])
def test_a_stored_result_counts_attempts_as_the_live_one_did(kind: str, tmp_path: Path) -> None:
    """Of steps and items, of those that failed too."""
    pipeline = Pipeline("attempts")

    @pipeline.task
    def load() -> list[int]:
        return [1, 2]

    @pipeline.task(map_over="load", max_retries=1)
    def each(item: int, context: StepContext) -> int:
        if context.attempt == 1 and item == 2:
            raise OSError("once")
        return item

    @pipeline.task(max_retries=1)
    def bad() -> None:
        raise OSError("always")

    @pipeline.task
    def nothing() -> list[int]:
        return []

    @pipeline.task(map_over="nothing")
    def no_item(item: int) -> int:
        return item

    where = f"sqlite:///{tmp_path / kind}" if kind.endswith("db") else tmp_path / kind
    live = PipelineExecutor(pipeline, storage=where, retry_delay=0.0).run()
    stored = asyncio.run(PipelineExecutor(pipeline, storage=where).load_result())
    counts = {name: step.attempts for name, step in live.steps.items()}
    assert counts == {"load": 1, "each": 3, "bad": 2, "nothing": 1, "no_item": 0}
    assert {name: step.attempts for name, step in stored.steps.items()} == counts
    assert {key: item.attempts for key, item in (stored.steps["each"].items or {}).items()} == {
        key: item.attempts for key, item in (live.steps["each"].items or {}).items()
    }


class TestFinalOutput:
    """A pipeline or a step says whose value is the final output; all views of the result have it."""

    @staticmethod
    def flow(**options: Any) -> Pipeline:
        pipeline = Pipeline("flow", **options)
        pipeline.task(lambda: [1, 2], name="load")
        pipeline.task(lambda load: sum(load), name="total")
        pipeline.task(lambda: "later", name="other", depends_on=["total"])
        return pipeline

    @staticmethod
    def by_step() -> Pipeline:
        pipeline = TestFinalOutput.flow()
        return pipeline.put(pipeline.get_step("total").with_(final=True))

    @staticmethod
    def by_function() -> Pipeline:
        def doubled(total: int) -> int:
            return 2 * total

        return TestFinalOutput.flow(final=doubled)

    def test_the_pipeline_names_a_step(self, tmp_path: Path) -> None:
        executor = PipelineExecutor(self.flow(final="total"), storage=tmp_path)
        result = executor.run()
        assert (result.final_step, result.final_output) == ("total", 3)
        assert result.get_final_output_or_last_step() == 3
        assert "final output 3" in repr(result)
        assert "Final output (total):</span> 3" in result._repr_html_()
        assert result.to_frame()["final"].to_dict() == {"load": False, "total": True, "other": False}
        assert result.to_dict()["final_output"] == 3
        again = PipelineResult.from_json(result.to_json())
        assert (again.final_step, again.final_output) == ("total", 3)
        # What another process reads from storage says the same.
        reopened = PipelineExecutor(self.flow(final="total"), storage=tmp_path).run(resume=True)
        assert reopened.final_output == 3
        memory = PipelineMemoryManager(executor.storage).get_pipeline_memory("flow")
        assert memory.to_result().final_output == 3

    def test_a_step_says_so(self, tmp_path: Path) -> None:
        result = PipelineExecutor(self.by_step(), storage=tmp_path).run()
        assert (result.final_step, result.final_output) == ("total", 3)
        memory = PipelineMemoryManager(FileStorageBackend(tmp_path)).get_pipeline_memory("flow")
        assert memory.to_result().final_output == 3

    def test_a_function_makes_it(self) -> None:
        result = PipelineExecutor(self.by_function()).run()
        assert (result.final_step, result.final_output) == ("doubled", 6)
        assert result["doubled"] == 6

    @pytest.mark.parametrize("value", [None, 0, "", []])
    def test_falsy_values_are_final_outputs(self, value: Any) -> None:
        pipeline = Pipeline("p", final="a")
        pipeline.task(lambda: value, name="a")
        pipeline.task(lambda: "last", name="b", depends_on=["a"])
        assert PipelineExecutor(pipeline).run().get_final_output_or_last_step() == value

    def test_without_one_nothing_changes(self) -> None:
        result = PipelineExecutor(self.flow()).run()
        assert (result.final_step, result.final_output) == ("", None)
        assert result.get_final_output_or_last_step() == "later"
        assert "final" not in result.to_frame()
        assert "inal output" not in repr(result) + result._repr_html_()

    def test_a_final_step_that_failed_is_said(self) -> None:
        pipeline = Pipeline("p", final="a")
        pipeline.task(lambda: 1 / 0, name="a", max_retries=0)
        result = PipelineExecutor(pipeline).run()
        assert result.final_output is None
        assert "no final output: step 'a' has no value" in repr(result)
        assert "none: its step has no value" in result._repr_html_()

    def test_a_run_until_another_step_has_none(self) -> None:
        assert PipelineExecutor(self.flow(final="total")).run(until="load").final_step == ""

    def test_a_value_that_cannot_be_read_is_none_and_said_where_it_is_read(self) -> None:
        memory = PipelineMemory("pid")
        memory.pipeline = Pipeline("p", final="a")
        output = StoredValue.from_blob(b"{", "d")
        memory.apply(events.StepFinished(run_id="r", step="a", output=output))
        result = memory.to_result()
        assert result.final_output is None
        with pytest.raises(CorruptRecordError):
            result["a"]

    def test_definitions_that_contradict_are_refused(self) -> None:
        assert self.flow(final="totl").validate() == [
            "Pipeline 'flow': its final output is that of unknown step 'totl'. Did you mean 'total'? "
            "Name one of its steps."
        ]
        both = self.by_step()
        both.final = "other"
        assert "several final steps: 'total', 'other'" in both.validate()[0]
        both.final = "total"
        assert both.validate() == []
        both.put(both.get_step("load").with_(final=True))
        assert "several final steps: 'load', 'total'" in both.validate()[0]
        with pytest.raises(DefinitionError, match="final"):
            Pipeline("p").step("a", "g", final="yes")
        with pytest.raises(DefinitionError):
            Pipeline("p", final=3)  # type: ignore[arg-type]

    def test_it_is_stored_with_the_definition(self) -> None:
        for pipeline in (Pipeline("p", final="a").step("a", "g"), Pipeline("p").step("a", "g", final=True)):
            again = Pipeline.from_json(pipeline.to_json())
            assert again == pipeline
            assert again.final_step == "a"


class TestStepMetadata:
    """``step_metadata`` holds attempts, seconds, tokens, tool calls, whether cached, and an agent's model."""

    def test_it_is_there_for_every_kind_of_step(self, tmp_path: Path) -> None:
        pipeline = Pipeline("p", model="test")
        pipeline.task(lambda: [1, 2], name="load")
        pipeline.step("say", "Say {{ load }}.")
        pipeline.step("each", "Say {{ item }}.", map_over="load")
        pipeline.task(lambda load: 1 / 0, name="broken", max_retries=1, retry_on=ArithmeticError)
        executor = PipelineExecutor(pipeline, cache=ResultCache(tmp_path), retry_delay=0.0)
        first, second = executor.run().step_metadata, executor.run().step_metadata
        for notes in (first, second):
            assert set(notes) == {"load", "say", "each", "broken"}
            names = {"attempts", "seconds", "cached", "input_tokens", "output_tokens", "tool_calls"}
            assert all(names <= set(step) for step in notes.values())
            assert notes["say"]["model"] == notes["each"]["model"] == "test"
            assert notes["broken"]["cached"] is False
        assert [first[name]["cached"] for name in ("load", "say", "each")] == [False] * 3
        assert [second[name]["cached"] for name in ("load", "say", "each")] == [True] * 3
        assert [first[name]["attempts"] for name in ("load", "say", "each", "broken")] == [1, 1, 2, 2]
        assert first["say"]["output_tokens"] > 0
        assert second["say"]["output_tokens"] == 0


def test_a_result_has_the_whole_set_of_json_methods() -> None:
    result = PipelineExecutor(TestFinalOutput.flow()).run()
    again = PipelineResult.from_dict(result.to_dict())
    assert again.to_dict() == result.to_dict()
    for broken in ([], {"kind": "pipeline"}, {**result.to_dict(), "steps": 3}):
        with pytest.raises(CorruptRecordError):
            PipelineResult.from_dict(broken)  # type: ignore[arg-type]
