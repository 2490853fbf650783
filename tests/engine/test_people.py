"""What people expect of a pipeline and a result without reading: run it, look at it, read it, rename it."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest

from tagent_nb import DefinitionError, Pipeline, PipelineResult, RunInProgressError, TagentError, open_storage
from tagent_nb.naming import storage_id
from tests.notebook.test_magics import Notebook, book, refused

assert book  # a fixture: pytest finds it by its name


def three_steps() -> Pipeline:
    pipeline = Pipeline("reviews", model="test").step("load", "List reviews.")
    pipeline.task(_broken, name="broken")
    pipeline.task(_after, name="after")
    return pipeline


def _broken() -> int:
    raise ValueError("no\x1b[31m luck")


def _after(broken: int) -> int:
    return broken


@pytest.fixture(scope="module")
def result() -> PipelineResult:
    return three_steps().run(retry_delay=0.0, until=None)


# -- running a pipeline -----------------------------------------------------------------------


def test_a_pipeline_runs_itself_with_the_options_of_executor_and_run(tmp_path: Path) -> None:
    pipeline = Pipeline("p").step("a", "Hello").step("b", "{{ a }}")
    done = pipeline.run(model="test", storage=tmp_path, until="a")
    assert list(done) == ["a"]
    assert pipeline.run(model="test", storage=tmp_path, resume=True).run_id == done.run_id
    with pytest.raises(DefinitionError, match="PipelineExecutor: there is no keyword 'modle'. Did you mean"):
        pipeline.run(modle="test")


async def test_a_pipeline_runs_inside_a_running_loop() -> None:
    assert Pipeline("p", model="test").step("a", "Hello").run().success


def test_a_pipeline_shows_its_graph() -> None:
    shown = three_steps()._repr_mimebundle_()
    assert "<svg" in shown["image/svg+xml"]
    assert shown["text/plain"] == "<Pipeline 'reviews': 3 steps>"


def test_a_pipeline_that_cannot_be_drawn_is_shown_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> str:
        raise TagentError("no dot")

    monkeypatch.setattr("tagent_nb.graph.to_svg", broken)
    assert three_steps()._repr_mimebundle_() == {"text/plain": "<Pipeline 'reviews': 3 steps>"}


# -- reading a result -------------------------------------------------------------------------


def test_a_result_is_read_like_a_mapping_of_values(result: PipelineResult) -> None:
    assert len(result) == 1
    assert list(result) == ["load"]
    assert dict(result) == {"load": result["load"]}
    assert "load" in result
    assert "broken" not in result
    assert result.load == result["load"]
    assert "load" in dir(result)


def test_a_result_without_values_is_still_true() -> None:
    """``if result:`` asks whether there is one, not how it ended."""
    assert PipelineResult("p", success=False, execution_time=0.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "Step 'broken' of run .* has no value: it failed"),
        ("after", "has no value: it was skipped"),
        ("laod", "neither a step nor an attribute 'laod'. Did you mean 'load'"),
        ("to_farme", "Did you mean 'to_frame'"),
        ("output", "Write result.final_output"),
        ("get_execution_summary", r"Write result\.summary\(\)"),
        ("_private", "has no attribute '_private'"),
    ],
)
def test_an_attribute_that_is_not_there_says_what_to_write(
    result: PipelineResult, name: str, message: str
) -> None:
    with pytest.raises(AttributeError, match=message):
        getattr(result, name)
    assert not hasattr(result, name)


def test_a_step_named_as_an_attribute_is_read_in_brackets() -> None:
    done = Pipeline("p", model="test").step("events", "Hello").run()
    assert isinstance(done.events, list)
    assert done["events"] == "success (no tool calls)"


def test_results_can_still_be_copied_and_pickled(result: PipelineResult) -> None:
    again = pickle.loads(pickle.dumps(result))
    assert again.load == result.load


def test_a_summary_has_a_line_a_step(result: PipelineResult) -> None:
    """Statuses, seconds, tokens and cost, and no letter that a terminal obeys."""
    lines = result.summary().splitlines()
    assert lines[0].startswith("reviews: failed, ")
    assert f"run {result.run_id}" in lines[0]
    assert lines[1].split()[:2] == ["load", "completed"]
    assert "tokens" in lines[1]
    assert "ValueError: no" in lines[2]
    assert "\x1b" not in result.summary()
    assert lines[3].split()[:2] == ["after", "skipped"]


def test_a_summary_tells_warnings_unknown_prices_and_what_it_leaves_out() -> None:
    steps = [f"s{number}" for number in range(203)]
    shown = PipelineResult(
        "p",
        success=True,
        execution_time=1.0,
        step_outputs=dict.fromkeys(steps, 1),
        unpriced_steps=["s1"],
        warnings=["beware"],
    )
    text = shown.summary()
    assert text.splitlines()[0] == "p: success, 1.0 s, 0 tokens, 1 step of unknown price"
    assert "and 3 more steps: see to_frame()" in text
    assert text.endswith("Warning: beware")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"cancelled": True}, "cancelled"),
        ({}, "not finished"),
    ],
)
def test_a_summary_says_how_the_run_ended(changes: dict[str, Any], word: str) -> None:
    shown = PipelineResult("p", success=False, execution_time=1.0, **changes)
    assert shown.summary() == f"p: {word}, 1.0 s, 0 tokens, $0"


def test_a_summary_of_a_run_that_waits() -> None:
    done = Pipeline("p", model="test").step("a", "Hello", approve=True).run()
    assert done.summary().startswith("p: waiting for approval, ")


# -- renaming and deleting --------------------------------------------------------------------


def test_a_pipeline_is_renamed_and_its_runs_stay(book: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    book("tagent_pipeline reviews")
    book("tagent_pipeline other")
    book("tagent_pipeline reviews")
    book.python("load", "1")
    book("tagent_run")
    capsys.readouterr()
    book("tagent_pipeline --rename 'all reviews'")
    printed = capsys.readouterr().out
    assert printed == (
        "Renamed 'reviews' to 'all reviews'. 1 recorded run stays under the name 'reviews', with its "
        "memories: %tagent_pipeline reviews finds them.\n"
    )
    assert book.session.pipeline.name == "all reviews"
    assert list(book.session.workspaces) == ["all reviews", "other"]
    assert book.session.result is None
    book("tagent_pipeline other --rename third")
    assert capsys.readouterr().out == "Renamed 'other' to 'third'.\n"
    assert book.session.pipeline.name == "all reviews"
    book("tagent_pipeline --rename 'all reviews'")
    assert book.session.pipeline.name == "all reviews"


def test_a_pipeline_is_deleted_with_or_without_its_runs(
    book: Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = open_storage(book.session.folder / "runs")
    for name in ("first", "second"):
        book(f"tagent_pipeline {name}")
        book.python("load", "1")
        book("tagent_run")
        book("tagent_run")
    capsys.readouterr()
    book("tagent_pipeline --delete")
    assert "Deleted 'second' from this notebook. 2 recorded runs stay" in capsys.readouterr().out
    assert book.session.pipeline.name == "first"
    assert len(asyncio.run(storage.runs(storage_id("second")))) == 2
    book("tagent_pipeline first --delete --with-runs")
    assert capsys.readouterr().out == "Deleted 'first' and 2 recorded runs, with its memories.\n"
    assert asyncio.run(storage.runs(storage_id("first"))) == []
    assert not book.session.workspaces


def test_what_cannot_be_renamed_or_deleted_says_why(book: Notebook) -> None:
    book("tagent_pipeline first")
    book("tagent_pipeline second")
    assert "There is a pipeline 'first' already" in refused(book, "tagent_pipeline --rename first")
    assert "Did you mean 'first'" in refused(book, "tagent_pipeline frist --delete")
    assert "exclude each other" in refused(book, "tagent_pipeline --rename x --delete")
    assert "belongs to --delete" in refused(book, "tagent_pipeline --with-runs")
    space = book.session.workspace
    book.shell.user_ns["gate"] = gate = __import__("threading").Event()
    book.python("wait", "gate.wait(60)")
    handle = book("tagent_run --background")
    with pytest.raises(RunInProgressError, match="is running"):
        book.session.rename("second", "third")
    gate.set()
    handle.result()
    assert book.session.workspace is space
