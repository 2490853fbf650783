"""Pipelines and results as JSON and back; what cannot be rebuilt says so; pickle only by name."""

from __future__ import annotations

import json
import os
import pickle
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from tagent_nb import events
from tagent_nb.errors import CorruptRecordError, DefinitionError, EncodeError, FormatVersionError
from tagent_nb.events import TokenUsage
from tagent_nb.pipeline import (
    And,
    Dependency,
    DependencyType,
    ExecutionMode,
    IsEqualTo,
    IsGreaterThan,
    Not,
    Pipeline,
    PipelineStep,
    StepStatus,
    pipeline_to_dict,
)
from tagent_nb.results import ItemResult, OutputMap, PipelineResult, StepResult
from tagent_nb.serde import StoredValue, from_pickle, signed_dump, signed_load, to_pickle


class Sentiment(BaseModel):
    """How a customer feels."""

    label: str
    score: float = 0.0


SCHEMAS: dict[str, type] = {"Sentiment": Sentiment}


def search(query: str) -> str:
    """A tool."""
    return query


def short(value: Sentiment) -> None:
    """A check."""


def load(context: Any) -> list[int]:
    """Load the rows."""
    return [1, 2]


def reviews() -> Pipeline:
    """A pipeline that uses every field of a step."""
    pipeline = Pipeline("reviews", "What customers feel", default_mode=ExecutionMode.CONCURRENT, model="test")
    pipeline.constraint("be brief").share(language="en", since=date(2024, 1, 1), pair=(1, 2))
    pipeline.task(load)
    pipeline.put(
        PipelineStep(
            name="classify",
            goal="Classify {{ load }}",
            constraints=["one word"],
            depends_on=["load", "extra:optional", Dependency("load2", DependencyType.WEAK)],
            execution_mode=ExecutionMode.SERIAL,
            timeout=2.5,
            retry_count=1,
            max_retries=0,
            tools_filter=["search*"],
            output_schema=Sentiment,
            when="load | length > 0",
            map_over="load",
            min_success=0.5,
            max_failures=20,
            fresh_for="1h",
            samples=3,
            flatten=True,
            model="openai:gpt-5-mini",
            settings={"temperature": 0.0, "stop": ["\n"]},
            tools=[search],
            output_retries=0,
            output_mode="prompted",
            instructions="You are terse.",
            checks=[short],
            budget="0.5 USD, 20 requests",
            agent="plan",
            models={"judge": "openai:gpt-5"},
            approve=True,
            remember=True,
            final=True,
            approve_tools=["search*"],
            max_replans=1,
            cache=False,
        )
    )
    pipeline.put(
        PipelineStep(
            name="each", goal="Say {{ item }}", map_over="load", batch="then-live", retry_on=[KeyError]
        )
    )
    pipeline.put(PipelineStep.from_cell("count", "# How many\nlen(load)", python=True))
    pipeline.put(
        PipelineStep(
            name="report",
            goal="Report {{ count }}",
            when=And(IsGreaterThan("count", 0), Not(IsEqualTo("count", (1, 2)))),
            reduce_over="load",
            group_by="stars",
            combine="Join {{ load }}",
            reduce_tokens=2000,
        )
    )
    pipeline.put(PipelineStep(name="translate", goal="Translate", map_over="load", rows_per_call=20))
    return pipeline


# -- pipelines ------------------------------------------------------------------------------------


def test_a_pipeline_comes_back_as_it_was() -> None:
    pipeline = reviews()
    for back in (
        Pipeline.from_json(pipeline.to_json(), schemas=[Sentiment], tools=[search], checks=[short]),
        Pipeline.from_dict(pipeline.to_dict(), schemas=[Sentiment], tools=[search], checks=[short]),
        Pipeline.from_json(
            pipeline.to_json(indent=None),
            schemas={"Sentiment": Sentiment},
            tools=[search],
            checks=[short],
        ),
    ):
        assert back.steps == pipeline.steps
        assert back.name == pipeline.name
        assert back.description == pipeline.description
        assert back.default_mode is ExecutionMode.CONCURRENT
        assert back.model == "test"
        assert back.global_constraints == ["be brief"]
        assert back.shared_context == pipeline.shared_context
        assert back.id == pipeline.id
        assert back.to_dict() == pipeline.to_dict()


def test_every_field_of_a_step_is_in_the_round_trip() -> None:
    """A field that is added later must be added to the test pipeline."""
    stored = {name for step in reviews().to_dict()["steps"] for name in step}
    assert stored == set(PipelineStep.__dataclass_fields__)


def test_the_json_is_plain_and_its_schemas_are_json_schema() -> None:
    data = json.loads(reviews().to_json())
    step = data["steps"][1]
    assert step["output_schema"]["name"] == "Sentiment"
    assert step["output_schema"]["json_schema"] == Sentiment.model_json_schema()
    assert step["tools"] == ["search"]
    assert step["checks"] == ["short"]
    assert step["depends_on"] == ["load", "extra:optional", "load2:weak"]
    assert data["steps"][0]["body"]["source"].startswith("def load(context")


def test_fields_that_have_their_default_are_left_out() -> None:
    data = Pipeline("p").step("a", "Do it").to_dict()
    assert data == {"format": 1, "kind": "pipeline", "name": "p", "steps": [{"name": "a", "goal": "Do it"}]}


def test_the_data_does_not_share_lists_with_the_pipeline() -> None:
    pipeline = reviews()
    data = pipeline.to_dict()
    data["steps"][1]["constraints"].append("changed")
    data["global_constraints"].append("changed")
    assert pipeline.get_step("classify").constraints == ["one word"]
    assert pipeline.global_constraints == ["be brief"]


def test_duplicate_names_and_broken_references_survive_for_validation_to_report() -> None:
    pipeline = Pipeline("p")
    pipeline.steps = [PipelineStep("a", "{{ gone }}"), PipelineStep("a", "again")]
    assert [step.goal for step in Pipeline.from_json(pipeline.to_json()).steps] == ["{{ gone }}", "again"]


def with_closure() -> Pipeline:
    held = 1
    pipeline = Pipeline("p", model=object()).share(fn=len, key=SecretStr("hush"), ok=1)

    @pipeline.task
    def closure(load: Any) -> int:
        return held

    pipeline.step("a", "Say \ud800", when=IsEqualTo("closure", len), settings={"x": len}, model=object())
    return pipeline


def test_what_cannot_be_rebuilt_says_so_with_its_path() -> None:
    pipeline = Pipeline("p")
    held = 1

    @pipeline.task
    def closure() -> int:
        return held

    with pytest.raises(EncodeError, match=r"^steps\.closure\.body: function 'closure' uses 'held'"):
        pipeline.to_dict()
    with pytest.raises(
        EncodeError, match=r"^model: a model object \(object\) cannot be stored\. Name the model by"
    ):
        Pipeline("p", model=object()).to_json()
    with pytest.raises(EncodeError, match=r"^shared_context\.fn: a function cannot be stored"):
        Pipeline("p").share(fn=len).to_dict()
    with pytest.raises(EncodeError, match=r"^pipeline\.steps\[0\]\.goal: text with half a surrogate pair"):
        Pipeline("p").step("a", "\ud800").to_dict()


def test_a_definition_that_is_only_compared_may_lack_what_cannot_be_rebuilt() -> None:
    """A run with a model object is recorded all the same; the record says what is not in it."""
    data = pipeline_to_dict(with_closure(), strict=False)
    assert set(data["not_stored"]) == {
        "model",
        "shared_context.fn",
        "shared_context.key",
        "steps.closure.body",
        "steps.a.when",
        "steps.a.settings.x",
        "steps.a.model",
        "pipeline.steps[1].goal",
    }
    assert "hush" not in str(data)
    assert data["shared_context"] == {"ok": 1}
    assert "return held" in data["steps"][0]["body"]["source"]
    assert json.dumps(data, ensure_ascii=False).encode()
    with pytest.raises(DefinitionError, match=r"not stored as a whole:\n  - model: a model object"):
        Pipeline.from_dict(data)


def test_a_schema_that_was_not_passed_is_named() -> None:
    text = reviews().to_json()
    with pytest.raises(
        DefinitionError, match=r"'classify': its output_schema 'Sentiment' is not among .*schemas=\[S"
    ):
        Pipeline.from_json(text)

    class Sentimant(BaseModel):
        label: str

    with pytest.raises(DefinitionError, match="Did you mean 'Sentimant'"):
        Pipeline.from_json(text, schemas=[Sentimant], tools=[search], checks=[short])
    with pytest.raises(DefinitionError, match=r"its tool 'search' is not among .* Pass it: tools=\[search\]"):
        Pipeline.from_json(text, schemas=[Sentiment])
    with pytest.raises(DefinitionError, match=r"its check 'short' is not among .* Pass it: checks=\[short\]"):
        Pipeline.from_json(text, schemas=[Sentiment], tools=[search])


def test_reading_runs_nothing(tmp_path: Path) -> None:
    made = tmp_path / "made"
    data = Pipeline("p").step("a", "x").to_dict()
    data["steps"][0]["body"] = {"kind": "cell", "name": "a", "source": f"open({str(made)!r}, 'w')"}
    Pipeline.from_dict(data)
    assert not made.exists()


MINIMAL = {"format": 1, "kind": "pipeline", "name": "p", "steps": [{"name": "a", "goal": "x"}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"naem": "x"}, "Stored pipeline: there is no field 'naem'. Did you mean 'name'?"),
        ({"kind": "result"}, "This is not a stored pipeline: it has kind 'result' and format 1."),
        ({"format": None}, "This is not a stored pipeline"),
        ({"format": True}, "This is not a stored pipeline"),
        ({"format": 0}, "This is not a stored pipeline"),
        ({"name": None}, "Pipeline name must be text"),
        ({"name": ""}, "Pipeline name cannot be empty"),
        ({"description": 1}, "description must be text, not int"),
        ({"default_mode": "fast"}, "default_mode must be serial or concurrent, not 'fast'"),
        ({"global_constraints": "x"}, "global_constraints must be a list of texts"),
        ({"shared_context": [1]}, "shared_context must be an object, not list"),
        ({"shared_context": {"x": {"$t": "?"}}}, "shared_context: A stored value has the unknown type"),
        ({"steps": {}}, "steps must be a list, not dict"),
        ({"steps": ["a"]}, "a step must be an object with a name, not 'a'"),
        ({"steps": [{"goal": "x"}]}, "a step must be an object with a name"),
        ({"not_stored": {"model": "gone"}}, "was not stored as a whole"),
    ],
)
def test_a_malformed_pipeline_gets_one_clear_message(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        Pipeline.from_dict({**MINIMAL, **change})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timeuot": 1}, "Stored step 'a': there is no field 'timeuot'. Did you mean 'timeout'?"),
        ({"goal": None}, "Stored step 'a': goal is missing"),
        ({"name": "a b"}, "is not an identifier"),
        ({"timeout": -1}, "timeout must be a number of seconds above 0"),
        ({"timeout": "5"}, "timeout must be a number of seconds above 0"),
        ({"max_retries": True}, "max_retries must be a whole number"),
        ({"execution_mode": 3}, "execution_mode must be serial or concurrent, not 3"),
        ({"depends_on": ["b:sometimes"]}, "'sometimes' is not a type of dependency"),
        ({"depends_on": [1]}, "A dependency must be a step's name"),
        ({"output_schema": "Sentiment"}, "its output_schema 'Sentiment' is not among"),
        ({"output_schema": {"name": 1}}, "its output_schema 1 is not among"),
        ({"body": "1 + 1"}, "body must be an object, not str"),
        ({"body": {"kind": "cell"}}, "Python body"),
        ({"body": {"kind": "cell", "name": "a", "source": "1 +"}}, "not valid Python"),
        ({"when": {"type": "Sometimes"}}, "There is no condition 'Sometimes'"),
        ({"when": {"type": "IsEqualTo", "reference": "b", "value": {"$t": "?"}}}, "when: A stored value"),
        ({"settings": 1}, "settings must be an object, not int"),
        ({"settings": {"x": {"$t": "?"}}}, "settings: A stored value"),
        ({"tools": "search"}, "tools must be a list of texts"),
        ({"tools": ["search"]}, "its tool 'search' is not among"),
    ],
)
def test_a_malformed_step_gets_one_clear_message(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        Pipeline.from_dict({**MINIMAL, "steps": [{"name": "a", "goal": "x", **change}]})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "\ufeff{}",
        "[]",
        "null",
        "{} {}",
        '{"a": NaN}',
        '{"a": 1, "a": 2}',
        "[" * 100_000,
        "\ud800",
        '"\\ud800"',
    ],
)
def test_text_that_is_no_pipeline_gets_one_clear_message(text: str) -> None:
    with pytest.raises(DefinitionError):
        Pipeline.from_json(text)


def test_a_newer_format_is_refused_by_name() -> None:
    for kind in ("pipeline", "result"):
        data = json.dumps({**MINIMAL, "kind": kind, "format": 999})
        read: Any = Pipeline.from_json if kind == "pipeline" else PipelineResult.from_json
        with pytest.raises(
            FormatVersionError, match="stored in format 999; this version of tagent-nb reads up to 1"
        ):
            read(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_any_other_data_gives_the_right_error(data: Any) -> None:
    with pytest.raises((DefinitionError, FormatVersionError)):
        Pipeline.from_dict(data)


# -- results --------------------------------------------------------------------------------------


def full_result() -> PipelineResult:
    """A result that uses every field."""
    items = {
        "x": ItemResult("x", ("x", 1), StepStatus.COMPLETED, StoredValue.of(Sentiment(label="a")), attempts=1,
                        seconds=0.5, usage=TokenUsage(1, 2), cost=None),
        "y": ItemResult("y", ("y", 2), StepStatus.FAILED, None, "ValueError", "no \ud800", attempts=2),
    }  # fmt: skip
    load_step = StepResult("load", StepStatus.COMPLETED, StoredValue.of(pd.DataFrame({"a": [1, 2]})))
    load_step.attempts, load_step.seconds, load_step.key = 1, 0.25, "k"
    load_step.components, load_step.metadata = {"goal": "1"}, {"model": "m", "fn": len}
    load_step.started_at, load_step.ended_at = 1.0, 2.0
    mapped = StepResult("classify", StepStatus.CACHED, StoredValue.of([Sentiment(label="a"), None]))
    mapped.usage, mapped.cost, mapped.saved_cost, mapped.reason = TokenUsage(3), None, 0.5, "forced"
    mapped.items, mapped.items_total = items, 2
    failed = StepResult("report", StepStatus.FAILED, error_type="KeyError", error="x", traceback="line 1")
    steps = {step.name: step for step in (load_step, mapped, failed)}
    outputs = {name: step.output for name, step in steps.items() if step.output is not None}
    return PipelineResult(
        pipeline_name="reviews",
        success=False,
        execution_time=1.5,
        total_cost=0.25,
        cost_per_step={"load": 0.0, "classify": None},
        token_usage={"load": TokenUsage(), "classify": TokenUsage(3)},
        step_outputs=OutputMap(outputs),
        step_metadata={"load": {"model": "m", "pair": (1, 2)}},
        final_output={"done": {1, 2}},
        learned_facts={"since": date(2024, 1, 1)},
        saved_memories={"best": Sentiment(label="b")},
        failed_steps=["report"],
        error_details={"report": "KeyError: x"},
        run_id="run-1",
        cancelled=True,
        unpriced_steps=["classify"],
        steps=steps,
        events=[events.RunFinished(run_id="run-1", success=False)],
        warnings=["careful"],
    )


def assert_same_result(back: PipelineResult, result: PipelineResult) -> None:
    plain = [
        name
        for name in PipelineResult.__dataclass_fields__
        if name not in ("steps", "events", "step_outputs")
    ]
    assert {name: getattr(back, name) for name in plain} == {name: getattr(result, name) for name in plain}
    assert list(back.steps) == list(result.steps)
    pd.testing.assert_frame_equal(back["load"], result["load"])
    assert back["classify"] == result["classify"]
    for frame in ("to_frame", "usage_frame"):
        pd.testing.assert_frame_equal(getattr(back, frame)(), getattr(result, frame)())


def test_a_result_comes_back_as_it_was() -> None:
    result = full_result()
    back = PipelineResult.from_json(result.to_json(), schemas=[Sentiment])
    assert_same_result(back, result)
    assert back.events == []
    step, items = back.steps["load"], back.steps["classify"].items
    assert (step.key, step.components, step.started_at, step.ended_at) == ("k", {"goal": "1"}, 1.0, 2.0)
    assert step.metadata == {"model": "m", "fn": "(not stored: a function cannot be stored)"}
    assert items is not None
    assert [(item.index, item.status, item.error, item.cost) for item in items.values()] == [
        (("x", 1), StepStatus.COMPLETED, "", None),
        (("y", 2), StepStatus.FAILED, "no ?", 0.0),
    ]
    assert back.output_frame("classify")["label"].tolist()[0] == "a"
    assert back.to_dict() == result.to_dict()


def test_without_its_schemas_a_result_has_dicts() -> None:
    back = PipelineResult.from_json(full_result().to_json(indent=None))
    assert back["classify"] == [{"label": "a", "score": 0.0}, None]
    assert back.saved_memories == {"best": {"label": "b", "score": 0.0}}


def test_json_is_written_to_a_path_as_utf_8(tmp_path: Path) -> None:
    result = PipelineResult("größe 自", True, 0.0)
    for path in (tmp_path / "a.json", str(tmp_path / "b.json")):
        text = result.to_json(path)
        assert Path(path).read_text(encoding="utf-8") == text + "\n"
        assert PipelineResult.from_json(Path(path).read_text(encoding="utf-8")).pipeline_name == "größe 自"


def test_falsy_values_are_kept() -> None:
    result = PipelineResult(
        "p", True, 0.0, step_outputs={"a": None, "b": 0, "c": [], "d": ""}, final_output=0
    )
    back = PipelineResult.from_json(result.to_json())
    assert dict(back.step_outputs) == {"a": None, "b": 0, "c": [], "d": ""}
    assert back.final_output == 0


def test_a_value_that_cannot_be_stored_names_its_path() -> None:
    def refused(**fields: Any) -> str:
        with pytest.raises(EncodeError) as caught:
            PipelineResult("p", True, 0.0, **fields).to_json()
        return str(caught.value)

    assert (
        refused(step_outputs={"load": [1, {"fn": len}]})
        == "step_outputs.load[1].fn: a function cannot be stored"
    )
    assert refused(final_output=len) == "final_output: a function cannot be stored"
    assert refused(learned_facts={"k": len}) == "learned_facts.k: a function cannot be stored"
    assert refused(saved_memories={"k": SecretStr("hush")}).startswith(
        "saved_memories.k: a secret cannot be stored"
    )
    broken = StepResult("a", seconds=float("nan"))
    assert refused(steps={"a": broken}) == "steps.a.seconds: nan cannot be stored"
    item = ItemResult("k", 0, output=StoredValue.of(len))
    assert refused(steps={"a": StepResult("a", items={"k": item})}) == "a[k]: a function cannot be stored"


def test_a_value_that_was_lost_with_its_run_does_not_pass_for_none() -> None:
    lost = StoredValue.unstorable("output.fn: a function cannot be stored")
    whole = PipelineResult(
        "p", True, 0.0, step_outputs=OutputMap({"a": lost}), steps={"a": StepResult("a", output=lost)}
    )
    item = StepResult("a", items={"k": ItemResult("k", 0, output=lost)})
    for result in (whole, PipelineResult("p", True, 0.0, steps={"a": item})):
        with pytest.raises(EncodeError, match=r"it was not stored with its run \(output\.fn: a function"):
            result.to_dict()


GOOD = json.loads(full_result().to_json())


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "pipeline"},
        {"format": "1"},
        {"steps": None},
        {"steps": [{}]},
        {"steps": [{**GOOD["steps"][0], "status": "dreaming"}]},
        {"steps": [{**GOOD["steps"][0], "usage": {"wishes": 1}}]},
        {"steps": [{**GOOD["steps"][0], "items": [1]}]},
        {"step_outputs": [1]},
        {"step_outputs": {"a": {"$t": "unheard of"}}},
        {"token_usage": {"a": 1}},
        {"learned_facts": 3},
    ],
)
def test_a_malformed_result_is_a_corrupt_record(change: dict[str, Any]) -> None:
    with pytest.raises(CorruptRecordError):
        PipelineResult.from_json(json.dumps({**GOOD, **change}))


def test_a_result_of_an_earlier_version_had_no_budget() -> None:
    assert PipelineResult.from_json(json.dumps({**GOOD, "budget": "0.1 USD"})).budget == "0.1 USD"
    earlier = {name: value for name, value in GOOD.items() if name != "budget"}
    assert PipelineResult.from_json(json.dumps(earlier)).budget == ""


def test_a_result_of_an_earlier_version_had_no_inputs() -> None:
    kept = {**GOOD, "inputs": {"df": [{"a": 1}]}}
    assert PipelineResult.from_json(json.dumps(kept)).inputs == {"df": [{"a": 1}]}
    earlier = {name: value for name, value in GOOD.items() if name != "inputs"}
    assert PipelineResult.from_json(json.dumps(earlier)).inputs == {}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in GOOD
        if name
        not in ("format", "kind", "budget", "final_step", "inputs", "timed_out", "sources", "dependencies")
        and name not in ("samples", "flattened", "definitions")
    ],
)
def test_a_result_that_lacks_a_field_is_a_corrupt_record(name: str) -> None:
    with pytest.raises(CorruptRecordError, match="This stored result cannot be read: KeyError"):
        PipelineResult.from_json(json.dumps({key: value for key, value in GOOD.items() if key != name}))


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "\ud800", '{"a": 1, "a": 1}', "[" * 100_000])
def test_text_that_is_no_result_is_a_corrupt_record(text: str) -> None:
    with pytest.raises(CorruptRecordError):
        PipelineResult.from_json(text)


# -- pickle ---------------------------------------------------------------------------------------


def test_pickles_keep_functions_and_classes_by_reference() -> None:
    pipeline = reviews()
    called: list[int] = []
    pipeline.subscribe(lambda: called.append(1))
    back = Pipeline.from_pickle(pipeline.to_pickle())
    assert back.steps == pipeline.steps
    body = back.get_step("load").body
    assert body is not None
    assert body.function is load
    back.constraint("more")
    assert called == []


def test_a_result_can_be_pickled_with_its_events() -> None:
    result = full_result()
    back = PipelineResult.from_pickle(result.to_pickle())
    assert_same_result(back, result)
    assert back.events == result.events


def test_a_pickle_of_something_else_is_refused() -> None:
    with pytest.raises(CorruptRecordError, match="This pickle holds PipelineResult, not Pipeline"):
        Pipeline.from_pickle(full_result().to_pickle())
    with pytest.raises(CorruptRecordError, match="This pickle holds dict, not PipelineResult"):
        PipelineResult.from_pickle(pickle.dumps({}))
    for blob in (b"", b"no pickle", reviews().to_pickle()[:-10]):
        with pytest.raises(CorruptRecordError, match="This pickle cannot be read"):
            from_pickle(blob, Pipeline)


def test_what_cannot_be_pickled_says_so() -> None:
    with pytest.raises(EncodeError, match="^PipelineResult: it cannot be pickled: "):
        to_pickle(PipelineResult("p", True, 0.0, final_output=lambda: 1))
    with pytest.raises(EncodeError, match="^generator: it cannot be pickled: "):
        to_pickle(item for item in ())


class Payload:
    """What a stranger would plant: unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


KEY = b"k" * 32


def test_a_signed_pickle_comes_back_for_the_holder_of_its_key() -> None:
    blob = signed_dump({"a": (1, 2)}, KEY)
    assert signed_load(blob, KEY) == {"a": (1, 2)}


def test_nothing_is_unpickled_before_the_signature_is_right(tmp_path: Path) -> None:
    planted = Payload(tmp_path / "planted")
    good = signed_dump([1], KEY)
    head = len(good) - len(pickle.dumps([1], protocol=pickle.HIGHEST_PROTOCOL))
    for blob in (
        pickle.dumps(planted),
        signed_dump(planted, b"x" * 32),
        good[:head] + pickle.dumps(planted),
        good[: head - 32] + pickle.dumps(planted),
    ):
        with pytest.raises(CorruptRecordError):
            signed_load(blob, KEY)
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_or_missing_byte_of_a_signed_pickle_is_noticed() -> None:
    blob = signed_dump([1, 2, 3], KEY)
    for place in range(len(blob)):
        broken = bytearray(blob)
        broken[place] ^= 1
        for damaged in (bytes(broken), blob[:place]):
            with pytest.raises(CorruptRecordError):
                signed_load(damaged, KEY)


@pytest.mark.parametrize("key", [b"", b"short", "text" * 10, None])
def test_a_weak_key_is_refused_with_how_to_make_one(key: Any) -> None:
    for action in (lambda: signed_dump(1, key), lambda: signed_load(b"", key)):
        with pytest.raises(DefinitionError, match=r"at least 16 bytes. Make one with os.urandom\(32\)"):
            action()
