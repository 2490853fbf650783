"""What has no value says why, wherever it is asked for."""

from __future__ import annotations

import pytest

from tagent_nb import Pipeline, PipelineExecutor, PipelineResult, PipelineStep, StepStatus, UnknownStepError
from tagent_nb.results import StepResult
from tagent_nb.results.records import no_value


@pytest.fixture
async def result() -> PipelineResult:
    pipeline = Pipeline("p")
    for name, code, options in (
        ("bad", "raise ValueError('no rows')", {}),
        ("after", "bad", {}),
        ("never", "1", {"when": "False"}),
        ("rows", "[1, 0]", {}),
        ("each", "1 // item", {"map_over": "rows"}),
    ):
        pipeline.put(PipelineStep.from_cell(name, code, python=True, max_retries=0, **options))
    return await PipelineExecutor(pipeline).execute()


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ("bad", "it failed (ValueError: no rows). result.error_details['bad'] has its traceback."),
        ("after", "it was skipped (step 'bad' failed)."),
        ("never", "it was skipped (condition not met: False)."),
        ("each", "1 of 2 items failed. result.output_frame('each') has its items."),
    ],
)
async def test_a_step_without_a_value_says_why(result: PipelineResult, step: str, why: str) -> None:
    with pytest.raises(UnknownStepError) as caught:
        result[step]
    assert str(caught.value) == f"Step {step!r} of run {result.run_id!r} has no value: {why}"


async def test_an_unknown_step_gets_a_suggestion_and_the_names_of_all(result: PipelineResult) -> None:
    with pytest.raises(
        UnknownStepError, match=r"has no step 'row'. Did you mean 'rows'\? Steps: bad, after,"
    ):
        result["row"]


def test_one_that_has_not_ended_says_where_it_stands() -> None:
    def message(status: StepStatus) -> str:
        return no_value({"a": StepResult("a", status)}, "a", "r")

    assert message(StepStatus.PENDING).endswith("has no value: it has not run.")
    assert message(StepStatus.RUNNING).endswith("has no value: it is running.")
    assert message(StepStatus.CANCELLED).endswith("has no value: it was stopped.")
