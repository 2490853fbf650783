"""What storage gets over is reported: in the warnings of the run that goes on, wherever they are shown."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

from tagent_nb import Pipeline, PipelineExecutor, StorageUnavailableError
from tagent_nb.cli import main
from tagent_nb.events import Event, RunFinished, Warned
from tagent_nb.notebook.magics.registry import register
from tagent_nb.notebook.session import Session
from tagent_nb.notebook.shell.cells import Cells
from tagent_nb.storage import FileStorageBackend, MemoryStorageBackend
from tagent_nb.storage.policy import BackupSchedule
from tests.redis_server import RedisServer


def small() -> Pipeline:
    """A pipeline of two steps."""
    pipeline = Pipeline("small")

    @pipeline.task
    def load() -> list[int]:
        return [1, 2]

    @pipeline.task
    def count(load: list[int]) -> int:
        return len(load)

    return pipeline


# -- warnings ----------------------------------------------------------------------------------


def test_a_problem_is_noted_and_reported_once() -> None:
    """To all who listen at that moment."""
    storage = MemoryStorageBackend()
    first: list[str] = []
    second: list[str] = []
    with storage.subscribe(first.append):
        storage._report("one")
        with storage.subscribe(second.append):
            storage._report("two")
            storage._report("two")
        storage._report("three")
    assert first == ["one", "two", "three"]
    assert second == ["two"]
    assert storage.problems == ["one", "two", "three"]


def test_what_no_subscriber_got_goes_to_the_next() -> None:
    """And to none after that."""
    storage = MemoryStorageBackend()
    storage._report("early")
    heard: list[str] = []
    with storage.subscribe(heard.append):
        assert heard == ["early"]
    with storage.subscribe(heard.append):
        assert heard == ["early"]


# -- in a run ----------------------------------------------------------------------------------


async def test_what_happens_before_during_and_after_a_run_is_among_its_warnings(tmp_path: Path) -> None:
    """Also from another thread. Observers hear of it, too; the last one after the end."""
    storage = FileStorageBackend(tmp_path / "runs")
    storage._report("before")
    (tmp_path / "backups").write_text("a file")
    storage.backup_schedule = BackupSchedule(every=1, folder=tmp_path / "backups")
    pipeline = small()

    def trouble() -> None:
        thread = threading.Thread(target=storage._report, args=("during",))
        thread.start()
        thread.join()

    pipeline.task(trouble)
    seen: list[Event] = []
    executor = PipelineExecutor(pipeline, storage=storage, observers=[seen.append])
    result = await executor.execute()
    assert result.success
    assert result.warnings[:2] == ["before", "during"]
    assert result.warnings[2].startswith(f"After run {result.run_id}: ")
    messages = [event.message for event in seen if isinstance(event, Warned)]
    assert messages == result.warnings
    assert isinstance(seen[-1], Warned)
    assert isinstance(seen[-2], RunFinished)
    await storage.close()


async def test_a_torn_end_is_a_warning_of_the_resumed_run(tmp_path: Path) -> None:
    """Half of a record, as a crash of the machine leaves it, is dropped; the user sees that."""
    first = PipelineExecutor(small(), storage=tmp_path / "runs")
    run = await first.execute()
    await first.storage.close()
    (journal,) = (tmp_path / "runs").rglob("*.journal")
    journal.write_bytes(journal.read_bytes()[:-30])
    again = PipelineExecutor(small(), storage=tmp_path / "runs")
    result = await again.execute(resume=True)
    await again.storage.close()
    assert result.success
    assert result.run_id == run.run_id
    torn = [warning for warning in result.warnings if "torn" in warning]
    assert len(torn) == 1


async def test_a_run_that_storage_ends_keeps_the_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had been reported before the error is in ``executor.result``."""
    storage = FileStorageBackend(tmp_path / "runs")
    pipeline = small()
    real = storage.append

    async def append(*args: Any, **options: Any) -> None:
        if any(getattr(event, "step", "") == "count" for event in args[2]):
            storage._report("trouble")
            raise StorageUnavailableError("gone")
        await real(*args, **options)

    monkeypatch.setattr(storage, "append", append)
    executor = PipelineExecutor(pipeline, storage=storage)
    with pytest.raises(StorageUnavailableError):
        await executor.execute()
    assert executor.result is not None
    assert executor.result.warnings == ["trouble"]
    await storage.close()


@pytest.mark.requires("redis-server")
async def test_settings_of_a_server_that_may_lose_runs_are_a_warning(tmp_path: Path) -> None:
    """Found at the first connection, before the run has begun. Lost records are another one."""
    server = RedisServer(tmp_path)
    executor = PipelineExecutor(small(), storage=server.url)
    try:
        result = await executor.execute()
        assert len(result.warnings) == 1
        assert "no append-only file" in result.warnings[0]
        assert (await executor.execute()).warnings == []
    finally:
        await executor.storage.close()
        server.kill()


# -- where the user looks ----------------------------------------------------------------------


def test_the_command_line_prints_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below the table."""
    monkeypatch.chdir(tmp_path)
    Path("demo.py").write_text(
        "from tagent_nb import Pipeline\npipeline = Pipeline('demo')\n@pipeline.task\ndef one(): return 1\n"
    )
    assert main(["run", "demo.py", "--storage", "runs"]) == 0
    (journal,) = Path("runs").rglob("*.journal")
    journal.write_bytes(journal.read_bytes()[:-30])
    capsys.readouterr()
    assert main(["run", "demo.py", "--storage", "runs", "--resume"]) == 0
    assert "Warning: The end of run" in capsys.readouterr().out


def test_the_notebook_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the output of the run, as text and as HTML."""
    monkeypatch.chdir(tmp_path)
    shell = InteractiveShell.instance()
    shell.reset(new_session=False)
    session = Session(shell.user_ns, tmp_path / ".tagent")
    register(shell, session, Cells(shell))
    published = CapturingDisplayPublisher()
    before, shell.display_pub = shell.display_pub, published
    try:
        shell.run_line_magic("tagent_pipeline", "demo")
        shell.run_cell_magic("tagent_step", "one --python", "1")
        (tmp_path / "backups").write_text("a file")
        storage = session.workspace.storage
        storage.backup_schedule = BackupSchedule(every=1, folder=tmp_path / "backups")
        shell.run_line_magic("tagent_run", "")
    finally:
        shell.display_pub = before
    shown = [output["data"] for output in published.outputs if "text/html" in output["data"]]
    assert any("After run" in data["text/plain"] for data in shown)
    assert any("After run" in data["text/html"] for data in shown)
