"""The widgets of graph and rows: what is sent at the layout, and that only differences are sent later."""

from __future__ import annotations

from typing import Any

import pytest

from tagent_nb.events import TokenUsage
from tagent_nb.notebook.widgets.graph_widget import GraphWidget
from tagent_nb.notebook.widgets.step_table import MAX_SHOWN, StepTable, row_of, status_styles
from tagent_nb.notebook.widgets.widget_style import CSS
from tagent_nb.pipeline import Pipeline, StepStatus
from tagent_nb.results import MapProgress, StepResult
from tagent_nb.results.progress import FailureKind


def chain() -> Pipeline:
    return Pipeline("p").step("load", "go").step("more", "{{ load }}")


def step(name: str, status: StepStatus, **fields: Any) -> StepResult:
    return StepResult(name, status, **fields)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Custom messages to the front end."""
    messages: list[Any] = []
    for kind in (GraphWidget, StepTable):
        monkeypatch.setattr(kind, "send", lambda self, content: messages.append(content))
    return messages


def test_a_layout_is_sent_as_a_whole(sent: list[Any]) -> None:
    widget = GraphWidget()
    widget.send_changes(["load"], {}, 0.0)  # nothing is laid out yet
    widget.lay_out(chain(), {"load": step("load", StepStatus.COMPLETED)}, 0.0)
    state = widget.get_state()
    assert state["picture"] == 1
    assert state["svg"].startswith("<svg")
    assert state["names"] == {"node-0": "load", "node-1": "more"}
    assert [label[0] for label in state["labels"].values()] == ["completed", "pending"]
    assert state["styles"]["failed"] == ["✗", "failed"]
    assert sent == []


def test_only_what_is_new_of_a_node_is_sent_and_later_views_see_it_too(sent: list[Any]) -> None:
    widget = GraphWidget()
    widget.lay_out(chain(), {}, 0.0)
    done = {"load": step("load", StepStatus.COMPLETED)}
    widget.send_changes(["load", "more", "gone"], done, 0.0)
    widget.send_changes(["load", "more"], done, 0.0)
    assert sent == [
        {"picture": 1, "labels": {"node-0": ["completed", "✓ load", "", "load: completed\nagent"]}}
    ]
    assert widget.get_state("labels")["labels"]["node-0"][0] == "completed"


def test_rows_are_sent_as_a_whole_once_and_then_one_by_one(sent: list[Any]) -> None:
    table = StepTable()
    pending = row_of(step("a", StepStatus.PENDING), None, "", 0.0)
    table.rebuild({"a": pending, "b": pending})
    assert table.get_state("rows")["rows"] == {"0": pending, "1": pending}
    failed = row_of(step("b", StepStatus.FAILED, error="no"), None, "", 0.0)
    table.send_changes({"a": pending, "b": failed})
    table.send_changes({"b": failed})
    assert sent == [{"rows": {"1": failed}}]
    assert table.get_state("rows")["rows"]["1"] == failed


def test_a_row_tells_state_items_time_tokens_cost_and_error() -> None:
    done = step("a", StepStatus.COMPLETED, seconds=12.0, usage=TokenUsage(1000, 200), cost=0.02, reason="new")
    items = MapProgress(4, (1, 1, 1, 0), (FailureKind("E", 1, ((7, "bad"),)),))
    assert row_of(done, items, "printed", 0.0) == [
        *("a", "completed", "3/4 items, 1 cached, 1 failed · new", "12 s", "1.2k", "$0.0200", "", "", ""),
        "1,1,1,0,4",
        '[["1 x E", "item 7: bad"]]',
    ]
    assert row_of(done, None, "", 0.0)[9:] == row_of(done, MapProgress(0), "", 0.0)[9:] == ["", ""]
    unknown = step("a", StepStatus.COMPLETED, cost=None)
    assert row_of(unknown, None, "", 0.0)[3:6] == ["", "", "$?"]
    failed = step("a", StepStatus.FAILED, error_type="E", error="bad", traceback="line 1")
    assert row_of(failed, None, "", 0.0)[6:8] == ["E: bad", "line 1"]


def test_a_running_row_has_a_clock_and_the_end_of_its_text() -> None:
    running = step("a", StepStatus.RUNNING, started_at=100.0)
    row = row_of(running, None, "x" * 2000 + "end\ud800", 112.0)
    assert row[3] == "12 s"
    assert len(row[8]) == MAX_SHOWN
    assert row[8].endswith("xend\ufffd")
    assert row_of(step("a", StepStatus.RUNNING), None, "", 112.0)[3] == "0.0 s"


def test_every_state_has_a_mark_a_word_and_a_style() -> None:
    assert set(status_styles()) == {status.value for status in StepStatus}
    for status in StepStatus:
        assert f".tagent-{status.value}" in CSS


def test_scripts_and_styles_are_shipped_and_fetch_nothing() -> None:
    for widget in (GraphWidget(), StepTable()):
        source = str(widget._esm)
        assert "export default" in source
        assert "innerHTML" not in source
        assert "import " not in source
        assert "fetch(" not in source
    assert "url(" not in CSS
    assert "@import" not in CSS
