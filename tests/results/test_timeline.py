"""When steps worked and what held a run up, and several runs as frames."""

from __future__ import annotations

import asyncio
import pickle
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tagent_nb import (
    DefinitionError,
    ExecutionMode,
    FileStorageBackend,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    StepResult,
    UnknownStepError,
)
from tagent_nb.pipeline import StepStatus
from tagent_nb.results.history import RunHistory


def ran(spans: dict[str, tuple[float, float]], **waits: list[str]) -> PipelineResult:
    """A result whose steps worked from and to these times, and waited for others."""
    steps = {
        name: StepResult(name, StepStatus.COMPLETED, started_at=100.0 + start, ended_at=100.0 + end)
        for name, (start, end) in spans.items()
    }
    return PipelineResult("p", True, 1.0, steps=steps, dependencies=waits)


def test_the_critical_path_follows_what_each_step_waited_for_longest() -> None:
    spans = {"load": (0.0, 1.0), "fast": (1.0, 1.1), "slow": (1.0, 3.0), "report": (3.0, 4.0)}
    timeline = ran(spans, fast=["load"], slow=["load"], report=["fast", "slow"]).timeline()
    assert timeline.critical_path == ["load", "slow", "report"]
    assert timeline.seconds == 4.0
    frame = timeline.to_frame()
    assert frame.index.tolist() == ["load", "slow", "fast", "report"] or frame.index.tolist()[0] == "load"
    assert frame.loc["slow", ["start", "end"]].tolist() == [1.0, 3.0]
    assert frame["critical"].sum() == 3


def test_a_step_that_waited_for_room_was_held_up_by_the_one_that_made_it() -> None:
    """Serial steps: each begins when the one before has ended, whatever it reads."""
    timeline = ran({"a": (0.0, 1.0), "b": (1.0, 3.0), "c": (3.0, 4.0)}, c=["a"]).timeline()
    assert timeline.critical_path == ["a", "b", "c"]


def test_dependencies_are_known_of_runs_of_this_process_and_of_stored_ones(tmp_path: Path) -> None:
    pipeline = Pipeline("p", default_mode=ExecutionMode.CONCURRENT)
    pipeline.task(lambda: [1, 2], name="load")
    pipeline.task(lambda load: load, name="each", map_over="load")
    pipeline.task(lambda each, load: 1, name="report", depends_on=["each"])
    storage = FileStorageBackend(tmp_path)
    result = PipelineExecutor(pipeline, storage=storage).run()
    stored = asyncio.run(PipelineExecutor(pipeline, storage=storage).load_result())
    for run in (
        result,
        stored,
        PipelineResult.from_json(result.to_json()),
        pickle.loads(result.to_pickle()),
    ):
        assert {name: sorted(names) for name, names in run.dependencies.items()} == {
            "load": [],
            "each": ["load"],
            "report": ["each", "load"],
        }
        assert dict(run.sources) == {"each": "load"}
        assert run.timeline().critical_path == ["load", "each", "report"]
    assert repr(result.sources) == "{'each': 'load'}"
    assert result.sources["each"] == "load"
    assert len(result.sources) == 1


def test_the_picture_has_a_bar_for_each_step_and_is_well_formed(tmp_path: Path) -> None:
    """Names and states are escaped; each bar says its state, seconds and cost."""
    result = ran({"a": (0.0, 2.0), "b": (2.0, 2.0)}, b=["a"])
    result.steps["a"].cost = 0.5
    result.steps["b"].status = StepStatus.FAILED
    result.pipeline_name = "<p>"
    timeline = result.timeline()
    root = ET.fromstring(timeline.to_svg())
    assert root.get("aria-label") == "<p>: 2.0 s, held up by a → b"
    titles = [element.text for element in root.iter() if element.tag.endswith("title")]
    assert titles == ["a: completed, 2.0 s, $0.50", "b: failed, 0.0 s, $0"]
    widths = [float(element.get("width", 0)) for element in root.iter() if element.tag.endswith("rect")]
    assert widths == [420.0, 2.0]
    assert "&lt;p&gt;: 2.0 s" in timeline._repr_html_()
    assert "* a  0.0 s to 2.0 s  completed  $0.50" in repr(timeline)
    timeline.save(tmp_path / "t.svg")
    assert (tmp_path / "t.svg").read_text() == timeline.to_svg() + "\n"
    with pytest.raises(DefinitionError, match="saved as .svg"):
        timeline.save(tmp_path / "t.png")


def test_a_run_without_steps_and_one_with_many_have_a_picture() -> None:
    empty = PipelineResult("p", True, 0.0).timeline()
    assert (empty.seconds, empty.critical_path, len(empty.to_frame())) == (0.0, [], 0)
    assert "held up by nothing" in repr(empty)
    ET.fromstring(empty.to_svg())
    spans = {f"s{place}": (float(place), place + 1.0 + (place % 2) / 10) for place in range(250)}
    many = ran(spans, **{f"s{place}": [f"s{place - 1}"] for place in range(1, 250)}).timeline()
    assert "50 shorter steps left out: see to_frame()" in repr(many)
    assert many.to_svg().count("<rect") == 200
    assert "and 242 more" in repr(many)


# -- several runs -----------------------------------------------------------------------------------


def history(tmp_path: Path, runs: int = 2) -> RunHistory:
    def each(load: int) -> int:
        if load > 1:
            raise NameError("too many")
        return load

    pipeline = Pipeline("p")
    pipeline.task(lambda: [1, 2, 3], name="load")
    pipeline.task(each, map_over="load", min_success=0.0, when="item < 3")
    executor = PipelineExecutor(pipeline, storage=FileStorageBackend(tmp_path))
    for _ in range(runs):
        executor.run()
    return asyncio.run(executor.load_history())


def test_steps_items_and_events_of_several_runs_are_one_frame(tmp_path: Path) -> None:
    runs = history(tmp_path)
    ids = [result.run_id for result in runs]
    assert runs.runs_frame().index.tolist() == ids
    assert runs.runs_frame()["status"].tolist() == ["completed", "completed"]
    assert runs.runs_frame()["steps"].tolist() == [2, 2]
    steps = runs.steps_frame()
    assert steps.index.names == ["run", "step"]
    assert steps.loc[ids[1], "status"].tolist() == ["completed", "completed"]
    items = runs.items_frame("each")
    assert items.index.names == ["run", "item"]
    assert items.loc[ids[0], "status"].tolist() == ["completed", "failed", "skipped"]
    errors = items.loc[ids[0], "error"].tolist()
    assert errors[1] == "NameError: too many"
    assert errors[2].startswith("skipped: condition not met")
    events = runs.events_frame()
    assert events.loc[ids[0], "event"].tolist()[0] == "RunStarted"
    assert (len(runs), runs[0].run_id, repr(runs)) == (2, ids[0], "<RunHistory: 2 runs>")


def test_the_newest_runs_are_read_and_an_unknown_step_is_reported(tmp_path: Path) -> None:
    runs = history(tmp_path, 3)
    executor = PipelineExecutor(Pipeline("p"), storage=FileStorageBackend(tmp_path))
    newest = asyncio.run(executor.load_history(last=1))
    assert [result.run_id for result in newest] == [runs[-1].run_id]
    for last in (0, None, "x"):
        with pytest.raises(DefinitionError, match="last must be a whole number from 1 on"):
            asyncio.run(executor.load_history(last=last))  # type: ignore[arg-type]
    with pytest.raises(UnknownStepError, match="No run has a mapped step 'eahc'. Did you mean 'each'"):
        runs.items_frame("eahc")


def test_no_runs_are_empty_frames() -> None:
    none = RunHistory([])
    assert len(none.runs_frame()) == len(none.steps_frame()) == len(none.events_frame()) == 0
    assert none.runs_frame().index.name == "run"
    assert none.steps_frame().index.names == ["run", "step"]
    assert none.steps_frame()["seconds"].unstack("run").shape == (0, 0)
    with pytest.raises(UnknownStepError, match="Mapped steps: none"):
        none.items_frame("a")
