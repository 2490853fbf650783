"""Every event that is kept comes back as it was, and values stay bytes on the way."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tagent_nb import events
from tagent_nb.errors import CorruptRecordError, EncodeError
from tagent_nb.events import TokenUsage
from tagent_nb.serde import StoredValue, event_from_dict, event_to_dict
from tagent_nb.serde.event_json import STORED
from tagent_nb.serde.value import encode


class Answer(BaseModel):
    label: str


USAGE = TokenUsage(1, 2, 3, 4, 5, 6)
FULL: dict[type, dict[str, Any]] = {
    events.RunStarted: {
        "pipeline": "reviews",
        "steps": ("a", "b"),
        "definition": {"format": 1, "shared": {"$t": "tuple", "v": [1]}, "steps": [{"name": "a"}]},
        "host": "here",
        "pid": 7,
        "budget": "0.1 USD",
        "memories": {"tone": "kind", "pair": (1, 2)},
        "forced": ("a",),
        "use_cache": False,
        "offline": True,
    },
    events.RunResumed: {
        "steps": ("a",),
        "kept": ("a",),
        "definition": {"x": 1},
        "host": "h",
        "pid": 1,
        "budget": "0.1 USD",
        "forced": ("a", "b"),
        "use_cache": False,
        "offline": True,
    },
    events.RunPaused: {},
    events.RunUnpaused: {},
    events.RunFinished: {
        "success": False,
        "cancelled": True,
        "seconds": 1.5,
        "waiting": ("a",),
        "timed_out": True,
    },
    events.ApprovalRequested: {
        "step": "a",
        "item": "3",
        "output": StoredValue.of({"x": (1,)}),
        "call": "order:1",
        "tool": "order",
        "key": "f" * 64,
        "attempt": 2,
        "seconds": 1.5,
        "usage": USAGE,
        "cost": None,
        "metadata": {"model": "test"},
        "facts": {"tone": (1, 2)},
        "memories": {"who": {"name": "me"}},
    },
    events.ApprovalGiven: {
        "step": "a",
        "item": "3",
        "verdict": "edited",
        "digest": "f" * 64,
        "call": "order:1",
        "reason": "too dear",
        "output": StoredValue.of({"x": 2}),
        "used": True,
    },
    events.StepProgress: {"step": "a", "kind": "tool", "detail": {"name": "search", "n": (1, 2)}},
    events.CallRecorded: {
        "step": "a",
        "item": "3",
        "attempt": 2,
        "kind": "model",
        "key": "k",
        "request": {"components": {"model": "m"}, "says": "?"},
        "answer": {"parts": [{"content": "yes", "args": None}], "usage": {"cost": "0.1"}},
        "usage": USAGE,
        "cost": None,
    },
    events.BatchPrepared: {
        "step": "a",
        "marker": "m",
        "rows": ("1", "2"),
        "keys": ("k", "l"),
        "of_run": "r2",
    },
    events.BatchSubmitted: {
        "step": "a",
        "marker": "m",
        "handle": {"id": "batch_1", "provider_details": {"status": "in_progress"}, "request_count": 2},
        "supposed": True,
    },
    events.BatchCancelled: {"step": "a", "marker": "m"},
    events.StepRetried: {
        "step": "a",
        "item": "3",
        "attempt": 2,
        "error_type": "OSError",
        "message": "gone",
        "delay": 0.5,
        "usage": USAGE,
        "cost": None,
    },
    events.StepFinished: {
        "step": "a",
        "item": "k",
        "output": StoredValue.of({"x": [1]}),
        "key": "f" * 64,
        "components": {"goal": "1"},
        "attempt": 3,
        "seconds": 2.5,
        "usage": USAGE,
        "cost": 0.25,
        "metadata": {"model": "test", "item_index": [(1, "a")]},
    },
    events.StepCached: {
        "step": "a",
        "output": StoredValue.of(None),
        "key": "k",
        "components": {"goal": "1"},
        "saved_usage": USAGE,
        "saved_cost": None,
        "metadata": {"m": 1},
    },
    events.StepFailed: {
        "step": "a",
        "error_type": "ValueError",
        "message": "no",
        "traceback": "line 1",
        "attempt": 2,
        "seconds": 1.0,
        "usage": USAGE,
        "cost": 1,
        "metadata": {"m": 1},
    },
    events.StepSkipped: {"step": "a", "reason": "b failed", "cause": "b"},
    events.StepCancelled: {"step": "a", "attempt": 2, "seconds": 0.5, "usage": USAGE, "cost": 0.25},
    events.InputTaken: {"name": "df", "output": StoredValue.of([{"a": 1}])},
    events.FactLearned: {"step": "a", "key": "k", "value": {1: (2,)}},
    events.MemorySaved: {"step": "a", "key": "k", "value": None},
    events.SharedDataSaved: {"shared": {"rate": 2, "pair": (1, 2)}},
    events.Warned: {"message": "careful", "step": "a"},
}
LEAST: dict[type, dict[str, Any]] = {
    events.RunStarted: {"pipeline": "p", "steps": ()},
    events.RunFinished: {"success": True},
    events.StepProgress: {"step": "a", "kind": "tool"},
    events.CallRecorded: {"step": "a", "kind": "tool", "key": "k"},
    events.StepFinished: {"step": "a", "output": StoredValue.of(1)},
    events.StepFailed: {"step": "a", "error_type": "E", "message": ""},
    events.ApprovalRequested: {"step": "a", "output": StoredValue.of(1)},
    events.ApprovalGiven: {"step": "a", "verdict": "approved"},
    events.SharedDataSaved: {},
    events.Warned: {"message": "m"},
}
ALL = [kind(run_id="r", at=12.5, **kwargs) for some in (FULL, LEAST) for kind, kwargs in some.items()]


def through_json(data: dict[str, Any]) -> dict[str, Any]:
    """As storage does it: the value's bytes beside the JSON of all the rest."""
    output = data.get("output", {})
    blob = output.pop("blob", None)
    back: dict[str, Any] = json.loads(json.dumps(data, allow_nan=False))
    if blob is not None:
        back["output"]["blob"] = blob
    return back


def shown(event: events.Event) -> dict[str, Any]:
    """An event's fields, with its output as its value."""
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    if values.get("output") is not None:
        values["output"] = (values["output"].value, values["output"].digest)
    return values


def test_every_event_that_is_kept_is_tested_here_with_all_its_fields() -> None:
    assert set(FULL) == set(STORED.values())
    for kind, kwargs in FULL.items():
        optional = {"run_id", "at", "item"} if kind is not events.StepFinished else {"run_id", "at"}
        assert {field.name for field in fields(kind)} - set(kwargs) <= optional


@pytest.mark.parametrize("event", ALL, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_as_it_was(event: events.Event) -> None:
    back = event_from_dict(through_json(event_to_dict(event)))
    assert type(back) is type(event)
    assert shown(back) == shown(event)


def test_fields_with_their_default_take_no_room() -> None:
    event = events.StepCancelled(run_id="r", at=1.0, step="a")
    assert event_to_dict(event) == {"event": "StepCancelled", "run_id": "r", "at": 1.0, "step": "a"}


def test_values_are_neither_decoded_nor_encoded_again() -> None:
    output = StoredValue.from_blob(b"not even json", "digest")
    data = event_to_dict(events.StepFinished(run_id="r", step="a", output=output))
    assert data["output"] == {"blob": b"not even json", "digest": "digest"}
    back = event_from_dict(data)
    assert isinstance(back, events.StepFinished)
    assert back.output.digest == "digest"
    with pytest.raises(CorruptRecordError):
        _ = back.output.value


def test_outputs_of_other_classes_are_encoded() -> None:
    class Own:
        value, digest, storable, problem = [1], "d", True, None

    assert event_to_dict(events.StepFinished(run_id="r", step="a", output=Own()))["output"] == {
        "blob": b"[1]",
        "digest": "d",
    }


def test_models_come_back_with_the_schemas_given() -> None:
    event = events.StepCached(run_id="r", step="a", key="k", output=StoredValue.of(Answer(label="x")))
    fact = events.FactLearned(run_id="r", step="a", key="k", value=Answer(label="y"))
    for schemas, values in (
        ({"Answer": Answer}, [Answer(label="x"), Answer(label="y")]),
        (None, [{"label": "x"}, {"label": "y"}]),
    ):
        first: Any = event_from_dict(event_to_dict(event), schemas)
        other: Any = event_from_dict(event_to_dict(fact), schemas)
        assert [first.output.value, other.value] == values


def test_an_output_that_cannot_be_stored_comes_back_as_none_with_its_problem() -> None:
    event = events.StepFinished(run_id="r", step="a", output=StoredValue.of({"fn": len}))
    data = through_json(event_to_dict(event))
    back: Any = event_from_dict(data)
    assert back.output.value is None
    assert not back.output.storable
    assert back.output.problem == "output.fn: a function cannot be stored"
    assert back.output.digest == event.output.digest
    assert event_to_dict(back)["output"] == data["output"]


def test_a_fact_or_memory_that_cannot_be_stored_is_an_error_with_its_path() -> None:
    with pytest.raises(EncodeError, match=r"^load\.facts\['k'\]\.fn: a function cannot be stored"):
        event_to_dict(events.FactLearned(run_id="r", step="load", key="k", value={"fn": len}))
    with pytest.raises(EncodeError, match=r"^load\.memories\['k'\]: a function"):
        event_to_dict(events.MemorySaved(run_id="r", step="load", key="k", value=len))


def test_details_that_cannot_be_stored_say_so_in_their_place() -> None:
    event = events.StepProgress(run_id="r", step="a", kind="tool", detail={"fn": len, "n": 1})
    back: Any = event_from_dict(through_json(event_to_dict(event)))
    assert back.detail == {"fn": "(not stored: a function cannot be stored)", "n": 1}


def test_broken_text_of_messages_is_cleaned() -> None:
    event = events.Warned(run_id="r", message="bad \ud800 byte")
    back: Any = event_from_dict(through_json(event_to_dict(event)))
    assert back.message == "bad ? byte"
    assert json.dumps(event_to_dict(event), ensure_ascii=False).encode()


def test_a_number_that_json_lacks_is_an_error_with_its_field() -> None:
    event = events.StepCancelled(run_id="r", step="a", seconds=math.nan)
    with pytest.raises(EncodeError, match=r"^StepCancelled\.seconds: nan cannot be stored"):
        event_to_dict(event)


@pytest.mark.parametrize(
    "event",
    [
        events.StepStreamed(run_id="r", step="a", text="x"),
        events.StepStarted(run_id="r", step="a"),
        events.Event(run_id="r"),
    ],
)
def test_passing_events_are_never_stored(event: events.Event) -> None:
    with pytest.raises(EncodeError, match="events of this kind are never stored"):
        event_to_dict(event)


GOOD = event_to_dict(ALL[list(FULL).index(events.StepFinished)])


@pytest.mark.parametrize(
    "change",
    [
        {"event": "StepDreamed"},
        {"event": "StepStarted"},
        {"event": None},
        {"event": ["StepFinished"]},
        {"run_id": 1},
        {"run_id": None},
        {"at": "now"},
        {"at": math.inf},
        {"at": True},
        {"attempt": 1.5},
        {"item": 3},
        {"unknown": 1},
        {"usage": {"input_tokens": -1}},
        {"usage": {"input_tokens": True}},
        {"usage": {"wishes": 1}},
        {"usage": [1]},
        {"components": {"goal": 1}},
        {"components": 1},
        {"metadata": [1]},
        {"metadata": {"x": {"$t": "unheard of"}}},
        {"output": {}},
        {"output": {"digest": 1, "blob": b"1"}},
        {"output": {"digest": "d", "blob": "1"}},
        {"output": {"digest": "d", "problem": 1}},
        {"output": None},
    ],
)
def test_a_malformed_event_is_a_corrupt_record(change: dict[str, Any]) -> None:
    with pytest.raises(CorruptRecordError):
        event_from_dict({**GOOD, **change})


@pytest.mark.parametrize("field", ["run_id", "at", "step", "output"])
def test_a_missing_field_is_a_corrupt_record(field: str) -> None:
    with pytest.raises(CorruptRecordError, match="A recorded StepFinished cannot be read"):
        event_from_dict({name: value for name, value in GOOD.items() if name != field})


def test_step_names_must_be_texts() -> None:
    for steps in ("ab", [1], None):
        with pytest.raises(CorruptRecordError):
            event_from_dict(
                {"event": "RunStarted", "run_id": "r", "at": 1.0, "pipeline": "p", "steps": steps}
            )


def test_what_is_no_object_is_a_corrupt_record() -> None:
    for data in (None, [], "x"):
        with pytest.raises(CorruptRecordError, match="for an event"):
            event_from_dict(data)  # type: ignore[arg-type]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(VALUES, st.text(), st.none() | st.floats(allow_nan=False, allow_infinity=False))
def test_any_value_and_cost_survive(value: Any, message: str, cost: float | None) -> None:
    fields_ = {"run_id": "r", "step": "a", "cost": cost}
    finished: Any = events.StepFinished(output=StoredValue.of(value), metadata={"v": 1}, **fields_)  # type: ignore[arg-type]
    back: Any = event_from_dict(through_json(event_to_dict(finished)))
    try:
        encode(value)
    except EncodeError:  # a key with half a surrogate pair
        assert not back.output.storable
    else:
        assert shown(back) == shown(finished)
    failed: Any = events.StepFailed(error_type="E", message=message, **fields_)  # type: ignore[arg-type]
    back = event_from_dict(through_json(event_to_dict(failed)))
    assert back.message == message.encode("utf-8", "replace").decode()
    assert back.cost == cost


def test_records_name_a_resumed_run_as_before_its_event_was_renamed() -> None:
    event = events.RunResumed(run_id="r", at=1.0)
    data = event_to_dict(event)
    assert data["event"] == "RunContinued"
    assert event_from_dict(data) == event
    assert events.RunContinued is events.RunResumed
