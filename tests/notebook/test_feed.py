"""What a view folds from the events of a run: texts, counts of items, and what is new."""

from __future__ import annotations

from tagent_nb.events import (
    Event,
    RunResumed,
    RunStarted,
    StepProgress,
    StepStarted,
    StepStreamed,
    Warned,
)
from tagent_nb.notebook.panel.feed import MAX_TEXT, RunFeed
from tagent_nb.results import PipelineResult

RUN = "r1"


def test_text_goes_to_its_step_and_only_its_end_is_kept() -> None:
    feed = RunFeed()
    feed(StepStreamed(run_id=RUN, step="a", text="one "))
    feed(StepStreamed(run_id=RUN, step="b", text="other"))
    feed(StepStreamed(run_id=RUN, step="a", text="two"))
    assert feed.texts == {"a": "one two", "b": "other"}
    feed(StepStreamed(run_id=RUN, step="a", text="x" * MAX_TEXT + "end"))
    assert len(feed.texts["a"]) == MAX_TEXT
    assert feed.texts["a"].endswith("xend")


def test_a_progress_bar_writes_over_its_line() -> None:
    """As in a terminal; Windows' line ends are none of that."""
    feed = RunFeed()
    for text in ("begin\r\n", "\r10%", "\r20%", "\r\r30% \r", "done\n", "end\r"):
        feed(StepStreamed(run_id=RUN, step="a", text=text))
    assert feed.texts["a"] == "begin\r\ndone\nend\r"


def test_text_of_items_says_whose_line_it_is() -> None:
    feed = RunFeed()
    for item, text in (
        ("0", "po"),
        ("0", "sitive\n"),
        ("0", "next\n"),
        ("1", "neg"),
        ("0", "late"),
        ("0", "r"),
    ):
        feed(StepStreamed(run_id=RUN, step="a", item=item, text=text))
    assert feed.texts["a"] == "[0] positive\n[0] next\n[1] neg\n[0] later"


def test_calls_of_tools_stand_on_lines_of_their_own_among_the_text() -> None:
    feed = RunFeed()
    feed(StepStreamed(run_id=RUN, step="a", text="Looking"))
    call = {"tool": "find", "arguments": {"q": "'tea'", "n": "2"}}
    feed(StepProgress(run_id=RUN, step="a", kind="tool_call", detail=call))
    edited = {"tool": "find", "arguments": {"q": "'coffee'"}}
    feed(StepProgress(run_id=RUN, step="a", kind="tool_edited", detail=edited))
    feed(StepProgress(run_id=RUN, step="a", kind="tool_error", detail={"tool": "find", "message": "gone"}))
    feed(StepProgress(run_id=RUN, step="a", kind="phase", detail={"phase": "planning"}))
    feed(StepProgress(run_id=RUN, step="m", item="3", kind="tool_call", detail={"tool": "look"}))
    assert feed.texts == {
        "a": "Looking\n→ find(q='tea', n=2)\n✎ find(q='coffee')\n✗ find: gone\n",
        "m": "[3] → look()\n",
    }


def test_a_run_has_begun_with_its_first_event_and_every_event_is_a_change() -> None:
    feed = RunFeed()
    feed(Warned(run_id=RUN, message="careful"))
    assert feed.changed.is_set()
    assert not feed.began.is_set()
    feed(RunStarted(run_id=RUN, pipeline="p", steps=()))
    assert feed.began.is_set()


def test_touched_steps_are_reported_once() -> None:
    feed = RunFeed()
    feed(StepStarted(run_id=RUN, step="a"))
    feed(StepStreamed(run_id=RUN, step="b", text="x"))
    feed(StepStreamed(run_id=RUN, step="b", text="y"))
    assert feed.touched() == {"a", "b"}
    assert feed.touched() == set()


def test_all_steps_are_new_when_a_run_begins_or_goes_on() -> None:
    """A view that was drawn before its run was opened shows what is recorded of steps that run no more."""
    feed = RunFeed()
    feed(RunStarted(run_id=RUN, pipeline="p", steps=("a", "b")))
    assert feed.touched() == {"a", "b"}
    feed(RunResumed(run_id=RUN, steps=("a", "b"), kept=("a",)))
    assert feed.touched() == {"a", "b"}


def test_a_feed_tells_observers_and_keeps_the_outcome() -> None:
    seen: list[Event] = []
    feed = RunFeed([seen.append])
    event = Warned(run_id=RUN, message="careful")
    feed(event)
    assert seen == [event]
    assert feed.result is None
    feed.end(ValueError("refused"))
    assert feed.over.is_set()
    assert feed.result is None
    result = PipelineResult("p", True, 1.0)
    feed.end(result)
    assert feed.result is result
