"""The panel: what it folds from events, when it draws, and what stays when the run has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from html_safety import HOSTILE, assert_safe
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

from tagent_nb.errors import StorageUnavailableError
from tagent_nb.events import (
    RunStarted,
    StepCached,
    StepFailed,
    StepFinished,
    StepStarted,
    StepStreamed,
    Warned,
)
from tagent_nb.notebook.panel import INTERVAL, MOST_TEXT, Feed, Panel
from tagent_nb.notebook.session import Session
from tagent_nb.pipeline.codec import StoredValue
from tagent_nb.pipeline.models import PipelineStep
from tagent_nb.pipeline.result import PipelineResult

RUN = "r1"


@pytest.fixture
def session(tmp_path: Path) -> Session:
    made = Session({}, tmp_path)
    made.use("reviews", cached=False)
    return made


@pytest.fixture
def shown() -> Iterator[CapturingDisplayPublisher]:
    """Everything that is displayed, and displayed again, in a shell of the test's own."""
    shell = InteractiveShell.instance()
    before = shell.display_pub
    shell.display_pub = CapturingDisplayPublisher()
    yield shell.display_pub
    shell.display_pub = before


def cell(name: str, code: str, **options: Any) -> PipelineStep:
    return PipelineStep.from_cell(name, code, python=True, **options)


def put(session: Session, *steps: PipelineStep) -> None:
    for step in steps:
        session.put(step)


def live(session: Session, **fields: Any) -> Panel:
    return Panel(session, session.workspace, live=True, **fields)


def updates(shown: CapturingDisplayPublisher) -> list[dict[str, Any]]:
    return [one for one in shown.outputs if one.get("update")]


# -- the fold -----------------------------------------------------------------------------


def test_text_goes_to_its_step_and_only_its_end_is_kept() -> None:
    feed = Feed()
    feed(StepStreamed(run_id=RUN, step="a", text="one "))
    feed(StepStreamed(run_id=RUN, step="b", text="other"))
    feed(StepStreamed(run_id=RUN, step="a", text="two"))
    assert feed.texts == {"a": "one two", "b": "other"}
    feed(StepStreamed(run_id=RUN, step="a", text="x" * MOST_TEXT + "end"))
    assert len(feed.texts["a"]) == MOST_TEXT
    assert feed.texts["a"].endswith("xend")


def test_text_of_items_says_whose_line_it_is() -> None:
    feed = Feed()
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


def test_items_are_counted_while_they_end() -> None:
    feed = Feed()
    value = StoredValue.of(1)
    feed(StepStarted(run_id=RUN, step="m", items=4))
    feed(StepStarted(run_id=RUN, step="m", item="0"))
    feed(StepFinished(run_id=RUN, step="m", item="0", output=value))
    feed(StepCached(run_id=RUN, step="m", item="1", output=value, key="k"))
    feed(StepFailed(run_id=RUN, step="m", item="2", error_type="E", message="bad"))
    feed(StepFinished(run_id=RUN, step="m", output=value))
    assert feed.items == {"m": [3, 1, 4]}


def test_a_run_has_begun_with_its_first_event_and_every_event_is_a_change() -> None:
    feed = Feed()
    feed(Warned(run_id=RUN, message="careful"))
    assert feed.changed.is_set()
    assert not feed.began.is_set()
    feed(RunStarted(run_id=RUN, pipeline="p", steps=()))
    assert feed.began.is_set()


# -- one run ------------------------------------------------------------------------------


def test_while_it_runs_the_panel_is_a_widget_and_afterwards_a_table(
    session: Session, shown: CapturingDisplayPublisher
) -> None:
    gate = threading.Event()
    session.namespace["gate"] = gate  # type: ignore[index]
    put(session, cell("load", "print('seen', flush=True); gate.wait(10); 5"))
    results: list[PipelineResult] = []
    panel = live(session, on_result=results.append)
    panel.start()
    assert panel.sitting.feed.began.wait(10)
    panel.show()
    view, twin = shown.outputs
    assert "application/vnd.jupyter.widget-view+json" in view["data"]
    assert twin["data"] == {"text/html": "", "text/plain": ""}
    _until(lambda: "seen" in panel.widgets.html.value)  # type: ignore[union-attr]
    assert "running" in panel.widgets.html.value  # type: ignore[union-attr]
    gate.set()
    assert panel.sitting.drawn.wait(10)
    table, empty = updates(shown)
    assert "✓ load: completed" in table["data"]["text/plain"]
    assert "seen" in table["data"]["text/html"]
    assert table["transient"] == twin["transient"]
    assert empty["data"] == {"text/html": "", "text/plain": ""}
    assert empty["transient"] == view["transient"]
    assert results[0]["load"] == 5


def _until(condition: Any) -> None:
    """Wait, a bounded time, for something that another thread does."""
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


def test_thousands_of_events_are_drawn_a_few_times(
    session: Session, shown: CapturingDisplayPublisher
) -> None:
    put(session, cell("chatty", "for n in range(5000): print(n)"))
    panel = live(session)
    panel.start()
    assert panel.sitting.feed.began.wait(10)
    began = time.monotonic()
    panel.show()
    drawings: list[object] = []
    panel.widgets.html.observe(drawings.append, "value")  # type: ignore[union-attr]
    assert panel.sitting.drawn.wait(20)
    # Each drawing but the last is followed by a wait of at least INTERVAL.
    assert len(drawings) <= 2 + (time.monotonic() - began) / INTERVAL


def noting(name: str, code: str, **options: Any) -> PipelineStep:
    """A step that notes each of its runs in a file; a global would be part of its fingerprint."""
    return cell(name, f"with open(effects, 'a') as file:\n    file.write('{name} ')\n{code}", **options)


WAIT = "import os, time\nwhile not os.path.exists(gate): time.sleep(0.01)\n"


def test_stop_stops_and_resume_goes_on_in_the_same_place(
    session: Session, shown: CapturingDisplayPublisher, tmp_path: Path
) -> None:
    effects, gate = tmp_path / "effects", tmp_path / "gate"
    session.namespace.update(effects=str(effects), gate=str(gate))  # type: ignore[attr-defined]
    put(session, noting("first", "1"), noting("second", f"{WAIT}first + 1"))
    panel = live(session)
    panel.start()
    assert panel.sitting.feed.began.wait(10)
    panel.show()
    _until(lambda: effects.exists() and "second" in effects.read_text())
    panel.widgets.stop.click()  # type: ignore[union-attr]
    assert panel.sitting.drawn.wait(10)
    told = updates(shown)[-1]["data"]["text/plain"]
    assert "cancelled" in told
    assert "%tagent_run --resume carries this run on" in told
    again = panel.widgets.again  # type: ignore[union-attr]
    assert (again.description, again.disabled, again.layout.display) == ("Resume", False, None)
    gate.touch()
    again.click()
    assert panel.sitting.drawn.wait(10)
    assert effects.read_text() == "first second second "
    assert "✓ second: completed" in updates(shown)[-2]["data"]["text/plain"]
    assert session.result is not None
    assert session.result["second"] == 2


def test_a_failed_run_offers_to_retry_and_says_what_refuses_it(
    session: Session, shown: CapturingDisplayPublisher, tmp_path: Path
) -> None:
    session.namespace["luck"] = str(tmp_path / "luck")  # type: ignore[index]
    put(session, cell("load", "7 if __import__('os').path.exists(luck) else 1 / 0", max_retries=0))
    panel = live(session)
    panel.start()
    assert panel.sitting.feed.began.wait(10)
    panel.show()
    assert panel.sitting.drawn.wait(10)
    told = updates(shown)[-1]["data"]["text/plain"]
    assert "✗ load: failed" in told
    assert "ZeroDivisionError" in told
    assert "tries the failed steps again" in told
    again = panel.widgets.again  # type: ignore[union-attr]
    assert again.description == "Retry failed"
    session.put(PipelineStep("report", "{{ nowhere }}"))
    again.click()
    assert panel.sitting.drawn.wait(10)
    told = updates(shown)[-1]["data"]["text/plain"]
    assert told.startswith("reviews: failed")
    assert "nowhere" in told
    assert not again.disabled
    session.pipeline.remove("report")
    (tmp_path / "luck").touch()
    again.click()
    assert panel.sitting.drawn.wait(10)
    assert session.result is not None
    assert session.result["load"] == 7
    done = panel.sitting
    again.click()
    assert panel.sitting is done


def test_a_click_while_another_run_goes_on_says_so(
    session: Session, shown: CapturingDisplayPublisher, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    session.namespace["gate"] = str(gate)  # type: ignore[index]
    put(session, cell("load", f"{WAIT}1 / 0", max_retries=0))
    panel = live(session)
    panel.start()
    assert panel.sitting.feed.began.wait(10)
    panel.show()
    gate.touch()
    assert panel.sitting.drawn.wait(10)
    gate.unlink()
    other = session.start()
    again = panel.widgets.again  # type: ignore[union-attr]
    again.click()
    assert "running already" in updates(shown)[-1]["data"]["text/plain"]
    assert not again.disabled
    gate.touch()
    other.result(10)


def test_without_a_front_end_the_end_is_told_as_text(
    session: Session, shown: CapturingDisplayPublisher
) -> None:
    put(session, cell("load", "1"))
    panel = Panel(session, session.workspace, live=False)
    panel.start()
    panel.show()
    assert panel.sitting.drawn.wait(10)
    panel.settle()
    (only,) = shown.outputs
    assert "✓ load: completed" in only["data"]["text/plain"]


def test_a_run_that_ends_before_the_panel_is_built_leaves_its_table(
    session: Session, shown: CapturingDisplayPublisher
) -> None:
    put(session, cell("load", "1"))
    panel = live(session)
    panel.start()
    assert panel.sitting.drawn.wait(10)
    panel.show()
    assert "✓ load: completed" in updates(shown)[0]["data"]["text/plain"]
    panel.settle()
    assert len(updates(shown)) == 2


def test_a_stop_without_a_run_does_nothing(session: Session) -> None:
    panel = live(session)
    panel.stop()
    panel.settle()
    panel.again()
    assert session.result is None


def test_a_run_that_cannot_be_recorded_says_so_in_the_panel(
    session: Session, shown: CapturingDisplayPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(session, cell("load", "1"), cell("more", "load"))
    storage = session.workspace.storage
    append = storage.append

    async def fail_later(pipeline_id: str, run_id: str, events: Any, **fields: Any) -> None:
        if any(isinstance(event, StepFinished) for event in events):
            raise StorageUnavailableError("the disk is full")
        await append(pipeline_id, run_id, events, **fields)

    monkeypatch.setattr(storage, "append", fail_later)
    panel = live(session)
    handle = panel.start()
    assert panel.sitting.feed.began.wait(10)
    panel.show()
    assert panel.sitting.drawn.wait(10)
    text = updates(shown)[-1]["data"]["text/plain"]
    assert text.startswith("reviews: failed")
    assert "the disk is full" in text
    with pytest.raises(StorageUnavailableError):
        handle.result()


def test_hostile_output_stays_text_in_widget_and_table(
    session: Session, shown: CapturingDisplayPublisher
) -> None:
    session.namespace["hostile"] = HOSTILE.replace("\ud800", "")  # type: ignore[index]
    put(session, cell("load", "print(hostile); raise ValueError(hostile)", max_retries=0))
    panel = live(session)
    panel.start()
    assert panel.sitting.feed.began.wait(10)
    panel.show()
    assert panel.sitting.drawn.wait(10)
    html = updates(shown)[-1]["data"]["text/html"]
    assert "alert(1)" in html
    assert_safe(html)
    assert_safe(panel.widgets.html.value)  # type: ignore[union-attr]
