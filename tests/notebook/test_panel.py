"""The panel: its buttons, what it shows while a run goes on, and what stays when it has ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from html_safety import HOSTILE, assert_safe
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

from tagent_nb.engine import Durations
from tagent_nb.errors import StorageUnavailableError, TagentError
from tagent_nb.events import Event, StepFinished
from tagent_nb.notebook.panel import controller as room
from tagent_nb.notebook.panel.controller import INTERVAL, Panel
from tagent_nb.notebook.panel.feed import RunFeed
from tagent_nb.notebook.panel.view import TWIN_STYLE, PanelView
from tagent_nb.notebook.session import Session
from tagent_nb.pipeline import PipelineStep, StepStatus
from tagent_nb.results import PipelineResult, StepResult
from tests.fake_batches import KEY, FakeBatches, fake_batches


@pytest.fixture
def session(tmp_path: Path) -> Session:
    made = Session({}, tmp_path / "session")
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


def begin(panel: Panel, **options: Any) -> PanelView:
    """Start a run, and show the panel as soon as it has begun."""
    panel.start(**options)
    assert panel.feed is not None
    assert panel.feed.began.wait(10)
    panel.show()
    return view_of(panel)


def view_of(panel: Panel) -> PanelView:
    assert panel.view is not None
    return panel.view


def ended(panel: Panel) -> None:
    """Wait for the last drawing of the run that the panel shows, and until another can begin."""
    assert panel.feed is not None
    assert panel.feed.drawn.wait(10)
    until(lambda: not panel.workspace.running)


def until(condition: Any) -> None:
    """Wait, a bounded time, for something that another thread does."""
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.01)


def updates(shown: CapturingDisplayPublisher) -> list[dict[str, Any]]:
    return [output for output in shown.outputs if output.get("update")]


def left(shown: CapturingDisplayPublisher) -> tuple[str, str, str]:
    """Text and HTML of the table, and the SVG of the picture, as the notebook has them now."""
    _, table, picture = [output for output in shown.outputs if not output.get("update")][-3:]
    for output in updates(shown):
        if output["transient"] == table["transient"]:
            table = output
        elif output["transient"] == picture["transient"]:
            picture = output
    return table["data"]["text/plain"], table["data"]["text/html"], picture["data"].get("image/svg+xml", "")


def offered(view: PanelView) -> list[str]:
    return [
        name for name, button in view.buttons.items() if button.layout.display is None and not button.disabled
    ]


def row(view: PanelView, name: str) -> list[str]:
    return next(cells for cells in view.table.rows.values() if cells[0] == name)


def node(view: PanelView, name: str) -> list[str]:
    (node_id,) = [ident for ident, step in view.graph.names.items() if step == name]
    label: list[str] = view.graph.labels[node_id]
    return label


def noting(name: str, code: str, **options: Any) -> PipelineStep:
    """A step that notes each of its runs in a file; a global would be part of its fingerprint."""
    return cell(name, f"with open(effects, 'a') as file:\n    file.write('{name} ')\n{code}", **options)


WAIT = "import os, time\nwhile not os.path.exists(gate): time.sleep(0.01)\n"


@pytest.fixture
def gate(session: Session, tmp_path: Path) -> Path:
    """A file that steps with ``WAIT`` wait for."""
    session.namespace["gate"] = str(tmp_path / "gate")  # type: ignore[index]
    return tmp_path / "gate"


@pytest.fixture
def effects(session: Session, tmp_path: Path) -> Path:
    """A file in which ``noting`` steps note their runs."""
    session.namespace["effects"] = str(tmp_path / "effects")  # type: ignore[index]
    return tmp_path / "effects"


# -- one run ------------------------------------------------------------------------------


def test_while_it_runs_the_panel_is_a_widget_and_it_leaves_a_table_and_a_picture(
    session: Session, shown: CapturingDisplayPublisher, gate: Path
) -> None:
    put(session, cell("load", f"print('seen', flush=True)\n{WAIT}5"), cell("more", "load + 1"))
    results: list[PipelineResult] = []
    panel = live(session, on_result=results.append)
    view = begin(panel)
    widgets, table, picture = shown.outputs
    assert "application/vnd.jupyter.widget-view+json" in widgets["data"]
    assert table["data"] == picture["data"] == {"text/html": "", "text/plain": ""}
    until(lambda: "seen" in row(view, "load")[8])
    assert row(view, "load")[1] == "running"
    assert row(view, "more")[1] == "pending"
    until(lambda: node(view, "load")[0] == "running")
    assert "0 of 2 steps" in view.head.value
    assert offered(view) == ["stop", "pause"]
    assert view.table.announcement == "reviews: running"
    gate.touch()
    ended(panel)
    text, html, svg = left(shown)
    assert "✓ more: completed" in text
    assert TWIN_STYLE in html
    assert "seen" in html
    assert svg.count("tagent-completed") >= 2
    assert results[0]["more"] == 6
    assert (row(view, "more")[1], node(view, "more")[0]) == ("completed", "completed")
    assert offered(view) == ["run", "force"]
    assert view.table.announcement == "reviews: completed"


def test_thousands_of_events_are_drawn_a_few_times(
    session: Session, shown: CapturingDisplayPublisher
) -> None:
    put(session, cell("chatty", "for n in range(5000): print(n)"))
    panel = live(session)
    panel.start()
    assert panel.feed is not None
    assert panel.feed.began.wait(10)
    began = time.monotonic()
    panel.show()
    drawings: list[object] = []
    view_of(panel).head.observe(drawings.append, "value")
    ended(panel)
    # Each drawing but the last is followed by a wait of at least INTERVAL.
    assert len(drawings) <= 3 + (time.monotonic() - began) / INTERVAL


def test_stop_stops_and_resume_goes_on_in_the_same_place(
    session: Session, shown: CapturingDisplayPublisher, gate: Path, effects: Path
) -> None:
    put(session, noting("first", "1"), noting("second", f"{WAIT}first + 1"))
    panel = live(session)
    view = begin(panel)
    until(lambda: effects.exists() and "second" in effects.read_text())
    view.buttons["stop"].click()
    assert view.buttons["stop"].disabled or panel.feed is None or panel.feed.over.is_set()
    ended(panel)
    text, _, svg = left(shown)
    assert "cancelled" in text
    assert "%tagent_run --resume carries this run on" in text
    assert "tagent-cancelled" in svg
    assert offered(view) == ["run", "go_on", "force"]
    gate.touch()
    view.buttons["go_on"].click()
    ended(panel)
    assert effects.read_text() == "first second second "
    assert [row(view, name)[1] for name in ("first", "second")] == ["completed", "completed"]
    assert "✓ second: completed" in left(shown)[0]
    assert session.result is not None
    assert session.result["second"] == 2


def test_a_resumed_run_counts_the_items_that_it_keeps(
    session: Session, shown: CapturingDisplayPublisher, gate: Path
) -> None:
    """And one that was stopped is not done."""
    each = WAIT.replace("while", "while item == 2 and") + "item"
    put(session, cell("rows", "[0, 1, 2]"), cell("each", each, map_over="rows"))
    panel = live(session)
    view = begin(panel)
    until(lambda: row(view, "each")[2].startswith("2/3 items"))
    view.buttons["stop"].click()
    ended(panel)
    assert row(view, "each")[2].startswith("2/3 items")
    gate.touch()
    view.buttons["go_on"].click()
    ended(panel)
    assert row(view, "each")[1] == "completed"
    assert row(view, "each")[2].startswith("3/3 items")


def test_pause_lets_what_runs_end_and_resume_starts_the_rest(
    session: Session, shown: CapturingDisplayPublisher, gate: Path
) -> None:
    put(session, cell("first", f"{WAIT}1"), cell("second", "first + 1"))
    panel = live(session)
    view = begin(panel)
    until(lambda: row(view, "first")[1] == "running")
    view.buttons["pause"].click()
    until(lambda: offered(view) == ["stop", "go_on"])
    assert "paused" in view.head.value
    gate.touch()
    until(lambda: row(view, "first")[1] == "completed")
    assert row(view, "second")[1] == "pending"
    view.buttons["go_on"].click()
    ended(panel)
    assert session.result is not None
    assert session.result["second"] == 2


def test_a_failed_run_offers_to_retry_and_says_what_refuses_it(
    session: Session, shown: CapturingDisplayPublisher, tmp_path: Path
) -> None:
    session.namespace["luck"] = str(tmp_path / "luck")  # type: ignore[index]
    put(session, cell("load", "7 if __import__('os').path.exists(luck) else 1 / 0", max_retries=0))
    panel = live(session)
    view = begin(panel)
    ended(panel)
    text = left(shown)[0]
    assert "✗ load: failed" in text
    assert "ZeroDivisionError" in text
    assert "tries the failed steps again" in text
    assert "ZeroDivisionError" in row(view, "load")[6]
    assert "1 / 0" in row(view, "load")[7]
    assert view.table.announcement == "reviews: failed; failed: load"
    assert offered(view) == ["run", "retry", "force"]
    session.put(PipelineStep("report", "{{ nowhere }}"))
    view.buttons["retry"].click()
    ended(panel)
    assert "nowhere" in view.head.value
    assert offered(view) == ["run", "retry", "force"]
    assert left(shown)[0] == ""  # a run that was refused leaves nothing
    session.pipeline.remove("report")
    (tmp_path / "luck").touch()
    view.buttons["retry"].click()
    ended(panel)
    assert session.result is not None
    assert session.result["load"] == 7
    assert offered(view) == ["run", "force"]


def test_failed_rows_of_a_run_that_succeeded_are_tried_again_by_the_same_button(
    session: Session, shown: CapturingDisplayPublisher, tmp_path: Path
) -> None:
    session.namespace["luck"] = str(tmp_path / "luck")  # type: ignore[index]
    body = "item if __import__('os').path.exists(luck) or item != 2 else 1 / 0"
    put(session, cell("load", "[1, 2, 3]"))
    put(session, cell("each", body, map_over="load", min_success=0.5, max_retries=0))
    panel = live(session)
    view = begin(panel)
    ended(panel)
    assert "1 of 3 items failed in each" in view.head.value
    assert "--retry-failed" in left(shown)[0]
    assert offered(view) == ["run", "retry", "force"]
    (tmp_path / "luck").touch()
    view.buttons["retry"].click()
    ended(panel)
    assert session.result is not None
    assert session.result["each"] == [1, 2, 3]
    assert "1 failed item is tried again" in row(view, "each")[2]
    assert offered(view) == ["run", "force"]


def test_details_that_take_long_are_drawn_now_and_then_and_in_the_end(
    session: Session, shown: CapturingDisplayPublisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "DETAILS_REST", 1e9)
    gate = tmp_path / "gate"
    session.namespace["gate"] = str(gate)  # type: ignore[index]
    code = "import os, time\nfor _ in range(3):\n    print('working')\n    time.sleep(0.15)\n"
    put(session, cell("load", code + "while not os.path.exists(gate):\n    time.sleep(0.01)\n7"))
    panel = live(session)
    drawn: list[str] = []
    details = panel._details
    monkeypatch.setattr(panel, "_details", lambda: drawn.append(details()) or drawn[-1])
    view = begin(panel)
    panel.select("load")
    until(lambda: row(view, "load")[8].count("working") == 3)
    assert len(drawn) <= 2  # one for the click, one for what was new then
    assert "7" not in drawn[-1].partition("output")[2]
    gate.touch()
    ended(panel)
    assert "7" in view.details.value.partition("output")[2]


def test_force_runs_the_chosen_step_anew_and_nothing_without_a_choice(
    session: Session, shown: CapturingDisplayPublisher, effects: Path
) -> None:
    session.workspace.cached = True
    put(session, noting("first", "1"), noting("second", "2"))
    panel = live(session)
    panel.show()
    view = view_of(panel)
    assert "not run yet" in view.head.value
    view.buttons["force"].click()
    assert panel.feed is None
    view.buttons["run"].click()
    ended(panel)
    view.step.value = "second"
    view.buttons["force"].click()
    ended(panel)
    assert effects.read_text() == "first second second "
    assert row(view, "first")[1] == "cached"


def test_offline_runs_ask_no_model(session: Session, shown: CapturingDisplayPublisher) -> None:
    session.use("reviews", model="test")
    session.put(PipelineStep("ask", "Say hello.", max_retries=0))
    panel = live(session)
    panel.show()
    view = view_of(panel)
    view.offline.value = True
    view.buttons["run"].click()
    ended(panel)
    assert row(view, "ask")[1] == "failed"
    assert "offline" in row(view, "ask")[6]


def test_a_click_while_another_run_goes_on_says_so(
    session: Session, shown: CapturingDisplayPublisher, gate: Path
) -> None:
    put(session, cell("load", f"{WAIT}1"))
    panel = live(session)
    panel.show()
    other = session.start()
    panel.run()
    assert "running already" in view_of(panel).head.value
    gate.touch()
    other.result(10)


def test_without_a_front_end_the_end_is_reported_as_text(
    session: Session, shown: CapturingDisplayPublisher
) -> None:
    put(session, cell("load", "1"))
    panel = Panel(session, session.workspace, live=False)
    panel.start()
    panel.show()
    ended(panel)
    panel.settle()
    panel.select("load")
    panel.open_group("load")
    panel.close()
    (only,) = shown.outputs
    assert "✓ load: completed" in only["data"]["text/plain"]


def test_a_run_that_ends_before_the_panel_is_built_leaves_its_table(
    session: Session, shown: CapturingDisplayPublisher
) -> None:
    put(session, cell("load", "1"))
    panel = live(session)
    panel.start()
    ended(panel)
    panel.show()
    text, _, svg = left(shown)
    assert "✓ load: completed" in text
    assert "tagent-completed" in svg
    count = len(shown.outputs)
    panel.settle()
    assert len(shown.outputs) == count


def test_buttons_without_a_run_do_nothing(session: Session) -> None:
    panel = live(session)
    panel.stop()
    panel.pause()
    panel.settle()
    panel.close()
    assert session.result is None


@pytest.fixture
def provider(session: Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBatches]:
    """A provider that has a batch of a step, and does not answer it."""
    with fake_batches(hold=True) as fake:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", f"{fake.url}/v1")
        step = PipelineStep("judge", "Judge {{ item }}", map_over="rows", batch=True, model="openai:gpt-4o")
        put(session, cell("rows", "['row 1', 'row 2']"), step)
        yield fake


@pytest.mark.models
def test_a_batch_is_cancelled_with_its_run(
    session: Session, shown: CapturingDisplayPublisher, provider: FakeBatches
) -> None:
    panel = live(session)
    view = begin(panel)
    until(lambda: offered(view) == ["stop", "pause", "cancel_batches"])
    panel.cancel_batches()
    ended(panel)
    assert provider.batches["batch_1"].cancelled
    assert "cancel_batches" not in offered(view)


@pytest.mark.models
def test_a_batch_is_cancelled_after_its_run(
    session: Session, shown: CapturingDisplayPublisher, provider: FakeBatches
) -> None:
    panel = live(session)
    panel.cancel_batches()
    view = begin(panel, wait=False)
    ended(panel)
    assert "Waiting for batches of judge" in view.head.value
    assert offered(view) == ["run", "go_on", "force", "cancel_batches"]
    provider.refuse = {"POST /v1/batches/ID/cancel": [(403, {})]}
    panel.cancel_batches()
    until(lambda: "not now" in view.head.value)
    panel.cancel_batches()
    until(lambda: "The batch is cancelled." in view.head.value)
    assert provider.batches["batch_1"].cancelled
    panel.cancel_batches()
    until(lambda: "0 batches are cancelled." in view.head.value)


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
    assert panel.feed is not None
    assert panel.feed.began.wait(10)
    panel.show()
    ended(panel)
    text = left(shown)[0]
    assert text.startswith("reviews: failed")
    assert "the disk is full" in text
    with pytest.raises(StorageUnavailableError):
        handle.result()


def test_hostile_output_stays_text_everywhere(session: Session, shown: CapturingDisplayPublisher) -> None:
    session.namespace["hostile"] = HOSTILE.replace("\ud800", "")  # type: ignore[index]
    put(session, cell("load", "print(hostile); raise ValueError(hostile)", max_retries=0))
    panel = live(session)
    view = begin(panel)
    ended(panel)
    panel.select("load")
    html = left(shown)[1].replace(TWIN_STYLE, "")
    assert "alert(1)" in html
    assert_safe(html)
    assert_safe(view.head.value)
    assert "alert(1)" in view.details.value
    assert_safe(view.details.value)
    assert "<script>alert(1)" in row(view, "load")[6]  # text of a cell, not HTML


# -- what is seen -------------------------------------------------------------------------


def test_details_open_by_a_click_in_graph_rows_or_choice_and_close_again(
    session: Session, shown: CapturingDisplayPublisher
) -> None:
    put(session, cell("load", "[1, 2]"), cell("total", "print('adding'); sum(load)"))
    panel = live(session)
    view = begin(panel)
    ended(panel)
    assert view.details.layout.display == "none"
    view.graph.selected = "total"
    assert panel.selected == view.table.selected == view.step.value == "total"
    assert view.details.layout.display is None
    for text in ("sum(load)", "load: [1, 2]", "adding"):
        assert text in view.details.value
    view.table.selected = "load"
    assert view.graph.selected == "load"
    assert "[1, 2]" in view.details.value
    view.step.value = ""
    assert (panel.selected, view.graph.selected, view.details.value) == ("", "", "")


def test_open_details_are_kept_up_to_date(
    session: Session, shown: CapturingDisplayPublisher, gate: Path
) -> None:
    put(session, cell("load", f"{WAIT}'the' + 'value'"))
    panel = live(session)
    view = begin(panel)
    panel.select("load")
    assert "thevalue" not in view.details.value
    gate.touch()
    ended(panel)
    assert "thevalue" in view.details.value


def test_a_panel_that_follows_shows_runs_that_others_start(
    session: Session, shown: CapturingDisplayPublisher
) -> None:
    put(session, cell("load", "1"))
    panel = live(session)
    panel.follow()
    panel.show()
    session.start().result(10)
    ended(panel)
    assert row(view_of(panel), "load")[1] == "completed"
    assert "✓ load: completed" in left(shown)[0]


def test_a_panel_that_is_opened_during_a_run_joins_it(
    session: Session, shown: CapturingDisplayPublisher, gate: Path
) -> None:
    put(session, cell("load", f"{WAIT}print('late'); 1"))
    handle = session.start()
    until(lambda: session.workspace.states())
    panel = live(session)
    panel.follow()
    panel.show()
    view = view_of(panel)
    assert offered(view) == ["stop", "pause"]
    gate.touch()
    handle.result(10)
    ended(panel)
    assert row(view, "load")[1] == "completed"


def test_a_panel_shows_the_last_run_of_this_kernel(
    session: Session, shown: CapturingDisplayPublisher
) -> None:
    put(session, cell("load", "1 / 0", max_retries=0))
    session.start().result(10)
    panel = live(session)
    panel.show()
    view = view_of(panel)
    assert "failed" in view.head.value
    assert offered(view) == ["run", "retry", "force"]
    assert row(view, "load")[1] == "failed"


def test_a_redefined_cell_lays_out_again_and_keeps_what_is_still_true(
    session: Session, shown: CapturingDisplayPublisher
) -> None:
    put(session, cell("load", "1"), cell("more", "load + 1"))
    panel = live(session)
    panel.follow()
    view = begin(panel)
    ended(panel)
    picture = view.graph.picture
    put(session, cell("more", "load + 2"), cell("last", "more"))
    until(lambda: "last" in view.graph.names.values())
    assert view.graph.picture == picture + 1  # once for both
    assert (row(view, "load")[1], node(view, "load")[0]) == ("completed", "completed")
    assert (row(view, "more")[1], node(view, "more")[0]) == ("pending", "pending")
    assert "last" in [value for _, value in view.step.options]


def test_a_cell_that_is_redefined_during_a_run_is_drawn_with_it(
    session: Session, shown: CapturingDisplayPublisher, gate: Path
) -> None:
    put(session, cell("load", f"{WAIT}1"))
    panel = live(session)
    panel.follow()
    view = begin(panel)
    put(session, cell("last", "load"))
    until(lambda: "last" in view.graph.names.values())
    gate.touch()
    ended(panel)
    assert row(view, "last")[1] == "pending"


def test_a_closed_panel_is_taken_away_and_hears_no_more(
    session: Session, shown: CapturingDisplayPublisher
) -> None:
    put(session, cell("load", "1"))
    panel = live(session)
    panel.follow()
    begin(panel)
    ended(panel)
    before = panel.feed
    panel.close()
    assert updates(shown)[-1]["transient"] == shown.outputs[0]["transient"]
    assert updates(shown)[-1]["data"] == {"text/html": "", "text/plain": ""}
    put(session, cell("load", "2"))
    session.start().result(10)
    assert panel.feed is before
    assert panel.view is None


def test_groups_of_a_large_graph_open_and_close(session: Session, shown: CapturingDisplayPublisher) -> None:
    put(session, cell("s0", "0"))
    for number in range(1, 100):
        put(session, cell(f"s{number}", f"s{number - 1} + 1"))
    panel = live(session)
    panel.show()
    graph = view_of(panel).graph
    assert graph.groups
    few, key = len(graph.names), next(iter(graph.groups.values()))
    graph._handle_custom_msg({"open": key}, [])
    assert len(graph.names) > few
    assert graph.opened
    graph._handle_custom_msg({"open": ""}, [])
    assert len(graph.names) == few
    assert not graph.opened


def test_without_graphviz_the_rows_are_there_and_the_panel_says_why(
    session: Session, shown: CapturingDisplayPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise TagentError("no picture today")

    monkeypatch.setattr(room, "Picture", fail)
    monkeypatch.setattr("tagent_nb.notebook.widgets.graph_widget.LiveGraph", fail)
    put(session, cell("load", "1"))
    panel = live(session)
    view = begin(panel)
    ended(panel)
    assert "no picture today" in view.head.value
    assert row(view, "load")[1] == "completed"
    assert left(shown)[2] == ""


def test_the_time_left_is_estimated_from_earlier_runs(
    session: Session, shown: CapturingDisplayPublisher, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.touch()
    put(session, cell("load", f"{WAIT}1"))
    session.start().result(10)
    assert "load" in session.durations(session.workspace).result(10).seconds
    gate.unlink()
    panel = live(session)
    view = begin(panel)
    until(lambda: "left" in view.head.value)
    gate.touch()
    ended(panel)
    assert "left" not in view.head.value


@pytest.mark.parametrize(
    ("step", "advice", "button"),
    [
        (
            StepResult("ask", StepStatus.FAILED, error_type="BudgetExceededError", error="too much"),
            "--resume --budget AMOUNT",
            "retry",
        ),
        (StepResult("ask", StepStatus.WAITING), "Waiting for approval of ask", "go_on"),
    ],
)
def test_a_run_that_needs_its_user_says_how_to_go_on(
    session: Session, shown: CapturingDisplayPublisher, step: StepResult, advice: str, button: str
) -> None:
    failed = ["ask"] if step.status is StepStatus.FAILED else []
    put(session, cell("ask", "1"))
    panel = live(session)
    panel.show()
    panel.feed = RunFeed()
    panel.feed.end(PipelineResult("reviews", False, 1.0, steps={"ask": step}, failed_steps=failed))
    panel._refresh()
    assert advice in view_of(panel).head.value
    assert offered(view_of(panel)) == ["run", button, "force"]


def test_a_chosen_step_stays_chosen_when_cells_are_redefined(
    session: Session, shown: CapturingDisplayPublisher
) -> None:
    put(session, cell("load", "1"))
    panel = live(session)
    panel.show()
    view = view_of(panel)
    panel.select("load")
    put(session, cell("more", "load + 1"))
    until(lambda: "more" in view.graph.names.values())
    assert panel.selected == view.step.value == view.graph.selected == "load"
    assert "1" in view.details.value


def test_a_run_stops_before_the_panel_is_shown(
    session: Session, shown: CapturingDisplayPublisher, gate: Path
) -> None:
    put(session, cell("load", f"{WAIT}1"))
    panel = live(session)
    handle = panel.start()
    until(lambda: session.workspace.states())
    panel.stop()
    assert handle.result(10).cancelled
    ended(panel)


# -- parts --------------------------------------------------------------------------------


class Noticing:
    """A part that counts events."""

    def __init__(self, panel: Panel) -> None:
        from ipywidgets import HTML

        self.panel = panel
        self.widget = HTML()
        self.events: list[Event] = []

    def observe(self, event: Event, /) -> None:
        self.events.append(event)

    def draw(self) -> None:
        self.widget.value = f"{len(self.events)} events"


def test_a_part_of_others_sees_all_events_and_is_drawn_with_the_panel(
    session: Session, shown: CapturingDisplayPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PARTS", [Noticing])
    put(session, cell("load", "1"))
    panel = live(session)
    view = begin(panel)
    ended(panel)
    (part,) = panel.parts
    assert isinstance(part, Noticing)
    assert type(part.events[0]).__name__ == "RunStarted"
    assert type(part.events[-1]).__name__ == "RunFinished"
    assert part.widget.value == f"{len(part.events)} events"
    assert part.widget in view.box.children
    assert Panel(session, session.workspace, live=False).parts == []


def test_a_panel_that_cannot_read_earlier_runs_tells_no_time(session: Session) -> None:
    panel = live(session)
    panel._past.set_exception(StorageUnavailableError("gone"))
    assert panel._left({}, {}) == 0.0
    assert Durations().pace == 1.0


def test_two_panels_show_the_same_run(session: Session, shown: CapturingDisplayPublisher) -> None:
    put(session, cell("load", "1"))
    panels = [live(session), live(session)]
    for panel in panels:
        panel.follow()
        panel.show()
    session.start().result(10)
    for panel in panels:
        ended(panel)
        assert row(view_of(panel), "load")[1] == "completed"
