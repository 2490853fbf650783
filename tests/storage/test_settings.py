"""What a store keeps, for how long, and when it is backed up: said in the call, the URL, or the notebook."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tagent_nb import Pipeline, PipelineExecutor, cli
from tagent_nb.errors import DefinitionError, RunInProgressError
from tagent_nb.notebook.session import Session
from tagent_nb.storage import (
    FileStorageBackend,
    MemoryStorageBackend,
    SQLiteStorageBackend,
    StorageBackend,
    open_storage,
)
from tagent_nb.storage.policy import BackupSchedule, Retention


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def small(name: str = "small", *, fails: bool = False) -> Pipeline:
    """A pipeline of one step."""
    pipeline = Pipeline(name)

    @pipeline.task(max_retries=0)
    def number() -> int:
        return 1 // (not fails)

    return pipeline


# -- in the call -------------------------------------------------------------------------------


def test_nothing_is_said() -> None:
    """Then nothing is ever deleted, and no backup is made."""
    storage = open_storage("runs")
    assert (storage.retention, storage.backup_schedule) == (None, None)


def test_rules_in_the_call(tmp_path: Path) -> None:
    """Ages and sizes also as text."""
    storage = open_storage(
        "sqlite:///runs.db",
        keep_last=20,
        older_than=timedelta(days=1),
        max_bytes=10**9,
        backup_every=50,
        backup_keep=2,
        backup_folder="backups",
    )
    assert storage.retention == Retention(20, timedelta(days=1), 10**9)
    assert storage.backup_schedule == BackupSchedule(50, 2, tmp_path / "backups")
    assert open_storage("runs", older_than="30d", max_bytes="1.5 GB").retention == Retention(
        None, 30 * 86_400.0, 1_500_000_000
    )
    assert open_storage("runs", backup_every=5).backup_schedule == BackupSchedule(5, 3, None)


def test_a_backend_that_is_there_gets_the_rules() -> None:
    """What is not said stays as it was."""
    storage = MemoryStorageBackend()
    assert open_storage(storage, keep_last=3) is storage
    assert open_storage(storage).retention == Retention(3)
    with pytest.raises(DefinitionError, match="durability where"):
        open_storage(storage, durability="fast")


# -- in the URL --------------------------------------------------------------------------------


def test_rules_in_a_url(tmp_path: Path) -> None:
    """Of every kind; the call counts more."""
    storage = open_storage("sqlite:///a%3Fb.db?keep_last=20&older_than=12h&durability=fast", keep_last=5)
    assert isinstance(storage, SQLiteStorageBackend)
    assert (storage.path, storage.durability) == (tmp_path / "a?b.db", "fast")
    assert storage.retention == Retention(5, 12 * 3600.0)
    folder = open_storage("file:runs?max_bytes=500MB&backup_every=7&backup_keep=4&backup_folder=over%20there")
    assert isinstance(folder, FileStorageBackend)
    assert folder.base_path == tmp_path / "runs"
    assert folder.retention == Retention(max_bytes=500_000_000)
    assert folder.backup_schedule == BackupSchedule(7, 4, tmp_path / "over there")
    assert open_storage("memory:?keep_last=1").retention == Retention(1)


def test_a_server_gets_the_rest_of_its_url() -> None:
    """Its own settings are not ours."""
    pytest.importorskip("redis")
    storage: Any = open_storage("redis://h:6379/0?socket_keepalive=yes&keep_last=2&health_check_interval=3")
    assert storage._connection.url == "redis://h:6379/0?socket_keepalive=yes&health_check_interval=3"
    assert storage.retention == Retention(2)


def test_the_path_of_a_folder_has_no_settings(tmp_path: Path) -> None:
    """A question mark is a letter there; but settings of ours would be lost without a word."""
    for where in ("what?ever=3", Path("what?keep_last=3")):
        storage = open_storage(where)
        assert isinstance(storage, FileStorageBackend)
        assert storage.base_path == tmp_path / where
        assert storage.retention is None
    with pytest.raises(DefinitionError, match=r"Write 'file:what\?keep_last=3', or .*: keep_last=..."):
        open_storage("what?keep_last=3")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:runs?keep_lst=3", "Did you mean 'keep_last'"),
        ("sqlite:///runs.db?mode=ro", "no setting 'mode'.*%3F"),
        ("memory:?x", "no setting 'x'"),
        ("file:runs?keep_last=3&keep_last=4", "keep_last is given twice"),
        ("file:runs?keep_last=-1", "keep_last must be a whole number, not '-1'"),
        ("file:runs?keep_last=", "keep_last must be a whole number"),
        ("file:runs?older_than=soon", "30d"),
        ("file:runs?max_bytes=much", "500MB"),
        pytest.param("file:runs?max_bytes=" + "9" * 400, "500MB", id="huge"),
        ("file:runs?backup_every=1&backup_folder=", "backup_folder must be the path"),
        ("file:runs?durability=slow", "'full' or 'fast'"),
        ("file:runs?backup_every=0", "backup_every must be a whole number of at least 1"),
        ("file:runs?backup_keep=3", "backup_every=20"),
        ("file:runs?backup_folder=there", "backup_every=20"),
        ("file://runs", "names no folder of this machine"),
        ("file:my#runs", "%23"),
        ("file:", "names no folder"),
        pytest.param("redis://h/runs", "by a number", id="redis-name"),
        pytest.param("unix://", "a socket by its path", id="unix-nothing"),
        ("memory:?backup_every=3", "nothing that could be backed up"),
        pytest.param("redis://h?backup_every=3", "backup_folder=", id="redis"),
    ],
)
def test_what_is_not_right_is_one_clear_message(url: str, message: str) -> None:
    """When the store is opened, not when the first run ends."""
    with pytest.raises(DefinitionError, match=message):
        open_storage(url)


# -- at the end of a run -----------------------------------------------------------------------


async def left(storage: StorageBackend, pipeline: Pipeline) -> list[str]:
    """Runs that are still there."""
    return [info.run_id for info in await storage.runs(pipeline.id)]


async def test_an_executor_takes_a_url_with_rules(tmp_path: Path) -> None:
    """Older runs go, the newest good one stays, and backups are made."""
    url = "sqlite:///runs.db?keep_last=2&backup_every=3&durability=fast"
    executor = PipelineExecutor(small(), storage=url)
    done = [(await executor.execute()).run_id for _ in range(4)]
    assert await left(executor.storage, executor.pipeline) == done[2:]
    assert len(list(tmp_path.glob("runs.db.backups/*.backup"))) == 1
    broken = PipelineExecutor(small(fails=True), storage=executor.storage)
    failed = [(await broken.execute()).run_id for _ in range(3)]
    assert await left(executor.storage, executor.pipeline) == [done[-1], *failed[1:]]
    await executor.storage.close()


async def test_a_run_that_another_process_carries_on_stays() -> None:
    """Whatever the rules."""
    other = open_storage("runs")
    pipeline = small()
    first = await PipelineExecutor(pipeline, storage=other).execute()
    lease = await other.acquire(pipeline.id, first.run_id)
    executor = PipelineExecutor(pipeline, storage=open_storage("runs", keep_last=0))
    await executor.execute()
    last = await executor.execute()
    assert await left(other, pipeline) == [first.run_id, last.run_id]
    await other.release(lease)
    for storage in (other, executor.storage):
        await storage.close()


# -- in a notebook and on the command line -----------------------------------------------------


def test_each_pipeline_of_a_notebook_has_its_own_rules(tmp_path: Path) -> None:
    """Also in the same folder. What is not said stays as it was."""
    session = Session({}, tmp_path / ".tagent")
    session.use("a", keep_last=2)
    session.use("b")
    a, b = session.workspaces["a"], session.workspaces["b"]
    assert (a.storage.retention, b.storage.retention) == (Retention(2), None)
    assert isinstance(a.storage, FileStorageBackend)
    assert isinstance(b.storage, FileStorageBackend)
    assert a.storage.base_path == b.storage.base_path == tmp_path / ".tagent" / "runs"
    session.use("a", storage="sqlite:///runs.db")
    assert isinstance(a.storage, SQLiteStorageBackend)
    assert a.storage.retention == Retention(2)
    session.use("a", keep_last=7)
    assert isinstance(a.storage, SQLiteStorageBackend)
    assert a.storage.retention == Retention(7)
    session.use("a")
    assert a.storage.retention == Retention(7)
    again = session.adopt(small("a"))
    assert again.storage is a.storage
    session.use("c")
    assert session.workspaces["c"].storage is b.storage
    own = MemoryStorageBackend()
    session.use("d", storage=own, keep_last=1)
    assert session.workspaces["d"].storage is own
    assert own.retention == Retention(1)


def test_rules_of_a_running_pipeline_cannot_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the storage it records in."""
    session = Session({}, tmp_path / ".tagent")
    session.use("a")
    monkeypatch.setattr(type(session.workspace), "running", True)
    with pytest.raises(RunInProgressError, match="storage cannot change"):
        session.use("a", keep_last=1)


def test_the_command_line_keeps_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    """As many as were asked for."""
    Path("demo.json").write_text(small_json())
    for _ in range(3):
        assert cli.main(["run", "demo.json", "--storage", "runs", "--keep-last", "2"]) == 0
    assert len(list(Path("runs").rglob("*.journal"))) == 2
    assert cli.main(["run", "demo.json", "--storage", "runs", "--keep-last", "-2"]) == 1
    assert "keep_last must be a whole number" in capsys.readouterr().err


def small_json() -> str:
    """A pipeline of one Python cell."""
    from tagent_nb import PipelineStep

    pipeline = Pipeline("demo")
    pipeline.put(PipelineStep.from_cell("one", "1", python=True))
    return pipeline.to_json()
