"""Steps with samples: several answers to one goal, each paid for once, and the one that they agree on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import BaseModel
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from tagent_nb import (
    DefinitionError,
    Event,
    FileStorageBackend,
    MemoryStorageBackend,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    PipelineStep,
    Price,
    ResultCache,
    ResumeConflictError,
    StepFinished,
    UnknownStepError,
)
from tagent_nb.display import step_facts
from tagent_nb.graph.drawing import about_step
from tagent_nb.pipeline import map_warnings, step_hints

PRICES = {"function:dice": Price(1.0, 10.0)}


class Label(BaseModel):
    label: str
    why: str = ""


class Dice:
    """A model that gives the next of its answers each time it is asked; a callable answer is called."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.prompts: list[str] = []
        self.model = FunctionModel(self.answer, model_name="dice")

    @property
    def calls(self) -> int:
        return len(self.prompts)

    async def answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.prompts.append(str(messages[-1].parts[-1].content))  # type: ignore[union-attr]
        value = self.answers[(self.calls - 1) % len(self.answers)]
        if isinstance(value, Exception):
            raise value
        usage = RequestUsage(input_tokens=10, output_tokens=1)
        if not info.output_tools:
            return ModelResponse(parts=[TextPart(str(value))], usage=usage)
        return ModelResponse(parts=[ToolCallPart(info.output_tools[0].name, value)], usage=usage)


def labels(*texts: str) -> list[dict[str, str]]:
    return [{"label": text, "why": f"because {place}"} for place, text in enumerate(texts)]


def mapped(dice: Dice, rows: Any, samples: int = 3, **options: Any) -> Pipeline:
    pipeline = Pipeline("votes", model=dice.model)
    pipeline.task(lambda: rows, name="load")
    pipeline.step(
        "judge", "Judge {{ load }}", map_over="load", output_schema=Label, samples=samples, **options
    )
    return pipeline


def runs(
    pipeline: Pipeline,
    folder: Path | None = None,
    observer: Callable[[Event], None] | None = None,
    **options: Any,
) -> PipelineExecutor:
    storage = MemoryStorageBackend() if folder is None else FileStorageBackend(folder / "runs")
    cache = None if folder is None else ResultCache(folder / "cache")
    options.setdefault("max_concurrency", 1)
    return PipelineExecutor(
        pipeline,
        storage=storage,
        cache=cache,
        prices=PRICES,
        retry_delay=0.0,
        observers=[] if observer is None else [observer],
        **options,
    )


def test_the_value_is_the_answer_that_most_samples_agree_on() -> None:
    """Of a step that is not mapped, too; every answer is there to be looked at, and is paid."""
    dice = Dice("cat", "dog", "dog")
    pipeline = Pipeline("one", model=dice.model)
    pipeline.step("guess", "Which animal?", samples=3)
    pipeline.step("report", "Say {{ guess }}")
    result = runs(pipeline).run()
    assert result["guess"] == "dog"
    assert dice.calls == 4
    assert "dog" in dice.prompts[3]
    frame = result.samples_frame("guess")
    assert frame["value"].tolist() == ["cat", "dog", "dog"]
    assert frame.index.name == "sample"
    wide = result.output_frame("guess")
    assert wide.drop(columns="error").to_dict("records") == [
        {
            "value": "dog",
            "value_agreement": pytest.approx(2 / 3),
            "value_0": "cat",
            "value_1": "dog",
            "value_2": "dog",
        }
    ]
    assert result.token_usage["guess"].requests == 3
    assert result.cost_per_step["guess"] == pytest.approx(3 * (10 * 1e-6 + 1e-5))


def test_each_row_of_a_mapped_step_has_its_samples_and_what_they_agree_on() -> None:
    """Columns for each field: the value, how many agree with it, each sample; the index is the source's."""
    rows = pd.DataFrame({"text": ["a", "b"]}, index=pd.Index([7, 9], name="id"))
    dice = Dice(*labels("bad", "good", "good", "bad", "bad", "bad"))
    result = runs(mapped(dice, rows)).run()
    assert [label.label for label in result["judge"]] == ["good", "bad"]
    assert [label.why for label in result["judge"]] == ["because 1", "because 3"]
    frame = result.output_frame("judge", source=True)
    assert list(frame.columns) == [
        "text",
        *("label", "why"),
        *("label_agreement", "label_0", "label_1", "label_2"),
        *("why_agreement", "why_0", "why_1", "why_2"),
        "error",
    ]
    assert frame.index.equals(rows.index)
    assert frame["label_agreement"].tolist() == pytest.approx([2 / 3, 1.0])
    assert frame["label_0"].tolist() == ["bad", "bad"]
    assert list(result.output_frame("judge", samples=False).columns) == ["label", "why", "error"]
    long = result.samples_frame("judge")
    assert long.index.tolist() == [(7, 0), (7, 1), (7, 2), (9, 0), (9, 1), (9, 2)]
    assert long.index.names == ["id", "sample"]
    assert list(result.steps["judge"].items or ()) == ["7#0", "7#1", "7#2", "9#0", "9#1", "9#2"]
    assert result.step_metadata["judge"]["samples"] == 3


async def test_more_samples_pay_for_the_new_ones_only(tmp_path: Path) -> None:
    """And the first is the answer of a step without samples."""
    dice = Dice(*labels("good", "bad", "bad", "good", "bad"))
    alone = await runs(mapped(dice, ["x"], samples=1), tmp_path).execute()
    assert dice.calls == 1
    for samples, calls in ((3, 3), (5, 5), (2, 5), (1, 5)):
        executor = runs(mapped(dice, ["x"], samples=samples), tmp_path)
        plan = (await executor.plan())["judge"]
        assert (plan.items, plan.items_done) == (samples, min(samples, dice.calls))
        result = await executor.execute()
        assert dice.calls == calls
        assert result.success
    assert result["judge"] == alone["judge"]


async def test_equal_samples_under_way_are_calls_of_their_own(tmp_path: Path) -> None:
    """Equal units share one call; samples are there to differ. Equal rows share theirs, sample by sample."""
    dice = Dice("a", "b", "c")
    pipeline = Pipeline("same", model=dice.model, inputs={"load": ["x", "x"]})
    pipeline.step("guess", "Guess {{ load }}", map_over="load", samples=3)
    result = await runs(pipeline, tmp_path, max_concurrency=8).execute()
    assert dice.calls == 3
    frame = result.samples_frame("guess")
    assert frame["value"].tolist()[:3] == frame["value"].tolist()[3:]
    assert sorted(frame["value"].tolist()[:3]) == ["a", "b", "c"]


async def test_the_plan_counts_each_sample_and_equals_what_runs(tmp_path: Path) -> None:
    dice = Dice(*labels("good", "bad", "bad"))
    executor = runs(mapped(dice, ["x", "y"]), tmp_path)
    await executor.execute(until="load")
    plan = await executor.plan()
    quote = plan["judge"].quote
    assert quote is not None
    assert (quote.units, quote.calls, plan.calls) == (6, 6, 6)
    result = await executor.execute()
    assert dice.calls == 6
    assert (await executor.plan())["judge"].action == "cached"
    assert result.steps["judge"].items_total == 6
    again = await executor.execute()
    assert (again["judge"], again.total_cost, dice.calls) == (result["judge"], 0.0, 6)
    assert again.steps["judge"].status.value == "cached"


async def test_where_the_rows_are_not_there_yet_the_last_run_says_how_many_samples_there_were(
    tmp_path: Path,
) -> None:
    dice = Dice(*labels("good"))
    pipeline = mapped(dice, ["x", "y"], samples=2)
    await runs(pipeline, tmp_path).execute()
    pipeline.put(pipeline.get_step("judge").with_(samples=5))
    pipeline.task(lambda: ["x", "y", "z"], name="load")
    quote = (await runs(pipeline, tmp_path).plan())["judge"].quote
    assert quote is not None
    assert quote.units == 10
    lone = Pipeline("lone", model=dice.model)
    lone.task(lambda: "x", name="load")
    lone.step("guess", "Guess {{ load }}", samples=4)
    await runs(lone, tmp_path).execute()
    lone.task(lambda: "y", name="load")
    plan = await runs(lone, tmp_path).plan()
    assert plan["guess"].quote is not None
    assert plan["guess"].quote.units == 4


async def test_a_plan_says_that_the_number_of_samples_has_changed(tmp_path: Path) -> None:
    dice = Dice(*labels("good"))
    pipeline = mapped(dice, ["x"], samples=2)
    await runs(pipeline, tmp_path).execute()
    pipeline.put(pipeline.get_step("judge").with_(samples=3, cache=False))
    plan = await runs(pipeline, tmp_path).plan()
    assert plan["judge"].why == "samples changed from 2 to 3"
    pipeline.task(lambda: ["x", "y"], name="load")
    assert "samples changed from 2 to 3" in (await runs(pipeline, tmp_path).plan())["judge"].why


async def test_failed_samples_alone_are_asked_again(tmp_path: Path) -> None:
    dice = Dice("a", NameError("no"), "b", "c")
    pipeline = Pipeline("again", model=dice.model)
    pipeline.step("guess", "Guess", samples=3, max_retries=0)
    result = await runs(pipeline, tmp_path).execute()
    assert not result.success
    assert result.steps["guess"].error.startswith(
        "2 of 3 samples succeeded; all must (--min-success 0.65 lets 35 % fail). The first failure is sample "
        "'1': "
    )
    assert result.output_frame("guess")["value_1"].isna().tolist() == [True]
    assert dice.calls == 3
    again = await runs(pipeline, tmp_path).execute(resume=True)
    assert (again["guess"], dice.calls) == ("a", 4)
    assert again.samples_frame("guess")["value"].tolist() == ["a", "c", "b"]


def test_min_success_lets_samples_fail_but_not_all_of_them() -> None:
    """What is agreed on is what the others say; a row of which all have failed has no value."""
    error = NameError("no")
    dice = Dice(*labels("good"), error, *labels("good"), error, error, error)
    result = runs(mapped(dice, ["x", "y"], min_success=0.3, max_retries=0)).run()
    assert [None if label is None else label.label for label in result["judge"]] == ["good", None]
    frame = result.output_frame("judge")
    assert frame["label_agreement"].isna().tolist() == [False, True]
    assert frame["label_agreement"].tolist()[0] == 1.0
    assert frame["error"].isna().tolist() == [True, False]
    assert "NameError" in frame["error"].tolist()[1]
    alone = Pipeline("alone", model=Dice(error).model)
    alone.step("guess", "Guess", samples=2, min_success=0.0, max_retries=0)
    failed = runs(alone).run()
    assert failed.failed_steps == ["guess"]


async def test_a_run_that_was_stopped_goes_on_with_the_samples_that_are_left(tmp_path: Path) -> None:
    dice = Dice(*labels(*["good"] * 9))
    pipeline = mapped(dice, ["x", "y"])
    stop: list[Callable[[], None]] = []

    def stopping(event: Event) -> None:
        if isinstance(event, StepFinished) and event.item == "0#1":
            stop[0]()

    executor = runs(pipeline, tmp_path, stopping)
    stop.append(executor.cancel)
    stopped = await executor.execute()
    assert stopped.cancelled
    left = 6 - dice.calls
    assert left > 0
    stored = await runs(pipeline, tmp_path).load_result()
    assert stored.output_frame("judge")["label"].tolist()[0] == "good"
    again = await runs(pipeline, tmp_path).execute(resume=True)
    assert again.success
    assert dice.calls == 6


async def test_a_finished_run_is_not_carried_on_with_another_number_of_samples(tmp_path: Path) -> None:
    """Unless that is said; then what is recorded is not paid again, even without a cache."""
    dice = Dice("a", "b")
    pipeline = Pipeline("more", model=dice.model)
    pipeline.step("guess", "Guess", samples=2)
    pipeline.task(lambda guess: 1 / 0, name="broken", max_retries=0)
    await runs(pipeline, tmp_path).execute()
    pipeline.put(pipeline.get_step("guess").with_(samples=3, cache=False))
    with pytest.raises(ResumeConflictError, match="samples changed from 2 to 3"):
        await runs(pipeline, tmp_path).execute(resume=True)
    await runs(pipeline, tmp_path).execute(resume=True, on_change="rerun")
    assert dice.calls == 3


async def test_each_sample_waits_for_its_approval(tmp_path: Path) -> None:
    """As each item of a map does; those that are approved are kept while others wait."""
    dice = Dice("a", "b", "b")
    pipeline = Pipeline("careful", model=dice.model)
    pipeline.step("guess", "Guess", samples=3, approve=True)
    waiting = await runs(pipeline, tmp_path).execute(wait=False)
    assert waiting.waiting_steps == ["guess"]
    executor = runs(pipeline, tmp_path)
    requests = executor.pending_approvals()
    assert sorted(str(request.item) for request in requests) == ["0", "1", "2"]
    executor.approve("guess", item="0")
    executor.approve("guess", item="1")
    executor.approve("guess", item="2")
    result = await executor.execute(resume=True)
    assert (result["guess"], dice.calls) == ("b", 3)


def test_items_that_a_condition_leaves_out_have_no_samples() -> None:
    dice = Dice(*labels("good"))
    result = runs(mapped(dice, [1, 5], samples=2, when="item > 3")).run()
    assert dice.calls == 2
    assert result["judge"][0] is None
    frame = result.output_frame("judge")
    assert frame["error"].tolist()[0].startswith("skipped")
    assert result.step_metadata["judge"]["items_skipped"] == 2


async def test_samples_are_replayed_from_a_recording_each_with_its_own_answer(tmp_path: Path) -> None:
    """The first sample, too, where its answer came from a run without samples."""
    dice = Dice(*labels("one", "two", "three"))
    await runs(mapped(dice, ["x"], samples=1), tmp_path).execute()
    executor = runs(mapped(dice, ["x"]), tmp_path)
    result = await executor.execute()
    await executor.export_recording(tmp_path / "calls.json")
    silent = mapped(Dice(NameError("asked")), ["x"])
    replayed = await PipelineExecutor(
        silent, storage=MemoryStorageBackend(), recording=tmp_path / "calls.json"
    ).execute()
    assert replayed.samples_frame("judge").equals(result.samples_frame("judge"))


def test_samples_are_compared_and_judged_by_what_they_agree_on() -> None:
    rows = pd.DataFrame({"text": ["a", "b"], "truth": ["good", "good"]})
    first = runs(mapped(Dice(*labels("good", "bad", "good", "bad", "bad", "good")), rows)).run()
    second = runs(mapped(Dice(*labels("good", "good", "bad", "bad", "bad", "bad")), rows)).run()
    compared = first.compare(second)
    assert compared.steps.loc["judge", "rows"] == 2
    assert set(compared.rows["field"]) <= {"label", "why"}
    assert compared.confusion("judge.label").to_numpy().sum() == 2
    assert first.evaluate("judge.label", "load.truth").accuracy == 0.5
    alone = Pipeline("alone", model=Dice("a", "b", "b").model)
    alone.step("guess", "Guess", samples=3)
    again = Pipeline("again", model=Dice("a").model)
    again.step("guess", "Guess")
    differences = runs(alone).run().compare(runs(again).run())
    assert differences.rows[["step", "field", "alone", "again"]].values.tolist() == [
        ["guess", "value", "b", "a"]
    ]
    assert differences.rows["item"].isna().all()


def test_the_graph_and_the_card_say_how_many_samples_there_are() -> None:
    pipeline = mapped(Dice("a"), ["x"])
    pipeline.step("guess", "Guess {{ judge }}", samples=2)
    pipeline.step("each", "Say {{ item }}", map_over="load", flatten=True)
    steps = {step.name: step for step in pipeline.steps}
    assert about_step(steps["judge"]).endswith("3 x each of load")
    assert about_step(steps["guess"]) == "agent · 2 samples"
    assert about_step(steps["each"]) == "agent · each in load"
    facts = dict(step_facts(pipeline, steps["judge"]))
    assert facts["samples"] == "3, of which the agreed one is its value"
    assert dict(step_facts(pipeline, steps["each"]))["each of"] == "load, flattened"


def test_a_result_with_samples_is_read_back_from_json() -> None:
    result = runs(mapped(Dice(*labels("good", "bad", "good")), ["x"])).run()
    back = PipelineResult.from_json(result.to_json(), schemas=[Label])
    assert back.output_frame("judge").equals(result.output_frame("judge"))
    assert back.samples_frame("judge").equals(result.samples_frame("judge"))
    assert back.samples == {"judge": 3}


def test_columns_of_nested_answers_have_samples_of_their_own() -> None:
    class Place(BaseModel):
        city: str

    class Answer(BaseModel):
        place: Place

    dice = Dice(*({"place": {"city": city}} for city in ("Rome", "Bonn", "Bonn")))
    pipeline = Pipeline("nested", model=dice.model)
    pipeline.step("guess", "Guess", output_schema=Answer, samples=3)
    result = runs(pipeline).run()
    frame = result.output_frame("guess", nested="columns")
    assert list(frame.columns)[:3] == ["place.city", "place.city_agreement", "place.city_0"]
    assert frame["place.city"].tolist() == ["Bonn"]
    assert result.output_frame("guess")["place_agreement"].tolist() == [pytest.approx(2 / 3)]
    assert result.samples_frame("guess", nested="columns")["place.city"].tolist() == ["Rome", "Bonn", "Bonn"]
    with pytest.raises(DefinitionError, match="nested must be"):
        result.samples_frame("guess", nested="rows")


def test_frames_of_samples_say_what_is_not_there() -> None:
    pipeline = mapped(Dice(*labels("good")), ["x"], samples=2)
    result = runs(pipeline).run()
    with pytest.raises(DefinitionError, match=r"'load' has no samples. Give it some: samples=5"):
        result.samples_frame("load")
    with pytest.raises(UnknownStepError, match="has no step 'jude'"):
        result.samples_frame("jude")
    plain = runs(mapped(Dice(*labels("good")), ["x"], samples=1)).run()
    with pytest.raises(DefinitionError, match="'judge' has no samples"):
        plain.samples_frame("judge")
    alone = Pipeline("alone", model=Dice("a").model)
    alone.step("guess", "Guess", samples=2)
    with pytest.raises(DefinitionError, match="is not mapped"):
        runs(alone).run().output_frame("guess", source=True)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"samples": 0}, "must be a whole number from 1 on, not 0"),
        ({"samples": True}, "must be a whole number from 1 on"),
        ({"samples": 2.0}, "must be a whole number from 1 on"),
    ],
)
def test_a_number_of_samples_that_is_none_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(DefinitionError, match=problem):
        PipelineStep("guess", "Guess", **options)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"python": True}, "a Python step asks no model"),
        ({"reduce_over": "load"}, "reduce_over reads many rows"),
        ({"map_over": "load", "rows_per_call": 2}, "samples of rows in one call would not be independent"),
    ],
)
def test_other_steps_have_no_samples(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(DefinitionError, match=problem):
        PipelineStep.from_cell("guess", "1", samples=2, **options)


class Unreadable:
    @property
    def settings(self) -> Any:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("model", "settings", "hint"),
    [
        ("local", {}, "temperature 0"),
        ("local", {"temperature": 0.7}, ""),
        ("openai:gpt-5", {"temperature": 0}, "temperature 0"),
        ("openai:gpt-5", {}, ""),
        ("openai:gpt-5", {"seed": 7}, "seed 7"),
        (FunctionModel(Dice().answer, settings={"temperature": 0.0}), {}, "temperature 0"),
        (Unreadable(), {}, ""),
    ],
)
def test_samples_that_will_be_alike_are_hinted_at(model: Any, settings: dict[str, Any], hint: str) -> None:
    pipeline = Pipeline("alike", model=model)
    pipeline.step("guess", "Guess", samples=3, settings=settings)
    hints = step_hints(pipeline, pipeline.get_step("guess"))
    assert bool(hints) == bool(hint)
    if hint:
        assert f"its 3 samples will be alike, since the model answers with {hint}." in hints[0]
        assert map_warnings(pipeline) == [f"Step 'guess': {hints[0]}"]
    assert step_hints(pipeline, pipeline.get_step("guess").with_(samples=1)) == []
