"""Events are frozen facts; token counts add up."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagent_nb import events
from tagent_nb.events import Event, StepEvent, TokenUsage
from tagent_nb.serde import StoredValue

COUNTS = st.builds(TokenUsage, *[st.integers(0, 10**9)] * 6)


@given(COUNTS, COUNTS, COUNTS)
def test_usage_adds_up_count_by_count(a: TokenUsage, b: TokenUsage, c: TokenUsage) -> None:
    total = a + b
    assert total.to_dict() == {name: count + b.to_dict()[name] for name, count in a.to_dict().items()}
    assert (a + b) + c == a + (b + c)
    assert a + TokenUsage() == a
    assert total.total_tokens == a.total_tokens + b.total_tokens


def test_total_tokens_are_input_and_output_only() -> None:
    """Cached and reasoning tokens are parts of these, and requests are no tokens."""
    assert TokenUsage(1, 2, 3, 4, 5, 6).total_tokens == 3


def test_only_no_usage_at_all_is_false() -> None:
    assert not TokenUsage()
    assert TokenUsage(requests=1)
    assert TokenUsage(cached_tokens=1)


def test_usage_is_plain_data_by_name() -> None:
    assert TokenUsage(1, 2, 3, 4, 5, 6).to_dict() == {
        "input_tokens": 1,
        "output_tokens": 2,
        "cached_tokens": 3,
        "reasoning_tokens": 4,
        "requests": 5,
        "tool_calls": 6,
    }
    assert TokenUsage(**TokenUsage(1, 2).to_dict()) == TokenUsage(1, 2)


def kinds() -> list[type[Event]]:
    return [
        kind
        for kind in vars(events).values()
        if isinstance(kind, type)
        and issubclass(kind, Event)
        and kind not in (Event, StepEvent)
        and not kind.__name__.startswith("_")  # what an event is while it is made
    ]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_an_event_is_frozen_small_and_named_by_keyword(kind: type[Event]) -> None:
    """Observers on other threads may keep it: it cannot be changed under them."""
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert "__slots__" in vars(kind)
    assert kind.__doc__
    with pytest.raises(TypeError):
        kind("run")  # type: ignore[misc]


def test_an_event_tells_its_run_and_time() -> None:
    before = time.time()
    event = events.StepStarted(run_id="r", step="load")
    assert before <= event.at <= time.time()
    assert (event.run_id, event.step, event.item, event.attempt) == ("r", "load", None, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.step = "other"  # type: ignore[misc]


def test_no_event_can_change_the_default_of_another() -> None:
    event = events.RunStarted(run_id="r", pipeline="p", steps=())
    definition: Any = event.definition
    assert definition == {}
    with pytest.raises(TypeError, match="Copy it first"):
        definition["a"] = 1
    for own in (dict(definition), copy.deepcopy(definition), pickle.loads(pickle.dumps(definition))):
        own["a"] = 1
        assert type(own) is dict
    assert event.definition == {}


def test_streamed_text_starts_and_waits_are_not_kept() -> None:
    assert set(events.PASSING) == {
        *(events.StepStreamed, events.StepStarted),
        *(events.StepWaiting, events.StepUnblocked),
    }


def test_events_that_are_made_fast_are_as_any_other() -> None:
    """Of all that there is one for each unit of work: equal to what the class makes, and as frozen."""
    output = StoredValue.of([1])
    usage = TokenUsage(input_tokens=3)
    made: list[tuple[Event, Event]] = [
        (
            events.step_started("r", "s", "0", 2, "first run"),
            events.StepStarted(run_id="r", step="s", item="0", attempt=2, why="first run"),
        ),
        (
            events.step_finished(
                "r", "s", "0", output, "k", {"code": "c"}, 2, 0.5, usage, None, {"model": "m"}
            ),
            events.StepFinished(
                run_id="r",
                step="s",
                item="0",
                output=output,
                key="k",
                components={"code": "c"},
                attempt=2,
                seconds=0.5,
                usage=usage,
                cost=None,
                metadata={"model": "m"},
            ),
        ),
        (
            events.step_cached("r", "s", "0", output, "k", {"code": "c"}, usage, None, {"model": "m"}),
            events.StepCached(
                run_id="r",
                step="s",
                item="0",
                output=output,
                key="k",
                components={"code": "c"},
                saved_usage=usage,
                saved_cost=None,
                metadata={"model": "m"},
            ),
        ),
    ]
    for fast, usual in made:
        assert type(fast) is type(usual)
        assert fast == dataclasses.replace(usual, at=fast.at)
        with pytest.raises(dataclasses.FrozenInstanceError):
            fast.run_id = "other"  # type: ignore[misc]


def test_events_compare_and_show_themselves_as_dataclasses_do() -> None:
    """By what they say, and only with events of their own kind."""
    event = StepEvent(run_id="r", at=1.0, step="load")
    same = StepEvent(run_id="r", at=1.0, step="load", item=None)
    assert event == same
    assert len({event, same, StepEvent(run_id="r", at=2.0, step="load")}) == 2
    assert event != Event(run_id="r", at=1.0)
    assert event != "load"
    assert repr(event) == "StepEvent(run_id='r', at=1.0, step='load', item=None)"
    with pytest.raises(TypeError, match="unhashable"):
        hash(events.RunStarted(run_id="r", pipeline="p", steps=(), definition={"a": 1}))
