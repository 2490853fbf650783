"""A result keeps every value, falsy ones too, and knows which step was the last in time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tagent_nb import Pipeline, PipelineExecutor, StepContext
from tagent_nb.errors import NotStoredError, UnknownStepError
from tagent_nb.pipeline.codec import StoredValue
from tagent_nb.pipeline.models import StepStatus
from tagent_nb.pipeline.result import ItemResult, OutputMap, PipelineResult, StepResult


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
    told = (
        "The value of step 'odd' was not stored, so only the process that ran it had it (output.x[0]: an "
        "object of class builtins.complex cannot be stored. Return plain data, a dataclass, a pydantic model "
        "or a DataFrame). Run the step again: force=['odd'], or %tagent_run --force odd."
    )
    for read in (lambda: opened["odd"], lambda: opened.step_outputs["odd"]):
        with pytest.raises(NotStoredError) as caught:
            read()
        assert str(caught.value) == told
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
    one, other = PipelineResult("p", True, 0.0), PipelineResult("p", True, 0.0)
    one.warnings.append("x")
    one.learned_facts["k"] = 1
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
