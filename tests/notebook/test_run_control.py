"""Blocking runs: their value, and how an interrupt ends them, awaited or polled."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from IPython.core.error import UsageError

from tagent_nb.engine import RunHandle
from tagent_nb.errors import RunFailedError, UnknownStepError
from tagent_nb.notebook import run_control as room
from tagent_nb.notebook.magics.run import RunMagics
from tagent_nb.notebook.run_control import RunControl, RunRequest
from tagent_nb.notebook.session import Session
from tagent_nb.notebook.shell.cells import Cells
from tagent_nb.pipeline import PipelineStep
from tagent_nb.results import PipelineResult

WAIT = "import os, time\nopen('begun', 'w').close()\nwhile not os.path.exists('gate'): time.sleep(0.01)\n5"


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunControl:
    monkeypatch.chdir(tmp_path)
    session = Session({}, tmp_path / ".tagent")
    session.use("reviews", cached=False)
    session.put(PipelineStep.from_cell("slow", WAIT, python=True))
    return RunControl(session, SimpleNamespace(user_ns={}, kernel=None, var_expand=lambda line: line))


def begun() -> bool:
    """Wait, a bounded time, until the step runs."""
    until = time.monotonic() + 10
    while not Path("begun").exists() and time.monotonic() < until:
        time.sleep(0.01)
    return Path("begun").exists()


def open_gate() -> None:
    Path("gate").touch()


def test_polling_waits_for_the_result_and_keeps_it(control: RunControl) -> None:
    open_gate()
    result = control.polling(RunRequest())
    assert isinstance(result, PipelineResult)
    assert result["slow"] == 5
    assert control.shell.user_ns["result"].run_id == result.run_id


async def test_awaiting_lets_the_loop_go_on(control: RunControl) -> None:
    async def opener() -> None:
        while not Path("begun").exists():
            await asyncio.sleep(0.01)
        open_gate()

    result, _ = await asyncio.gather(control.awaited(RunRequest()), opener())
    assert isinstance(result, PipelineResult)
    assert result["slow"] == 5


def test_a_background_run_gives_a_handle_at_once(control: RunControl) -> None:
    handle = control.polling(RunRequest(background=True))
    assert isinstance(handle, RunHandle)
    assert not handle.done()
    open_gate()
    assert handle.result(10)["slow"] == 5


def test_a_refused_run_raises_and_shows_nothing(
    control: RunControl, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnknownStepError, match="Did you mean 'slow'"):
        control.polling(RunRequest({"until": "slw"}))
    assert capsys.readouterr().out == ""
    assert control.shell.user_ns == {}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 / 0", "failed.\n  slow: ZeroDivisionError: division by zero"),
        ("raise ValueError('no\\nluck')", "failed.\n  slow: ValueError: no luck"),
        ("assert not 'this'", "failed.\n  slow: AssertionError"),
    ],
)
def test_a_strict_run_that_fails_raises_when_its_result_is_there(
    control: RunControl, code: str, message: str
) -> None:
    control.session.put(PipelineStep.from_cell("slow", code, python=True, max_retries=0))
    control.session.put(PipelineStep.from_cell("behind", "slow", python=True))
    assert isinstance(lenient := control.polling(RunRequest()), PipelineResult)
    assert not lenient.success
    with pytest.raises(RunFailedError) as caught:
        control.polling(RunRequest(strict=True))
    assert message in str(caught.value)
    assert "of pipeline 'reviews'" in str(caught.value)
    assert caught.value.result is control.shell.user_ns["result"]
    assert lenient is not caught.value.result
    assert caught.value._render_traceback_() == [f"RunFailedError: {caught.value}"]


async def test_a_strict_run_raises_where_it_is_awaited_too(control: RunControl) -> None:
    control.session.put(PipelineStep.from_cell("slow", "1 / 0", python=True, max_retries=0))
    control.session.put(PipelineStep.from_cell("other", "slow", python=True))
    with pytest.raises(RunFailedError, match="ZeroDivisionError"):
        await control.awaited(RunRequest(strict=True))
    magics = RunMagics(None, control.session, control, Cells(None))
    with pytest.raises(RunFailedError, match="ZeroDivisionError"):
        await magics.run_awaited("--strict", used=False)


def test_what_is_no_failure_does_not_raise(control: RunControl) -> None:
    put = control.session.put
    put(PipelineStep.from_cell("slow", "[1, 0, 2]", python=True))
    put(PipelineStep.from_cell("never", "1", python=True, when="slow == []"))
    put(PipelineStep.from_cell("behind", "never", python=True))
    put(
        PipelineStep.from_cell(
            "shares", "1 / slow", python=True, map_over="slow", min_success=0.5, max_retries=0
        )
    )
    result = control.polling(RunRequest(strict=True))
    assert isinstance(result, PipelineResult)
    assert result.success


def test_a_strict_run_that_waits_is_refused_or_stopped_raises(control: RunControl) -> None:
    control.session.put(PipelineStep.from_cell("slow", "5", python=True, approve=True))
    with pytest.raises(RunFailedError, match="is not complete.\n  slow: waits for an approval"):
        control.polling(RunRequest(strict=True))
    with pytest.raises(RunFailedError, match="has no step 'nowhere'") as caught:
        control.polling(RunRequest({"until": "nowhere"}, strict=True))
    assert caught.value.result is None
    control.session.put(PipelineStep.from_cell("slow", WAIT, python=True))

    def stop() -> None:
        begun()
        control.session.workspace.executor.cancel()  # type: ignore[union-attr]

    threading.Thread(target=stop).start()
    with pytest.raises(RunFailedError, match="of pipeline 'reviews' was stopped"):
        control.polling(RunRequest(strict=True))
    Path("begun").unlink()
    threading.Thread(target=lambda: (begun(), os.kill(os.getpid(), signal.SIGINT))).start()
    with pytest.raises(RunFailedError, match="The run was stopped. %tagent_run --resume"):
        control.polling(RunRequest({"resume": True}, strict=True))


def test_an_interrupt_of_a_polled_run_cancels_it(control: RunControl) -> None:
    def interrupt() -> None:
        assert begun()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(UsageError, match="The run was stopped. %tagent_run --resume carries it on"):
        control.polling(RunRequest())
    assert control.shell.user_ns["result"].cancelled
    assert not control.session.workspace.running


async def test_cancelling_an_awaited_run_cancels_it(control: RunControl) -> None:
    task = asyncio.ensure_future(control.awaited(RunRequest()))
    while not Path("begun").exists():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(UsageError, match="The run was stopped"):
        await task
    assert control.shell.user_ns["result"].cancelled
    open_gate()
    resumed = await control.awaited(RunRequest({"resume": True}))
    assert isinstance(resumed, PipelineResult)
    assert resumed["slow"] == 5


def test_a_step_that_does_not_end_in_time_is_reported(
    control: RunControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "CANCEL_GRACE", 0.0)
    monkeypatch.setattr(room, "DRAW_TIMEOUT", 0.0)
    # A read of a pipe without a writer: an interrupt reaches the step only when it returns.
    os.mkfifo("pipe")
    code = "open('begun', 'w').close()\nopen('pipe').read()"
    control.session.put(PipelineStep.from_cell("slow", code, python=True))

    def interrupt() -> None:
        assert begun()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(UsageError, match="'slow' has not ended yet.*restart the kernel"):
        control.polling(RunRequest())
    handle = control.session.workspace.handle
    assert handle is not None
    assert not handle.done()
    Path("pipe").write_text("")
    handle.cancel(wait=10)
    assert handle.done()


async def test_the_awaited_magic_gives_its_value_only_where_it_is_used(control: RunControl) -> None:
    magics = RunMagics(None, control.session, control, Cells(None))
    open_gate()
    assert await magics.run_awaited("", used=False) is None
    used: Any = await magics.run_awaited("--until slow", used=True)
    assert used["slow"] == 5
    handle = await magics.run_awaited("--background", used=False)
    assert handle.result(10)["slow"] == 5
    assert await magics.run_awaited("--help", used=True) is None
    with pytest.raises(UsageError, match="Did you mean 'slow'"):
        await magics.run_awaited("--until slw", used=False)


async def test_the_awaited_magic_asks_before_it_runs(
    control: RunControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    magics = RunMagics(None, control.session, control, Cells(None))
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert await magics.run_awaited("--confirm", used=True) is None
    assert control.session.result is None


def test_each_pipeline_has_one_panel_and_one_live_run(control: RunControl) -> None:
    open_gate()
    first = control.panel()
    second = control.panel()
    assert control.session.workspace.watches == [second.watch]
    control.polling(RunRequest())
    assert second.feed is not None
    assert second.feed.drawn.wait(10)
    assert first.feed is None
    control.polling(RunRequest())
    assert control.session.workspace.watches == [second.watch]
