"""A run's timeout: it stops what runs, is recorded as failed, and the run can be carried on."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from tagent_nb import DefinitionError, Pipeline, PipelineExecutor, PipelineResult, open_storage
from tagent_nb.cli import main
from tagent_nb.engine.background import background_loop
from tagent_nb.results import failure, phase_of
from tests.notebook.test_magics import Notebook, book

assert book  # a fixture: pytest finds it by its name

LONG = 600.0


class Slow:
    """A pipeline whose second step waits until it is allowed to end; it notes what ran."""

    def __init__(self, **options: Any) -> None:
        self.ran: list[str] = []
        self.may_end = threading.Event()
        self.stopped = threading.Event()
        self.pipeline = Pipeline("slow", **options)

        @self.pipeline.task
        def first() -> int:
            self.ran.append("first")
            return 1

        @self.pipeline.task
        async def second(first: int) -> int:
            self.ran.append("second")
            try:
                await asyncio.sleep(0.0 if self.may_end.is_set() else LONG)
            except asyncio.CancelledError:
                self.stopped.set()
                raise
            return first + 1


def test_a_run_that_takes_too_long_fails_and_is_carried_on(tmp_path: Path) -> None:
    """What runs is cancelled, what is done is kept, and the message says what to do."""
    slow = Slow(timeout=0.3)
    result = slow.pipeline.run(storage=tmp_path)
    assert slow.stopped.is_set()
    assert (result.success, result.cancelled, result.timed_out) == (False, False, True)
    assert dict(result) == {"first": 1}
    assert "it took longer than its timeout of 0.3 s" in result.warnings[0]
    assert "resume=True (--resume)" in result.warnings[0]
    assert repr(result).startswith("<PipelineResult 'slow': timed out, 1 values")
    assert result.summary().startswith("slow: timed out, ")
    assert "was stopped by its timeout" in failure(result)
    assert phase_of(result) == "timed out"
    assert result.events_frame()["detail"].iloc[-1] == "timed out"
    (stored,) = asyncio.run(open_storage(tmp_path).runs(slow.pipeline.id))
    assert stored.status == "failed"
    slow.may_end.set()
    again = slow.pipeline.run(storage=tmp_path, resume=True)
    assert again.run_id == result.run_id
    assert (again.success, again.timed_out) == (True, False)
    assert slow.ran == ["first", "second", "second"]


def test_a_run_option_comes_before_the_pipelines_timeout() -> None:
    slow = Slow(timeout=LONG)
    assert slow.pipeline.run(timeout=0.3).timed_out


def test_a_run_in_time_is_not_touched() -> None:
    slow = Slow(timeout=LONG)
    slow.may_end.set()
    assert slow.pipeline.run().success


def test_a_cancelled_run_that_stops_slowly_is_cancelled_and_not_timed_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ended it first is why it ended, also if its time is over before its last step is."""
    loop = background_loop()
    passed, clock, running = [0.0], loop.time, threading.Event()
    monkeypatch.setattr(loop, "time", lambda: clock() + passed[0])
    pipeline = Pipeline("slow", timeout=LONG)

    @pipeline.task
    async def waits() -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            passed[0] = 2 * LONG
            for _ in range(3):  # the loop looks at its clock
                await asyncio.sleep(0)

    handle = PipelineExecutor(pipeline).start()
    assert running.wait(60)
    handle.cancel()
    result = handle.result()
    assert (result.cancelled, result.timed_out) == (True, False)
    assert not any("timeout" in warning for warning in result.warnings)


@pytest.mark.parametrize("seconds", [0, -1, "5", True, float("nan")])
def test_what_is_no_timeout_is_refused(seconds: Any) -> None:
    with pytest.raises(DefinitionError, match="Pipeline 'p': timeout must be a number of seconds above 0"):
        Pipeline("p", timeout=seconds)
    with pytest.raises(DefinitionError, match="The run: timeout must be a number"):
        Pipeline("p", model="test").step("a", "Hello").run(timeout=seconds)


def test_a_timeout_is_stored_with_pipeline_and_result() -> None:
    slow = Slow(timeout=0.3)
    result = slow.pipeline.run()
    assert PipelineResult.from_json(result.to_json()).timed_out
    pipeline = Pipeline("p", timeout=2.5).step("a", "Hello")
    assert Pipeline.from_json(pipeline.to_json()).timeout == 2.5
    assert pipeline != Pipeline("p").step("a", "Hello")
    assert pipeline.snapshot().timeout == 2.5


def test_cells_set_a_timeout(book: Notebook) -> None:
    slow = Slow()
    book.session.adopt(slow.pipeline)
    book("tagent_pipeline slow --timeout 0.3")
    assert book("tagent_run").timed_out
    book("tagent_pipeline slow --timeout 0")
    assert slow.pipeline.timeout is None
    assert book("tagent_run --timeout 0.3").timed_out


def test_the_command_line_sets_a_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("slow.py").write_text(
        "import asyncio\nfrom tagent_nb import Pipeline\npipeline = Pipeline('slow')\n"
        "@pipeline.task\nasync def wait():\n    await asyncio.sleep(600)\n"
    )
    assert main(["run", "slow.py", "--timeout", "0.3"]) == 1
    output = capsys.readouterr().out
    assert "timed out in 0." in output
    assert "Warning: The run was stopped" in output
