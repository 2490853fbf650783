"""Backups: whole or absent, verified before older ones go, and restored without losing what is intact."""

from __future__ import annotations

import asyncio
import errno
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tagent_nb import Pipeline, PipelineExecutor
from tagent_nb.errors import (
    CorruptRecordError,
    DefinitionError,
    FormatVersionError,
    NotStoredError,
    StorageError,
    StorageUnavailableError,
)
from tagent_nb.storage import (
    FileStorageBackend,
    MemoryStorageBackend,
    RecordStoreBackend,
    SQLiteStorageBackend,
    open_storage,
)
from tagent_nb.storage.backup import archive, lost_store
from tagent_nb.storage.backup import create as backup
from tagent_nb.storage.backup import restore as restoring
from tagent_nb.storage.format.envelope import pack
from tagent_nb.storage.policy import BackupSchedule
from tagent_nb.testing.samples import plain, sample_run
from tests.storage_kinds import KINDS, damage, make_store, read, record, replace_records, stored_records


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RecordStoreBackend]:
    """An empty store of each kind that is durable."""
    yield from make_store(request.param, tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where backups go."""
    return tmp_path / "backups"


@pytest.fixture
def files(tmp_path: Path) -> FileStorageBackend:
    """A store in a folder, for what is the same for all kinds."""
    return FileStorageBackend(tmp_path / "runs", durability="fast")


async def fill(storage: RecordStoreBackend) -> None:
    """Two pipelines with runs, memories and saved data."""
    for pipeline_id in ("p", "q"):
        await storage.append(pipeline_id, "r", sample_run("r"))
        await storage.save(pipeline_id, {"saved": pipeline_id})
    await storage.save_memories("p", {"remembered": 1})


async def check(storage: RecordStoreBackend) -> None:
    """All that :func:`fill` has stored is there."""
    assert await storage.list_pipelines() == ["p", "q"]
    for pipeline_id in ("p", "q"):
        assert plain(await storage.read_run(pipeline_id, "r")) == plain(sample_run("r"))
        assert [info.status for info in await storage.runs(pipeline_id)] == ["completed"]
        assert await storage.load(pipeline_id) == {"saved": pipeline_id}
    assert await storage.memories("p") == {"remembered": 1}


# -- making and verifying ----------------------------------------------------------------------


async def test_a_backup_holds_everything(store: RecordStoreBackend, folder: Path, tmp_path: Path) -> None:
    """It is verified, says what is in it, and can be restored into a store of another kind."""
    await fill(store)
    made = await store.backup(folder)
    assert (made.pipelines, made.runs, made.problem) == (2, 2, None)
    assert made.size == made.path.stat().st_size
    assert await store.verify(made.path) == made
    assert await store.backups(folder) == [made]
    for other in (open_storage(tmp_path / "copy"), open_storage(f"sqlite:///{tmp_path}/copy.db")):
        assert isinstance(other, RecordStoreBackend)
        await other.restore(made.path)
        await check(other)


async def test_files_are_private(files: FileStorageBackend) -> None:
    """As all of the store."""
    await fill(files)
    made = await files.backup()
    assert made.path.stat().st_mode & 0o777 == 0o600
    assert made.path.parent.stat().st_mode & 0o777 == 0o700


async def test_older_backups_go_after_the_new_one_was_verified(
    files: FileStorageBackend, folder: Path
) -> None:
    """The last three that are intact stay, however many damaged ones are among them."""
    await fill(files)
    made = [(await files.backup(folder)).path for _ in range(4)]
    assert [info.path for info in await files.backups(folder)] == made[:0:-1]
    made[3].write_bytes(made[3].read_bytes()[:-20])
    made.append((await files.backup(folder)).path)
    made.append((await files.backup(folder)).path)
    backups = await files.backups(folder)
    assert [info.path for info in backups] == [made[5], made[4], made[3], made[2]]
    assert [info.problem is None for info in backups] == [True, True, False, True]
    await files.backup(folder, keep=1)
    assert len(await files.backups(folder)) == 1


@pytest.mark.parametrize("link", [False, True])
async def test_a_damaged_document_is_left_out_and_nothing_older_goes(
    files: FileStorageBackend, folder: Path, link: bool
) -> None:
    """Or what is in its place is no file."""
    await fill(files)
    first = await files.backup(folder, keep=1)
    path = files.base_path / "p" / "snapshot.record"
    if link:
        path.rename(path.with_suffix(".moved"))
        path.symlink_to(path.with_suffix(".moved"))
    else:
        path.write_bytes(path.read_bytes()[:-5])
    made = await files.backup(folder, keep=1)
    assert (first.path.exists(), made.runs) == (True, 2)
    assert "Left out of backup" in files.problems[-1]


@pytest.mark.parametrize("left", [0, 2])
async def test_a_run_whose_end_is_missing_comes_back_whole(
    store: RecordStoreBackend, folder: Path, left: int
) -> None:
    """A backup of it says so, and removes no older one; a restore takes the older one's copy, if that is of
    the same run and longer."""
    await record(store, "one", "two", "three")
    whole = await store.backup(folder, keep=1)
    await record(store, "four", run_id="s")
    records = await stored_records(store)
    await replace_records(store, records[:left])
    await store.backup(folder, keep=1)
    assert whole.path.exists()
    expected = "3 records were recorded, and 2 are there" if left else "state lost: 3 records"
    assert expected in store.problems[-1]
    info = await store.restore(whole.path)
    assert (info.restored, info.kept) == ([("p", "run", "r")], [("p", "run", "s")])
    assert expected in info.problems[0]
    assert await read(store) == ["one", "two", "three"]
    assert await read(store, "s") == ["four"]
    await record(store, "four")
    assert await read(store) == ["one", "two", "three", "four"]


async def test_a_run_whose_end_is_missing_stays_where_no_backup_has_more(
    files: FileStorageBackend, folder: Path
) -> None:
    """What is there is more than a backup of before."""
    await record(files, "one")
    made = await files.backup(folder)
    await record(files, "two", "three", "four")
    await replace_records(files, (await stored_records(files))[:3])
    info = await files.restore(made.path, folder=folder)
    assert (info.restored, info.kept) == ([], [("p", "run", "r")])
    assert "4 records were recorded, and 3 are there" in info.problems[0]
    assert await read(files) == ["one", "two", "three"]


async def test_a_new_backup_that_is_damaged_removes_nothing(
    files: FileStorageBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk wrote something else than it was given."""
    await fill(files)
    first = await files.backup(folder, keep=1)
    real = archive.Writer.finish

    def spoil(writer: archive.Writer) -> None:
        real(writer)
        writer.path.write_bytes(writer.path.read_bytes().replace(b"saved", b"shaved"))

    monkeypatch.setattr(archive.Writer, "finish", spoil)
    with pytest.raises(CorruptRecordError, match="older ones were kept"):
        await files.backup(folder, keep=1)
    assert first in await files.backups(folder)


async def test_what_is_damaged_is_left_out_and_nothing_older_goes(
    store: RecordStoreBackend, folder: Path
) -> None:
    """The older backup may be the only one that has it."""
    await fill(store)
    await record(store, "one", "two")
    first = await store.backup(folder, keep=1)
    await record(store, "one", "two", run_id="bad")
    await damage(store, "bad")
    second = await store.backup(folder, keep=1)
    assert (first.runs, second.runs) == (2, 2)
    assert len(store.problems) == 1
    assert "Left out of backup" in store.problems[0]
    assert len(await store.backups(folder)) == 2


async def test_a_torn_end_is_left_out(files: FileStorageBackend, folder: Path) -> None:
    """The backup of a run that a crash has torn is whole."""
    await record(files, "one", "two")
    path = files.base_path / "p/r.journal"
    path.write_bytes(path.read_bytes()[:-5])
    await files.backup(folder)
    shutil.rmtree(files.base_path)
    again = FileStorageBackend(files.base_path)
    await again.restore(folder=folder)
    assert await read(again) == ["one"]
    assert again.problems == []


async def test_cut_at_every_64th_byte_a_backup_is_refused(files: FileStorageBackend, folder: Path) -> None:
    """No part of it is restored."""
    await record(files, "one", "two")
    await files.save("p", {"x": 1})
    made = await files.backup(folder)
    data = made.path.read_bytes()
    for size in range(0, len(data), 64):
        made.path.write_bytes(data[:size])
        with pytest.raises(CorruptRecordError):
            await files.verify(made.path)
        assert (await files.backups(folder))[0].problem is not None


async def test_a_backup_without_its_end_is_refused(files: FileStorageBackend, folder: Path) -> None:
    """Cut off between two parts, each part is whole."""
    await fill(files)
    made = await files.backup(folder)
    data = made.path.read_bytes()
    made.path.write_bytes(data[: data.rindex(b"\ntagent-nb ") + 1])
    with pytest.raises(CorruptRecordError, match="end is missing"):
        await files.verify(made.path)


@pytest.mark.parametrize(
    "content",
    [
        pack("part", "r", b"no line"),
        pack("part", "r", b"[]\n"),
        pack("part", "r", b'{"pipeline": "p"}\nx'),
        pack("part", "r", b'{"pipeline": "p", "kind": "script", "name": "r"}\nx'),
        pack("end", "backup", b"{}"),
        pack("end", "backup", b"[" * 100_000),
        pack("end", "backup", b'{"parts": 0}') + b"more",
        pack("part", "r", b'{"pipeline": "p", "kind": "run", "name": "r"}\nnot a run')
        + pack("end", "backup", b'{"parts": 1}'),
        pack("part", "r", b'{"pipeline": "p", "kind": "document", "name": "x"}\n' + pack("y", "p", b""))
        + pack("end", "backup", b'{"parts": 1}'),
        b"\x80\x04N.",
    ],
    ids=lambda content: ascii(content[-20:]),
)
async def test_a_file_that_is_not_ours_is_refused(
    files: FileStorageBackend, folder: Path, content: bytes
) -> None:
    """With checksums that are right."""
    folder.mkdir()
    path = archive.new_path(folder, "")
    path.write_bytes(content)
    with pytest.raises(CorruptRecordError):
        await files.restore(path)
    assert await files.list_pipelines() == []


async def test_a_name_that_we_never_give_is_not_restored(files: FileStorageBackend, folder: Path) -> None:
    """A stranger's backup writes nowhere else."""
    folder.mkdir()
    path = archive.new_path(folder, "")
    bad = b'{"pipeline": "../../x", "kind": "document", "name": "snapshot"}\n' + pack(
        "snapshot", "../../x", b"{}"
    )
    path.write_bytes(pack("part", "snapshot", bad) + pack("end", "backup", b'{"parts": 1}'))
    with pytest.raises(CorruptRecordError, match="not ours"):
        await files.restore(path)
    assert not files.base_path.exists()


async def test_a_newer_format_is_refused(files: FileStorageBackend, folder: Path) -> None:
    """And the file is left as it is."""
    folder.mkdir()
    path = archive.new_path(folder, "")
    path.write_bytes(b"tagent-nb 999 whatever\n")
    with pytest.raises(FormatVersionError):
        await files.verify(path)


async def test_a_backup_that_is_not_there_is_an_error(files: FileStorageBackend, folder: Path) -> None:
    """By path, and when none was ever made."""
    with pytest.raises(StorageUnavailableError, match="Cannot read"):
        await files.verify(folder / "none.backup")
    with pytest.raises(NotStoredError, match="no intact backup"):
        await files.restore()
    assert await files.backups() == []


async def test_files_of_others_are_no_backups(files: FileStorageBackend, folder: Path) -> None:
    """They are neither listed nor removed."""
    folder.mkdir()
    (folder / "holiday.backup").write_text("photos")
    await fill(files)
    await files.backup(folder, keep=1)
    await files.backup(folder, keep=1)
    assert len(await files.backups(folder)) == 1
    assert (folder / "holiday.backup").exists()


async def test_a_backup_that_vanishes_is_a_problem_of_its_own(
    files: FileStorageBackend, folder: Path
) -> None:
    """Another process may rotate at the same time."""
    assert archive.inspect(folder / "20260101T000000000000.backup", None).size == 0


@pytest.mark.parametrize("fault", ["write", "replace"])
async def test_a_backup_that_cannot_be_written_leaves_nothing(
    files: FileStorageBackend, folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Neither a file nor half of one."""
    await fill(files)

    def refuse(*args: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(archive.os if fault == "write" else Path, fault, refuse)
        with pytest.raises(StorageUnavailableError, match="full"):
            await files.backup(folder)
    assert list(folder.iterdir()) == []


async def test_a_run_larger_than_a_part(
    files: FileStorageBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken apart and put together again."""
    monkeypatch.setattr(archive, "PART", 100)
    await fill(files)
    made = await files.backup(folder)
    again = FileStorageBackend(folder / "copy")
    await again.restore(made.path)
    await check(again)


async def test_a_backup_beside_a_writer_is_intact(store: RecordStoreBackend, folder: Path) -> None:
    """What it has of the run is a beginning of it, whole to the last event."""
    await record(store, "0")

    async def write() -> None:
        for n in range(1, 120):
            await record(store, str(n))

    writing = asyncio.ensure_future(write())
    made = []
    while not writing.done():
        made.append(await store.backup(folder, keep=100))
    await writing
    for number, info in enumerate(made[:5]):
        copy = FileStorageBackend(folder / f"copy{number}", durability="fast")
        await copy.restore(info.path)
        texts = await read(copy)
        assert texts == [str(n) for n in range(len(texts))]
        assert copy.problems == []


# -- restoring ---------------------------------------------------------------------------------


async def test_what_is_damaged_comes_back_and_what_is_intact_stays(
    store: RecordStoreBackend, folder: Path
) -> None:
    """Also what was recorded after the backup; the damaged original is kept aside."""
    await fill(store)
    await record(store, "one", "two", run_id="broken")
    await store.backup(folder)
    await record(store, "three", run_id="broken")
    await record(store, "newer", run_id="later")
    await store.save("p", {"saved": "later"})
    await damage(store, "broken")
    info = await store.restore(folder=folder)
    assert info.restored == [("p", "run", "broken")]
    assert len(info.problems) == 1
    assert "broken" in info.problems[0]
    assert await read(store, "broken") == ["one", "two"]
    assert await read(store, "later") == ["newer"]
    assert await store.load("p") == {"saved": "later"}
    assert plain(await store.read_run("q", "r")) == plain(sample_run("r"))
    assert not list(folder.glob("*.merged"))
    lease = await store.acquire("p", "broken")
    await store.append("p", "broken", sample_run("broken")[:2], token=lease.token)


async def test_a_restored_run_is_listed_and_carried_on(store: RecordStoreBackend, folder: Path) -> None:
    """With its size, and with the next record behind it."""
    await fill(store)
    before = await store.runs("p")
    await store.backup(folder)
    await store.delete("p")
    await store.restore(folder=folder)
    assert await store.runs("p") == before
    await record(store, "more")
    assert (await read(store))[-1] == "more"


async def test_everything_can_be_taken_back(store: RecordStoreBackend, folder: Path) -> None:
    """With ``replace``, also what is intact; what the backup does not know stays."""
    await fill(store)
    await store.backup(folder)
    await store.save("p", {"saved": "a mistake"})
    await record(store, "x", run_id="new")
    info = await store.restore(folder=folder, replace=True)
    assert info.kept == [("p", "run", "new")]
    await check_without_runs(store)
    assert await read(store, "new") == ["x"]


async def check_without_runs(storage: RecordStoreBackend) -> None:
    """The documents of :func:`fill`."""
    assert await storage.load("p") == {"saved": "p"}
    assert await storage.memories("p") == {"remembered": 1}


async def test_the_newest_backup_may_be_damaged_too(store: RecordStoreBackend, folder: Path) -> None:
    """Then the one before it is used, with a warning."""
    await fill(store)
    older = await store.backup(folder)
    newer = await store.backup(folder)
    newer.path.write_bytes(newer.path.read_bytes()[:-1])
    await store.delete("p")
    info = await store.restore(folder=folder)
    assert info.backup == older.path
    assert any(newer.path.name in problem for problem in store.problems)
    await check(store)


async def test_a_store_that_cannot_be_read_at_all_is_kept_aside(tmp_path: Path) -> None:
    """A database that is no database any more: all comes from the backup."""
    storage = SQLiteStorageBackend(tmp_path / "runs.db", durability="fast")
    await fill(storage)
    await storage.backup()
    await storage.close()
    storage.path.write_bytes(b"scrambled eggs" * 1000)
    again = SQLiteStorageBackend(storage.path)
    with pytest.raises(CorruptRecordError):
        await again.list_pipelines()
    info = await again.restore()
    assert Path(info.aside).read_bytes().startswith(b"scrambled eggs")
    await check(again)


async def test_a_table_that_is_damaged_is_no_obstacle(tmp_path: Path) -> None:
    """Pages within the database: what can be read stays, the rest comes from the backup."""
    storage = SQLiteStorageBackend(tmp_path / "runs.db", durability="fast")
    await fill(storage)
    for n in range(50):
        await record(storage, "x" * 3000, run_id=f"r{n}")
    await storage.backup()
    await storage.close()
    data = bytearray(storage.path.read_bytes())
    middle = len(data) // 2 // 2048 * 2048
    data[middle : middle + 8192] = b"\xff" * 8192
    storage.path.write_bytes(data)
    again = SQLiteStorageBackend(storage.path)
    await again.restore()
    await check_without_runs(again)
    assert len(await again.runs("p")) == 51
    for n in range(50):
        assert await read(again, f"r{n}") == ["x" * 3000]


async def test_a_damaged_store_offers_its_newest_intact_backup(files: FileStorageBackend) -> None:
    """In the message of the error; damaged backups are not offered."""
    await record(files, "one", "two")
    older = await files.backup()
    newer = await files.backup()
    newer.path.write_bytes(b"")
    await files.save("p", {"x": 1})
    await damage(files)
    (files.base_path / "p/snapshot.record").write_bytes(b"damaged")
    with pytest.raises(CorruptRecordError, match=rf"{older.path.name} is intact: restore\(\) takes"):
        await read(files)
    with pytest.raises(CorruptRecordError, match=rf"{older.path.name}, has nothing of it"):
        await files.load("p")
    older.path.unlink()
    with pytest.raises(CorruptRecordError) as caught:
        await read(files)
    assert "restore()" not in str(caught.value)


async def test_an_active_run_is_not_restored_over(store: RecordStoreBackend, folder: Path) -> None:
    """Nothing is changed while a run is recorded."""
    await fill(store)
    await store.backup(folder)
    lease = await store.acquire("p", "r")
    with pytest.raises(StorageError, match="carries it on"):
        await store.restore(folder=folder, replace=True)
    await store.append("p", "r", sample_run("r")[:1], token=lease.token)
    await store.release(lease)


async def test_a_loser_of_before_the_restore_writes_nothing(store: RecordStoreBackend, folder: Path) -> None:
    """Tokens of before are no good for the run that came back."""
    await fill(store)
    lease = await store.acquire("p", "r")
    await store.release(lease)
    await store.backup(folder)
    await store.restore(folder=folder, replace=True)
    with pytest.raises(StorageError):
        await store.append("p", "r", sample_run("r"), token=lease.token)


@pytest.mark.parametrize("fault", ["rename", "merged"])
@pytest.mark.parametrize("kind", ["file", "sqlite"])
async def test_a_restore_that_fails_leaves_the_store(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """If it cannot be moved aside, or the new content cannot be written, all is as it was."""
    (storage,) = make_store(kind, tmp_path)
    await fill(storage)
    await storage.backup()

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if fault == "rename":
            patch.setattr(Path, "rename", refuse)
        else:
            patch.setattr(archive.os, "write", refuse)
        with pytest.raises(StorageUnavailableError):
            await storage.restore()
    await check(storage)


async def test_a_pipeline_whose_runs_cannot_be_listed_is_no_obstacle(
    files: FileStorageBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runs come from the backup, and a new backup leaves them out."""
    await fill(files)
    await files.backup(folder)

    async def refuse(pipeline_id: str) -> list[str]:
        raise CorruptRecordError("the list is damaged")

    with monkeypatch.context() as patch:
        patch.setattr(files, "_run_ids", refuse)
        assert (await files.backup(folder, keep=1)).runs == 0
        info = await files.restore((await files.backups(folder))[1].path)
    assert ("p", "run", "r") in info.restored
    assert info.problems == ["the list is damaged"] * 2
    await check(files)


async def test_what_cannot_be_read_is_left_out(
    files: FileStorageBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a page of a database that the disk has lost."""
    await fill(files)

    async def refuse(*args: str) -> bytes:
        raise CorruptRecordError("the page is damaged")

    monkeypatch.setattr(files, "_read", refuse)
    assert (await files.backup(folder)).runs == 0
    assert "the page is damaged" in files.problems[0]


async def test_a_store_that_is_away_is_not_restored(
    files: FileStorageBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not answer, or a locked file, is not damaged."""
    await fill(files)
    await files.backup(folder)

    async def refuse() -> list[str]:
        raise StorageUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(files, "list_pipelines", refuse)
        with pytest.raises(StorageUnavailableError, match="away"):
            await files.restore(folder=folder)
    await check(files)


async def test_nothing_to_back_up_without_a_schedule(files: FileStorageBackend) -> None:
    """None was asked for."""
    await files._backup_if_due("p")
    assert await files.backups() == []


# -- places and schedules ----------------------------------------------------------------------


async def test_each_backend_has_its_place(tmp_path: Path) -> None:
    """Within the folder, or beside the file; a server has none."""
    files, database = (next(make_store(kind, tmp_path)) for kind in ("file", "sqlite"))
    for storage in (files, database):
        await fill(storage)
        assert (await storage.backup()).path.parent == storage.backup_folder
        await check(storage)


@pytest.mark.requires("redis-server")
async def test_a_server_has_no_place_for_backups(tmp_path: Path) -> None:
    """The message says what to write; a damaged run offers no backup."""
    for storage in make_store("redis", tmp_path):
        with pytest.raises(DefinitionError, match="my-backups"):
            await storage.backup()
        await record(storage, "one", "two")
        await damage(storage)
        with pytest.raises(CorruptRecordError):
            await read(storage)


async def end_runs(storage: Any, count: int, first: int = 0) -> None:
    """Runs that begin and end, as the engine's do."""
    for n in range(first, first + count):
        lease = await storage.acquire("p", f"r{n}")
        await storage.append("p", f"r{n}", sample_run(f"r{n}", at=1e10 + n), token=lease.token)
        await storage.release(lease)


async def test_backups_are_made_by_themselves(files: FileStorageBackend, folder: Path) -> None:
    """After every third run, and two of them are kept."""
    files.backup_schedule = BackupSchedule(every=3, keep=2, folder=folder)
    await end_runs(files, 2)
    assert await files.backups(folder) == []
    await end_runs(files, 1, first=2)
    assert [info.runs for info in await files.backups(folder)] == [3]
    await end_runs(files, 3, first=3)
    backups = await files.backups(folder)
    assert [info.runs for info in backups] == [6, 3]
    assert files.problems == []


async def test_trouble_with_a_backup_does_not_fail_the_run(files: FileStorageBackend, folder: Path) -> None:
    """It is reported."""
    folder.write_text("a file")
    files.backup_schedule = BackupSchedule(every=1, folder=folder)
    await end_runs(files, 1)
    assert len(files.problems) == 1
    assert files.problems[0].startswith("After run r0: ")
    memory = MemoryStorageBackend()
    memory.backup_schedule = BackupSchedule()
    await end_runs(memory, 1)
    assert "Use a folder" in memory.problems[0]


async def test_runs_that_cannot_be_counted_for_a_full_disk_are_reported(
    files: FileStorageBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is recorded all the same."""

    def refuse(*what: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    files.backup_schedule = BackupSchedule(every=3, folder=folder)
    monkeypatch.setattr(backup, "write_all", refuse)
    await end_runs(files, 1)
    assert len(files.problems) == 1
    assert files.problems[0].startswith("After run r0: Cannot write ")
    assert "The disk is full: free some space." in files.problems[0]
    assert [info.status for info in await files.runs("p")] == ["completed"]


@pytest.mark.parametrize("options", [{"every": 0}, {"keep": 0}, {"keep": 1.5}, {"every": True}])
def test_a_schedule_is_checked(options: dict[str, Any]) -> None:
    """With the name of what is wrong."""
    with pytest.raises(DefinitionError, match=next(iter(options))):
        BackupSchedule(**options)


async def test_a_run_deleted_meanwhile_is_not_missed(
    files: FileStorageBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention may work at the same time."""
    await fill(files)
    real = files._run_ids

    async def one_more(pipeline_id: str) -> list[str]:
        return [*await real(pipeline_id), "gone"]

    monkeypatch.setattr(files, "_run_ids", one_more)
    assert (await files.backup(folder)).runs == 2


async def test_a_folder_that_was_said_once_is_the_place_for_all(tmp_path: Path) -> None:
    """Backups by themselves, by hand, their list, what a damaged store offers, and what is restored."""
    place = tmp_path / "elsewhere"
    storage = open_storage(tmp_path / "runs", backup_every=1, backup_folder=place)
    assert isinstance(storage, RecordStoreBackend)
    await record(storage, "one", "two")
    made = await storage.backup()
    assert made.path.parent == place
    assert await storage.backups() == [made]
    await damage(storage)
    with pytest.raises(CorruptRecordError, match="is intact: restore"):
        await storage.read_run("p", "r")
    await storage.restore()
    assert await read(storage) == ["one", "two"]


@pytest.mark.requires("redis-server")
async def test_a_server_takes_a_backup_by_its_path(tmp_path: Path, files: FileStorageBackend) -> None:
    """That is how runs move from a folder to a server."""
    await fill(files)
    made = await files.backup(tmp_path / "backups")
    for store in make_store("redis", tmp_path):
        await store.restore(made.path)
        await check(store)
        await store.close()


async def test_a_restore_that_stops_half_way_says_where_all_is_and_can_go_on(
    files: FileStorageBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the old content has been moved aside."""
    await fill(files)
    made = await files.backup(folder)
    real, count = files._put_run, 0

    async def full(*what: Any) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise StorageUnavailableError("The disk is full.")
        await real(*what)

    monkeypatch.setattr(files, "_put_run", full)
    with pytest.raises(
        StorageUnavailableError, match=r"disk is full. .*restore\(\) goes on .*held before is kept in"
    ):
        await files.restore(made.path, folder=folder)
    with pytest.raises(StorageError, match=r"is not whole: .* restore\(\) goes on"):
        await files.list_pipelines()
    await files.restore(folder=folder)
    await check(files)


async def test_a_damaged_run_keeps_its_place_in_the_list(store: RecordStoreBackend) -> None:
    """So that the newest run is listed as damaged, and an older one is not taken for it."""
    await record(store, "one", run_id="20250101t000000-aaaaaaaa")
    await record(store, "one", "two", run_id="20990101t000000-bbbbbbbb")
    await damage(store, "20990101t000000-bbbbbbbb")
    infos = await store.runs("p")
    assert [info.status for info in infos] == ["interrupted", "damaged"]
    assert infos[-1].started_at == 4070908800.0


class KilledError(BaseException):
    """The process ended here."""


@pytest.mark.parametrize("after", [False, True])
async def test_a_restore_that_was_killed_anywhere_can_be_ended(
    store: RecordStoreBackend, folder: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Killed before or after each of its steps, the store is as it was, or refused until ``restore()``."""
    await fill(store)
    await record(store, "one", "two", run_id="bad")
    await store.backup(folder)
    await damage(store, "bad")
    refused, place = 0, 0
    while await killed_at(place, store, folder, monkeypatch, after=after):
        if await is_refused(store):
            refused += 1
            info = await store.restore(folder=folder)
            assert info.backup.suffix == ".merged"
            assert await read(store, "bad") == ["one", "two"]
        await check_all(store)
        place += 1
    # Six items, three marks, and moving aside.
    assert (place, refused) == (10, 9)
    await check_all(store)
    assert await read(store, "bad") == ["one", "two"]


async def killed_at(
    place: int, store: RecordStoreBackend, folder: Path, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> bool:
    """Restore, and be killed before or after a change of the store; whether there was such a change."""
    count = 0

    def killing(real: Any) -> Any:
        async def change(*what: Any) -> Any:
            nonlocal count
            count += 1
            mine = count == place + 1
            if mine and not after:
                raise KilledError
            answer = await real(*what)
            if mine:
                raise KilledError
            return answer

        return change

    with monkeypatch.context() as patch:
        for name in ("_mark", "_set_aside", "_put", "_put_run"):
            patch.setattr(store, name, killing(getattr(store, name)))
        try:
            await store.restore(folder=folder, replace=True)
        except KilledError:
            return True
    return False


async def is_refused(store: RecordStoreBackend) -> bool:
    """Whether the store may not be used; then nothing may."""
    try:
        await store.list_pipelines()
    except StorageError:
        for call in (store.runs("p"), record(store, "new"), store.load("p"), store.acquire("p", "new")):
            with pytest.raises(StorageError, match=r"is not whole.* restore\(\) goes on with it"):
                await call
        return True
    return False


async def check_all(storage: RecordStoreBackend) -> None:
    """What :func:`fill` has stored is there, whatever else is."""
    for pipeline_id in ("p", "q"):
        assert plain(await storage.read_run(pipeline_id, "r")) == plain(sample_run("r"))
        assert await storage.load(pipeline_id) == {"saved": pipeline_id}
    assert await storage.memories("p") == {"remembered": 1}


async def stop_half_way(storage: RecordStoreBackend, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A restore that has moved the store aside and not yet filled it; the file it would go on with."""

    async def full(*what: Any) -> None:
        raise StorageUnavailableError("The disk is full.")

    with patch.context() as here:
        here.setattr(storage, "_put", full)
        here.setattr(storage, "_put_run", full)
        with pytest.raises(StorageUnavailableError):
            await storage.restore(folder=folder, replace=True)
    (content,) = folder.glob("*.merged")
    return content


@pytest.mark.parametrize("lost", ["gone", "damaged"])
async def test_a_restore_that_cannot_go_on_takes_another_backup(
    store: RecordStoreBackend, folder: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """If the file that it goes on with is lost; it says so."""
    await fill(store)
    made = await store.backup(folder)
    content = await stop_half_way(store, folder, monkeypatch)
    content.unlink() if lost == "gone" else content.write_bytes(b"damaged")
    with pytest.raises(StorageError, match="cannot go on without it. Name a backup"):
        await store.restore(folder=folder)
    await store.restore(made.path, folder=folder)
    await check(store)
    assert any("cannot go on" in problem for problem in store.problems)


async def test_a_restore_goes_on_before_another_begins(
    files: FileStorageBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was intact and is in no backup is only in the file that it goes on with."""
    await fill(files)
    made = await files.backup(folder)
    await record(files, "new", run_id="new")
    content = await stop_half_way(files, folder, monkeypatch)
    await files.restore(made.path, folder=folder)
    assert await read(files, "new") == ["new"]
    assert not content.exists()


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"[" * 60_000, b"\xff", b'{"content": 1}'])
async def test_a_mark_that_is_not_ours_is_an_error(files: FileStorageBackend, text: bytes) -> None:
    """Also what a stranger may have put there; a backup that is named takes its place."""
    await fill(files)
    made = await files.backup()
    (files.base_path / ".restoring").write_bytes(text)
    with pytest.raises(StorageError, match="is not whole"):
        await files.runs("p")
    await files.restore(made.path)
    await check(files)


async def test_what_the_newest_backup_lacks_comes_from_an_older_one(
    store: RecordStoreBackend, folder: Path
) -> None:
    """A backup leaves out what is damaged; an older one may have it. What no backup has is named."""
    await fill(store)
    await record(store, "one", "two", run_id="old")
    await store.backup(folder)
    await damage(store, "old")
    await record(store, "three", "four", run_id="never")
    await damage(store, "never")
    await store.backup(folder)
    info = await store.restore(folder=folder)
    assert info.restored == [("p", "run", "old")]
    assert sorted("No backup has it" in problem for problem in info.problems) == [False, True]
    assert await read(store, "old") == ["one", "two"]
    await check_all(store)


@pytest.mark.parametrize("kind", ["file", "sqlite"])
async def test_two_stores_share_a_folder_for_backups(kind: str, tmp_path: Path, folder: Path) -> None:
    """Each counts, rotates and restores its own."""
    (first,) = make_store(kind, tmp_path / "1")
    (two,) = make_store(kind, tmp_path / "2")
    for storage, text in ((first, "of one"), (two, "of two")):
        await record(storage, text)
        for _ in range(3):
            await storage.backup(folder, keep=2)
    assert len(await first.backups(folder)) == 4
    for storage in (first, two):
        await storage.delete("p")
        await storage.restore(folder=folder)
    assert await read(first) == ["of one"]
    assert await read(two) == ["of two"]


async def test_a_store_without_backups_takes_those_of_one_other(tmp_path: Path, folder: Path) -> None:
    """So a store that was moved finds them; of several others one must be named."""
    (first,) = make_store("file", tmp_path / "1")
    (two,) = make_store("sqlite", tmp_path / "2")
    (new,) = make_store("file", tmp_path / "3")
    await record(first, "of one")
    made = await first.backup(folder)
    await new.restore(folder=folder)
    assert await read(new) == ["of one"]
    await two.backup(folder)
    with pytest.raises(NotStoredError, match="backups of several stores.* Name one: restore"):
        await new.restore(folder=folder)
    await new.restore(made.path, folder=folder)


@pytest.mark.parametrize("wrong", [7, "", "  ", "a\0b", "\ud800", b"bytes", "~no-such-user/x"])
async def test_what_is_no_path_is_refused(files: FileStorageBackend, tmp_path: Path, wrong: Any) -> None:
    """By name, before anything is made."""
    for call in (
        files.backup(wrong), files.backups(wrong), files.verify(wrong), files.restore(wrong),
        files.restore(folder=wrong),
    ):  # fmt: skip
        with pytest.raises(DefinitionError, match="must be the path of a file or folder"):
            await call
    for make in (FileStorageBackend, SQLiteStorageBackend, files.allow_pickle):
        with pytest.raises(DefinitionError, match="must be the path of a file or folder"):
            make(wrong)
    assert list(tmp_path.iterdir()) == []


class Unmarked(FileStorageBackend):
    """A backend that implements only what is necessary."""

    _mark = RecordStoreBackend._mark
    _marked = RecordStoreBackend._marked
    _label = RecordStoreBackend._label


async def test_a_backend_without_marks_has_backups_too(tmp_path: Path, folder: Path) -> None:
    """It only cannot tell that a restore was stopped half-way, nor its backups from those of others."""
    storage = Unmarked(tmp_path / "runs")
    await fill(storage)
    made = await storage.backup(folder)
    assert "-" not in made.path.name
    await storage.delete("p")
    await storage.restore(folder=folder)
    await check(storage)


@pytest.mark.parametrize("kind", ["file", "sqlite"])
async def test_a_mark_that_cannot_be_removed_is_an_error(
    kind: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is whole then, and the next ``restore()`` removes it."""
    (store,) = make_store(kind, tmp_path)
    await fill(store)
    await store.backup(folder)
    real = Path.unlink

    def refuse(path: Path, *, missing_ok: bool = False) -> None:
        if "restoring" in path.name:
            raise PermissionError(13, "Permission denied")
        real(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(StorageUnavailableError, match=r"Cannot remove .*restoring.*goes on"):
            await store.restore(folder=folder, replace=True)
    await store.restore(folder=folder)
    await check(store)


# -- a store whose files were taken away ---------------------------------------------------------


async def empty(storage: RecordStoreBackend) -> None:
    """As one that removes the files, and not their backups."""
    await storage.close()
    if isinstance(storage, FileStorageBackend):
        for folder in storage.base_path.iterdir():
            if not folder.name.startswith("."):
                shutil.rmtree(folder)
    elif isinstance(storage, SQLiteStorageBackend):
        for suffix in ("", "-wal", "-shm"):
            storage.path.with_name(storage.path.name + suffix).unlink(missing_ok=True)
    else:
        for pipeline_id in await storage.list_pipelines():
            await storage.delete(pipeline_id)


async def begin(storage: RecordStoreBackend, run_id: str) -> None:
    """A run from its lease to its last record."""
    lease = await storage.acquire("p", run_id)
    await storage.append("p", run_id, sample_run(run_id), token=lease.token)
    await storage.release(lease)


async def test_backups_of_a_store_that_lost_its_runs_stay(store: RecordStoreBackend, folder: Path) -> None:
    """Whatever runs and backups come, until one of them is restored."""
    store.backup_schedule = BackupSchedule(every=1, keep=1, folder=folder)
    assert await store.lost_runs() == ""
    await fill(store)
    old = (await store.backup(folder)).path
    assert await store.lost_runs() == ""
    await empty(store)
    message = await store.lost_runs()
    assert message == (
        f"The store holds no run, and its backup {old} holds 2: await storage.restore({str(old)!r}) "
        "brings them back."
    )
    for run_id in ("new", "newer"):
        await begin(store, run_id)
        await store.backup(folder, keep=1)
    assert store.problems == [f"{message} No later backup removes it."]
    made = [info.path for info in await store.backups(folder)]
    assert len(made) == 2
    assert made[1] == old
    assert await store.lost_runs() == ""
    assert (await store.restore(old, folder=folder)).problems == []
    assert {info.run_id for info in await store.runs("p")} == {"r", "new", "newer"}
    await store.backup(folder, keep=1)
    assert old not in [info.path for info in await store.backups(folder)]


async def test_backups_without_runs_are_not_offered(files: FileStorageBackend) -> None:
    """Nor damaged ones; and it is no loss if there were none."""
    await files.save_memories("p", {"remembered": 1})
    await files.backup(keep=9)
    assert await files.lost_runs() == ""
    await fill(files)
    made = (await files.backup(keep=9)).path
    await files.delete("p")
    assert await files.lost_runs() == ""
    await files.delete("q")
    assert str(made) in await files.lost_runs()
    made.write_bytes(made.read_bytes()[:-20])
    assert await files.lost_runs() == ""
    await begin(files, "first")
    assert files.problems == []


async def test_a_mark_that_cannot_be_written_or_read_removes_nothing(
    files: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on, with a warning."""
    await fill(files)
    old = (await files.backup()).path
    await empty(files)
    mark = next(old.parent.glob("*.kept"), None)
    assert mark is None

    def full(path: Path, text: bytes | None) -> None:
        raise StorageUnavailableError("No space left.")

    with monkeypatch.context() as patch:
        patch.setattr(lost_store, "mark_file", full)
        await begin(files, "first")
    assert len(files.problems) == 1
    assert files.problems[0].endswith("No space left.")
    await empty(files)
    await begin(files, "second")
    (mark,) = old.parent.glob("*.kept")
    mark.write_bytes(b"soon")
    for _ in range(2):
        await files.backup(keep=1)
    assert old in [info.path for info in await files.backups()]


async def test_resuming_a_lost_run_says_where_it_is(files: FileStorageBackend) -> None:
    """In place of that there never was one."""
    pipeline = Pipeline("lost")
    pipeline.task(len_of_nothing)
    executor = PipelineExecutor(pipeline, storage=files)
    run_id = (await executor.execute()).run_id
    old = (await files.backup()).path
    await empty(files)
    for resume in (True, run_id):
        with pytest.raises(NotStoredError, match=re.escape(f"its backup {old} holds 1")):
            await executor.execute(resume=resume)
    result = await executor.execute()
    assert [str(old) in warning for warning in result.warnings] == [True]


def len_of_nothing() -> int:
    return 0


# -- clocks ------------------------------------------------------------------------------------


class Clock(datetime):
    """The time of day, set forth or back."""

    skew = timedelta()

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.now(tz) + cls.skew


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Clock]]:
    """What backups take for the time."""
    monkeypatch.setattr(archive, "datetime", Clock)
    yield Clock
    Clock.skew = timedelta()


async def test_a_backup_that_was_just_made_is_the_newest_and_stays(
    files: FileStorageBackend, folder: Path, clock: type[Clock]
) -> None:
    """Whether the clock was set back or forth, once or again and again."""
    made = []
    for days in (0, -1, -400, 2, -2, 0):
        clock.skew = timedelta(days=days)
        await record(files, f"day {days}", run_id=f"r{len(made)}")
        info = await files.backup(folder, keep=3)
        made.append(info.path)
        assert [backup.path for backup in await files.backups(folder)] == made[:-4:-1]
        assert info.runs == len(made)
    assert (await files.restore(folder=folder)).backup == made[-1]


async def test_two_backups_of_one_moment_have_two_names(folder: Path) -> None:
    """Also while the first of them is being written; and one of the year 9999 stops none."""
    folder.mkdir()
    (folder / "20990101T000000000000.backup").touch()
    first = archive.new_path(folder, "")
    assert first.name == "20990101T000000000001.backup"
    first.with_suffix(".tmp").touch()
    assert archive.new_path(folder, "").name == "20990101T000000000002.backup"
    (folder / "99991231T235959999999.backup").touch()
    assert archive.new_path(folder, "").name < first.name


@pytest.mark.parametrize("days", [-1, 1, -4000])
async def test_backups_come_by_the_number_of_runs(
    store: RecordStoreBackend, folder: Path, clock: type[Clock], days: int
) -> None:
    """Not by the time: runs of a clock that was set back count, those of one set forth count once."""
    store.backup_schedule = BackupSchedule(every=2, keep=9, folder=folder)
    await end_runs(store, 2)
    clock.skew = timedelta(days=days)
    for n in range(2, 7):
        lease = await store.acquire("p", f"r{n}")
        at = (datetime.now(UTC) + clock.skew).timestamp()
        await store.append("p", f"r{n}", sample_run(f"r{n}", at=at), token=lease.token)
        await store.release(lease)
        # What is given back without an end is no run that has ended.
        await store.release(await store.acquire("p", f"r{n}"))
    assert [info.runs for info in await store.backups(folder)] == [6, 4, 2]
    await store.backup(folder, keep=9)
    await end_runs(store, 1, first=7)
    assert len(await store.backups(folder)) == 4
    await end_runs(store, 1, first=8)
    assert len(await store.backups(folder)) == 5
    assert store.problems == []


async def test_runs_of_before_count_for_the_first_backup(store: RecordStoreBackend, folder: Path) -> None:
    """Of a store that has none yet."""
    await end_runs(store, 3)
    store.backup_schedule = BackupSchedule(every=4, folder=folder)
    await end_runs(store, 1, first=3)
    assert [info.runs for info in await store.backups(folder)] == [4]


async def test_runs_that_end_while_a_backup_is_made_count_for_the_next(
    files: FileStorageBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may not be in it."""
    files.backup_schedule = BackupSchedule(every=3, folder=folder)
    await end_runs(files, 1)
    await files.backup(folder)
    await end_runs(files, 1, first=1)
    real = backup.inspect

    def slow(path: Path, key: bytes | None) -> Any:
        (count,) = folder.glob("*.ended")
        count.write_bytes(count.read_bytes() + b".")
        return real(path, key)

    with monkeypatch.context() as patch:
        patch.setattr(backup, "inspect", slow)
        await files.backup(folder)
    await end_runs(files, 2, first=2)
    assert len(await files.backups(folder)) == 3


# -- what a restore leaves ---------------------------------------------------------------------


async def test_a_restore_that_fails_leaves_no_copy_of_the_store(
    store: RecordStoreBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it stops before anything was moved."""
    await fill(store)
    made = await store.backup(folder)

    async def refuse(*what: Any) -> Any:
        raise StorageUnavailableError("no")

    for name in ("_set_aside", "_mark"):
        with monkeypatch.context() as patch:
            patch.setattr(store, name, refuse)
            with pytest.raises(StorageUnavailableError, match="no"):
                await store.restore(made.path, folder=folder)
    with monkeypatch.context() as patch:
        patch.setattr(archive.Writer, "finish", lambda writer: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await store.restore(made.path, folder=folder)
    assert [path.name for path in folder.iterdir()] == [made.path.name]
    await check(store)


async def test_a_restore_that_took_the_place_of_another_leaves_no_copy(
    store: RecordStoreBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file with which that one would have gone on goes; a damaged mark removes nothing."""
    await fill(store)
    made = await store.backup(folder)
    content = await stop_half_way(store, folder, monkeypatch)
    content.write_bytes(b"damaged")
    await store.restore(made.path, folder=folder)
    assert [path.name for path in folder.iterdir()] == [made.path.name]
    precious = folder / "precious"
    precious.write_text("mine")
    await store._mark(restoring._text(precious, ""))
    await store.close()
    await store.restore(made.path, folder=folder)
    assert precious.read_text() == "mine"
    await check(store)


async def test_whether_a_copy_is_still_needed_is_asked_before_it_goes(
    files: FileStorageBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that cannot say so keeps it."""
    await fill(files)
    made = await files.backup(folder)
    marked = iter([None, None])

    async def refuse(*what: Any) -> Any:
        raise StorageUnavailableError("no")

    async def mark() -> Any:
        for text in marked:
            return text
        raise StorageUnavailableError("away")

    monkeypatch.setattr(files, "_set_aside", refuse)
    monkeypatch.setattr(files, "_marked", mark)
    with pytest.raises(StorageUnavailableError, match="no"):
        await files.restore(made.path, folder=folder)
    assert len(list(folder.glob("*.merged"))) == 1


async def test_what_is_restored_finds_its_place_among_the_runs(
    store: RecordStoreBackend, folder: Path
) -> None:
    """The newest run stays the newest, and the order is that of before, whatever was damaged or missing."""
    names = ["z", "b", "y", "a", "x", "c"]
    for name in names[:4]:
        await record(store, "one", "two", run_id=name)
    await store.backup(folder)
    for name in names[4:]:
        await record(store, "one", "two", run_id=name)
    await damage(store, "b")
    await store.delete_run("p", "z")
    await store.delete_run("p", "a")
    await store.restore(folder=folder)
    assert [info.run_id for info in await store.runs("p")] == names
    assert await store.newest_run("p") == "c"
    await store.restore(folder=folder, replace=True)
    assert [info.run_id for info in await store.runs("p")] == names
    await record(store, "one", run_id="d")
    assert await store.newest_run("p") == "d"
