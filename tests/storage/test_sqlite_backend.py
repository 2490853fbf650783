"""Storage in SQLite: the contract, and what is special about a database."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import math
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any, Literal

import pytest

from tagent_nb.errors import (
    CorruptRecordError,
    DefinitionError,
    FormatVersionError,
    LeaseLostError,
    NotStoredError,
    StorageUnavailableError,
)
from tagent_nb.events import Event, Warned
from tagent_nb.storage import SQLiteStorageBackend, StorageBackend, open_storage
from tagent_nb.storage.format.envelope import pack
from tagent_nb.storage.sqlite import backend as sqlite
from tagent_nb.storage.sqlite import database, wal
from tagent_nb.testing.contract import StorageContract
from tagent_nb.testing.samples import plain, sample_run


class TestSQLiteStorageFull(StorageContract):
    """The contract of all backends, with a flush per record."""

    durability: Literal["full", "fast"] = "full"

    @pytest.fixture
    def storage(self, tmp_path: Path) -> StorageBackend:
        return SQLiteStorageBackend(tmp_path / "runs.db", durability=self.durability)

    def another(self, storage: StorageBackend) -> StorageBackend:
        assert isinstance(storage, SQLiteStorageBackend)
        return SQLiteStorageBackend(storage.path, durability=self.durability)


class TestSQLiteStorageFast(TestSQLiteStorageFull):
    """The same without."""

    durability = "fast"


@pytest.fixture
def store(tmp_path: Path) -> SQLiteStorageBackend:
    """An empty store."""
    return SQLiteStorageBackend(tmp_path / "store" / "runs.db", durability="fast")


async def record(store: StorageBackend, *texts: str, run_id: str = "r", token: int | None = None) -> None:
    """A run of a few events, one record each."""
    for text in texts:
        await store.append("p", run_id, [Warned(run_id=run_id, message=text)], token=token)


async def read(store: StorageBackend, run_id: str = "r") -> list[str]:
    """What :func:`record` recorded."""
    events: list[Event] = await store.read_run("p", run_id)
    return [event.message for event in events if isinstance(event, Warned)]


def edit(store: SQLiteStorageBackend, *statements: str) -> None:
    """Do something to the database that the backend does not."""
    connection = sqlite3.connect(store.path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


# -- names -------------------------------------------------------------------------------------


def test_a_url_names_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slashes and a relative path, four and an absolute one; nothing is made yet."""
    monkeypatch.chdir(tmp_path)
    for url, path in (
        ("sqlite:///runs.db", tmp_path / "runs.db"),
        (f"sqlite:///{tmp_path}/my%20runs.db", tmp_path / "my runs.db"),
        ("sqlite:runs.db", tmp_path / "runs.db"),
    ):
        storage = open_storage(url, durability="fast")
        assert isinstance(storage, SQLiteStorageBackend)
        assert (storage.path, storage.durability) == (path, "fast")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["sqlite:", "sqlite:///", "sqlite://host/runs.db", "sqlite:///:memory:"])
def test_a_url_without_a_file_is_refused(url: str) -> None:
    """The message shows how to write it."""
    with pytest.raises(DefinitionError, match="sqlite:///runs.db"):
        open_storage(url)


def test_an_unknown_durability_is_refused(tmp_path: Path) -> None:
    """There are two levels."""
    with pytest.raises(DefinitionError, match="'full' or 'fast'"):
        SQLiteStorageBackend(tmp_path / "x.db", durability="slow")  # type: ignore[arg-type]


def test_it_says_what_it_is(tmp_path: Path) -> None:
    """In lists of settings and in messages."""
    path = str(tmp_path / "x.db")
    assert repr(SQLiteStorageBackend(path)) == f"SQLiteStorageBackend({path!r}, durability='full')"


# -- what is on the disk -----------------------------------------------------------------------


async def test_files_are_private(store: SQLiteStorageBackend) -> None:
    """The database and its log are 0600, the folder that was made for them 0700."""
    before = os.umask(0)
    try:
        await record(store, "x")
    finally:
        os.umask(before)
    made = list(store.path.parent.iterdir())
    assert {path.name for path in made} == {"runs.db", "runs.db-wal", "runs.db-shm"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o600}
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700


async def test_reading_makes_no_file(store: SQLiteStorageBackend) -> None:
    """A question about a store that is not there is answered without making one."""
    with pytest.raises(NotStoredError):
        await store.load("p")
    assert await store.list_pipelines() == []
    assert not store.path.parent.exists()


@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("fast", 1)])
async def test_the_log_is_flushed_as_asked(
    tmp_path: Path, durability: Literal["full", "fast"], synchronous: int
) -> None:
    """FULL survives a loss of power, NORMAL the death of the process; both use the write-ahead log."""
    store = SQLiteStorageBackend(tmp_path / "x.db", durability=durability)
    await record(store, "x")
    connection = store._file.open()
    assert connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_the_log_is_emptied_now_and_then(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the writer, so that a long run's log stays small; closing leaves one file."""
    monkeypatch.setattr(sqlite, "CHECKPOINT", 100_000)
    for n in range(40):
        await store.append("p", "r", [Warned(run_id="r", message="x" * 20_000 + str(n))])
        await store._file.select("SELECT 1")
    assert store.path.with_name("runs.db-wal").stat().st_size < 400_000
    assert len(await read(store)) == 40
    await store.close()
    assert [path.name for path in store.path.parent.iterdir()] == ["runs.db"]


async def test_trouble_with_emptying_the_log_stops_nothing(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported; the records are safe in the log."""
    monkeypatch.setattr(sqlite, "CHECKPOINT", 10)

    def refuse(*args: object, **kwargs: object) -> None:
        raise StorageUnavailableError("no")

    await record(store, "one")
    await store._file.in_reader(store._file._close_reader)
    with monkeypatch.context() as patch:
        patch.setattr(database, "connect", refuse)
        await record(store, "two")
        await store._file.in_reader(lambda: None)
    assert store.problems == ["The log could not be emptied. no"]
    assert await read(store) == ["one", "two"]


async def test_a_step_of_2_kb_writes_at_most_12_kb(store: SQLiteStorageBackend) -> None:
    """The log and the database together, however many steps there are."""
    lease = await store.acquire("p", "r")
    sizes = []
    for n in range(200):
        await store.append("p", "r", [Warned(run_id="r", message="x" * 2500 + str(n))], token=lease.token)
        sizes.append(store.path.with_name("runs.db-wal").stat().st_size)
    assert (sizes[199] - sizes[99]) / 100 < 9000
    await store.release(lease)
    await store.close()
    assert store.path.stat().st_size / 200 < 3100


# -- damage and strangers ----------------------------------------------------------------------


async def test_a_damaged_record_is_an_error_and_others_are_read(store: SQLiteStorageBackend) -> None:
    """Also at the end: a database is not torn, so nothing is dropped."""
    await record(store, "one", "two")
    await record(store, "x", run_id="other")
    await store.close()
    edit(
        store, "UPDATE records SET record = substr(record, 1, 50) WHERE id & 4294967295 = 1 AND id >> 32 = 1"
    )
    with pytest.raises(CorruptRecordError, match=r"runs\.db.*r of pipeline p"):
        await read(store)
    assert await read(store, "other") == ["x"]
    assert {info.run_id: info.status for info in await store.runs("p")} == {
        "r": "damaged",
        "other": "interrupted",
    }


async def test_a_record_of_another_run_is_refused(store: SQLiteStorageBackend) -> None:
    """With a checksum that is right."""
    await record(store, "one")
    await record(store, "x", run_id="other")
    await store.close()
    edit(
        store,
        "UPDATE records SET record = (SELECT record FROM records WHERE id >> 32 = 2) WHERE id >> 32 = 1",
    )
    with pytest.raises(CorruptRecordError, match="belongs to 'other'"):
        await read(store)


async def test_odd_values_in_a_strangers_file_are_typed_errors(store: SQLiteStorageBackend) -> None:
    """Text, numbers and bytes where they do not belong; names that we never give are not listed."""
    await record(store, "one")
    await store.save("p", {"x": 1})
    await store.close()
    edit(
        store,
        "UPDATE records SET record = 'text'",
        "UPDATE documents SET record = 7",
        "UPDATE runs SET token = 'many', holder = 7",
        "INSERT INTO documents VALUES ('../../x', 'snapshot', x'00')",
        "INSERT INTO documents VALUES (CAST(x'ff' AS TEXT), 'snapshot', x'00')",
        "INSERT INTO runs(pipeline, run) VALUES ('p', '*')",
        "INSERT INTO records VALUES ((SELECT max(number) FROM runs) << 32, x'00')",
    )
    assert await store.list_pipelines() == ["p"]
    assert [(info.run_id, info.status) for info in await store.runs("p")] == [("r", "damaged")]
    for call in (store.read_run("p", "r"), store.load("p")):
        with pytest.raises(CorruptRecordError):
            await call
    assert (await store.acquire("p", "r")).token > 0


async def test_a_poisoned_pickle_is_never_loaded(store: SQLiteStorageBackend, tmp_path: Path) -> None:
    """Not in a document, not in a record, not in a holder."""
    await record(store, "one")
    await store.save("p", {"x": 1})
    await store.close()
    marker = tmp_path / "executed"
    poison = b"cos\nsystem\n(S'touch %b'\ntR." % str(marker).encode()
    for kind, table in (("snapshot", "documents"), ("events", "records")):
        owner = "p" if kind == "snapshot" else "r"
        edit(store, f"UPDATE {table} SET record = x'{pack(kind, owner, poison).hex()}'")
    edit(store, f"UPDATE runs SET holder = x'{poison.hex()}'")
    for call in (store.read_run("p", "r"), store.load("p")):
        with pytest.raises(CorruptRecordError):
            await call
    await store.runs("p")
    await store.acquire("p", "r")
    assert not marker.exists()


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 5000, b"not a database " * 100, b"\x80\x04N.", b"SQLite format 3\0"]
)
async def test_a_file_that_is_no_database_is_refused(store: SQLiteStorageBackend, content: bytes) -> None:
    """And left as it is; also an empty one, since a new store never is."""
    store.path.parent.mkdir()
    store.path.write_bytes(content)
    remedy = "Restore a backup" if content else r"lost all .* \(0 bytes\). restore\(\)"
    for call in (record(store, "x"), store.runs("p"), store.list_pipelines()):
        with pytest.raises(CorruptRecordError, match=remedy):
            await call
    assert store.path.read_bytes() == content


async def test_cut_at_every_64th_page_it_is_never_silently_empty(store: SQLiteStorageBackend) -> None:
    """Truncated anywhere: whole events, or a typed error; at no size an empty list of pipelines."""
    for n in range(3):
        for event in sample_run(f"r{n}"):
            await store.append("p", f"r{n}", [event])
    await store.close()
    data = store.path.read_bytes()
    for size in [0, 64, 512, *range(1024, len(data), 512)]:
        store.path.write_bytes(data[:size])
        again = SQLiteStorageBackend(store.path, durability="fast")
        try:
            assert await again.list_pipelines() == ["p"]
            for n in range(3):
                assert plain(await again.read_run("p", f"r{n}")) == plain(sample_run(f"r{n}"))
        except CorruptRecordError:
            pass
        finally:
            await again.close()


@pytest.mark.parametrize("which", ["min", "max(id) - 1 FROM records UNION SELECT min"])
async def test_a_record_that_was_taken_out_is_damage(store: SQLiteStorageBackend, which: str) -> None:
    """The first one, or one in the middle: what happened is not known without it."""
    await record(store, "one", "two", "three")
    await store.close()
    edit(store, f"DELETE FROM records WHERE id IN (SELECT {which}(id) FROM records)")
    with pytest.raises(CorruptRecordError, match="r of pipeline p: records are missing. Restore"):
        await read(store)
    assert [info.status for info in await store.runs("p")] == ["damaged"]


async def test_a_file_of_an_older_version_that_may_only_be_read_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lacks the place for what says where a run ends, and cannot be given it."""
    path = tmp_path / "runs.db"
    shutil.copy(Path(__file__).parents[1] / "fixtures/storage-format-1/runs.db", path)
    monkeypatch.setattr(database, "is_read_only", lambda path: True)
    store = SQLiteStorageBackend(path)
    (pipeline_id,) = await store.list_pipelines()
    assert [info.run_id for info in await store.runs(pipeline_id)] == ["finished", "stopped"]
    assert await store.read_run(pipeline_id, "finished")


async def test_of_two_that_make_room_in_an_old_file_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other finds it done once it may write."""
    path = tmp_path / "runs.db"
    shutil.copy(Path(__file__).parents[1] / "fixtures/storage-format-1/runs.db", path)
    store = SQLiteStorageBackend(path, durability="fast")
    assert len(await store.list_pipelines()) == 1
    answers = [True, False]
    monkeypatch.setattr(database, "_lacks_column", lambda connection: answers.pop(0))
    other = SQLiteStorageBackend(path, durability="fast")
    assert len(await other.list_pipelines()) == 1
    assert answers == []


async def test_an_error_besides_a_lock_is_passed_on_at_once(store: SQLiteStorageBackend) -> None:
    """Also where no thread is needed to insert a record."""
    lease = await store.acquire("p", "r")
    await record(store, "one", token=lease.token)
    edit(store, "ALTER TABLE records RENAME TO gone")
    with pytest.raises(CorruptRecordError, match="no such table"):
        await record(store, "two", token=lease.token)


async def test_a_row_in_the_way_that_is_no_record_is_an_error(store: SQLiteStorageBackend) -> None:
    """Where another process recorded meanwhile, the record goes behind that; but only behind a record."""
    lease = await store.acquire("p", "r")
    await record(store, "one", "two", token=lease.token)
    edit(store, "INSERT INTO records SELECT max(id) + 1, x'00' FROM records")
    with pytest.raises(CorruptRecordError, match="no record starts here"):
        await record(store, "three", token=lease.token)


# -- a damaged log -----------------------------------------------------------------------------


async def crashed(store: SQLiteStorageBackend, folder: Path) -> SQLiteStorageBackend:
    """Another store with the files of this one as they are now, as if its process had been killed."""
    folder.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{store.path}{suffix}", folder / f"runs.db{suffix}")
    other = SQLiteStorageBackend(folder / "runs.db", durability="fast")
    data = log_of(other).read_bytes()
    end = HEAD
    # Frames of before the log began anew have other salts.
    while data[end + 8 : end + 16] == data[16:24]:
        end += FRAME
    log_of(other).write_bytes(data[:end])
    return other


def log_of(store: SQLiteStorageBackend) -> Path:
    """The write-ahead log."""
    return store.path.with_name("runs.db-wal")


def flip(store: SQLiteStorageBackend, place: int, bit: int = 0) -> None:
    """Change one bit of the log; places before its end are negative."""
    data = bytearray(log_of(store).read_bytes())
    data[place] ^= 1 << bit
    log_of(store).write_bytes(data)


HEAD, FRAME = 32, 24 + database.PAGE


async def test_what_a_damaged_log_has_lost_is_named_and_stays_known(
    store: SQLiteStorageBackend, tmp_path: Path
) -> None:
    """Whole runs, the end of one, and saved data: reported as the file is opened, and by the runs ever after.
    The log is kept, and all can be carried on."""
    await store.save("p", {"saved": 1})
    leases = {}
    for run_id in ("a", "b", "c"):
        leases[run_id] = await store.acquire("p", run_id)
        await record(store, "one", "two", run_id=run_id, token=leases[run_id].token)
    place = log_of(await crashed(store, tmp_path / "before")).stat().st_size
    await record(store, "three", run_id="b", token=leases["b"].token)
    await record(store, "three", "four", run_id="a", token=leases["a"].token)
    lease = await store.acquire("p", "d")
    await record(store, "one", run_id="d", token=lease.token)
    await store.save("p", {"saved": 2})
    other = await crashed(store, tmp_path / "copy")
    flip(other, place + 1000)
    damaged = log_of(other).read_bytes()
    assert await other.list_pipelines() == ["p"]
    (message,) = other.problems
    assert (
        "records 3 to 4 of run a of pipeline p; record 3 of run b of pipeline p; record 1 of run d" in message
    )
    assert "the snapshot that pipeline p saved last" in message
    assert "run c" not in message
    (kept,) = other.path.parent.glob("*.damaged-*")
    assert (str(kept) in message, kept.read_bytes(), kept.stat().st_mode & 0o777) == (True, damaged, 0o600)
    assert await read(other, "c") == ["one", "two"]
    await other.close()
    again = SQLiteStorageBackend(other.path, durability="fast")
    assert {info.run_id: info.problem is None for info in await again.runs("p")} == {
        "a": False, "b": False, "c": True, "d": False
    }  # fmt: skip
    assert (await read(again, "a"))[:2] == ["one", "two"]
    assert "4 records were recorded, and 2 are there" in (await read(again, "a"))[2]
    with pytest.raises(CorruptRecordError, match="state lost: 1 records of the run"):
        await read(again, "d")
    assert not any("leaves out its end" in problem for problem in again.problems)
    for run_id in ("a", "b"):
        await record(again, "new", run_id=run_id)
        assert await read(again, run_id) == ["one", "two", "new"]
    await again.delete_run("p", "d")
    assert [info.problem for info in await again.runs("p")] == [None, None, None]
    assert await again.load("p") == {"saved": 1}


@pytest.mark.parametrize("where", ["head", "salt of the first frame", "salt of the last frame", "last page"])
async def test_one_bit_of_the_log_is_enough(store: SQLiteStorageBackend, tmp_path: Path, where: str) -> None:
    """Wherever it is, also where only one transaction is lost by it."""
    lease = await store.acquire("p", "r")
    await record(store, "one", "two", token=lease.token)
    other = await crashed(store, tmp_path / "copy")
    place = {
        "head": 17,
        "salt of the first frame": 32 + 9,
        "salt of the last frame": -FRAME + 9,
        "last page": -100,
    }[where]
    flip(other, place, 3)
    lost = "record 2" if "last" in where else "records 1 to 2"
    assert [info.problem is None for info in await other.runs("p")] == [False]
    assert f"Lost: {lost} of run r of pipeline p." in other.problems[0]


@pytest.mark.parametrize("bit", [0, 3, 7])
async def test_a_bit_in_the_very_name_of_what_is_lost(
    store: SQLiteStorageBackend, tmp_path: Path, bit: int
) -> None:
    """The checksum of the frame tells which bit it was: no record goes unnamed, and none by another name."""
    lease = await store.acquire("p", "r3")
    for text in ("one", "two"):
        await store.append("p", "r3", [Warned(run_id="r3", message=text)], token=lease.token)
    log = log_of(store).read_bytes()
    head = log.rindex(b"tagent-nb 2 json")
    for offset in (0, 1, 2, 3, log.index(b" r3 ", head) - head + 2):
        other = await crashed(store, tmp_path / f"copy{offset}")
        flip(other, head + offset, bit if offset < 4 else min(bit, 3))
        assert [info.problem is None for info in await other.runs("p")] == [False]
        assert "Lost: record 2 of run r3 of pipeline p." in other.problems[0]
    for offset in (24, 25, 26, 27):
        # The stored checksum itself: nothing else is wrong.
        other = await crashed(store, tmp_path / f"copy-{offset}")
        flip(other, len(log) - FRAME + offset - 8, bit)
        await other.runs("p")
        assert "Lost: record 2 of run r3 of pipeline p." in other.problems[0]


async def test_of_saved_data_only_what_is_lost_is_named(store: SQLiteStorageBackend, tmp_path: Path) -> None:
    """Other data stands beside it in the same page."""
    await store.save("p", {"saved": 1})
    await store.save("q", {"saved": 2})
    other = await crashed(store, tmp_path / "copy")
    flip(other, -100)
    assert await other.load("p") == {"saved": 1}
    assert "Lost: the snapshot that pipeline q saved last." in other.problems[0]


async def test_a_log_of_one_frame_whose_head_is_damaged(store: SQLiteStorageBackend, tmp_path: Path) -> None:
    """Nothing tells how long the frame is but the log's own length."""
    await store.save("p", {"saved": 1})
    store._checkpoint("TRUNCATE")
    await store.save("p", {"saved": 2})
    other = await crashed(store, tmp_path / "copy")
    data = log_of(other).read_bytes()
    log_of(other).write_bytes(data[:32] + data[32 : 32 + FRAME])
    flip(other, 5)
    with contextlib.suppress(CorruptRecordError):
        await other.load("p")
    assert [str(log_of(other)) in problem for problem in other.problems] == [False] * len(other.problems)


async def test_a_run_whose_pipeline_the_log_does_not_tell_is_named(
    store: SQLiteStorageBackend, tmp_path: Path
) -> None:
    """What is damaged are the very lines that would say it, by more bits than a checksum puts right."""
    await store.save("q", {"saved": 1})
    # Both connections are there, and neither empties the log as it comes.
    assert await store.load("q") == {"saved": 1}
    lease = await store.acquire("p", "r")
    await record(store, "one", "two", token=lease.token)
    other = await crashed(store, tmp_path / "copy")
    data = log_of(other).read_bytes()
    places = [match.start() for match in re.finditer(b"tail p r ", data)]
    assert len(places) == 2
    for place in places:
        flip(other, place)
        flip(other, place + 1)
    assert await other.runs("p") == []
    assert "Lost: run r (2 records or more)." in other.problems[0]


async def test_a_lost_claim_is_no_lost_record(store: SQLiteStorageBackend, tmp_path: Path) -> None:
    """What is missing is a change of a lease only."""
    lease = await store.acquire("p", "r")
    await record(store, "one", token=lease.token)
    await store.renew(lease)
    other = await crashed(store, tmp_path / "copy")
    flip(other, -100)
    assert await read(other) == ["one"]
    assert "Lost: nothing of a run, perhaps a claim or a deletion." in other.problems[0]


async def test_a_crash_in_the_middle_of_a_transaction_is_no_damage(
    store: SQLiteStorageBackend, tmp_path: Path
) -> None:
    """The log ends anywhere in its last transaction, or frames of before it began anew are behind its end."""
    lease = await store.acquire("p", "r")
    await record(store, *(str(n) * 900 for n in range(9)), token=lease.token)
    before = log_of(store).stat().st_size
    await record(store, "x" * 9000, token=lease.token)
    data = log_of(store).read_bytes()
    assert len(data) > before + 3 * FRAME
    for number, size in enumerate(
        [before, before + 10, before + FRAME, before + 2 * FRAME + 99, len(data) - 1]
    ):
        other = await crashed(store, tmp_path / str(number))
        log_of(other).write_bytes(data[:size])
        assert len(await read(other)) == 9
        assert other.problems == []
    await store.renew(lease)
    store._checkpoint()
    await record(store, "one more", token=lease.token)
    data = log_of(store).read_bytes()
    other = await crashed(store, tmp_path / "anew")
    assert log_of(other).stat().st_size < len(data)
    log_of(other).write_bytes(data)
    assert (await read(other))[-1] == "one more"
    assert other.problems == []


async def test_a_damaged_log_that_cannot_be_kept_aside_is_reported(
    store: SQLiteStorageBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full: what is lost is named all the same."""
    lease = await store.acquire("p", "r")
    await record(store, "one", "two", token=lease.token)
    other = await crashed(store, tmp_path / "copy")
    flip(other, -100)

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(wal.shutil, "copyfile", refuse)
    assert (await read(other))[0] == "one"
    assert (
        "record 2 of run r of pipeline p. The log as it was could not be kept aside: No" in other.problems[0]
    )


class OnFullDisk(sqlite3.Connection):
    """A connection that can move nothing from the log into the database."""

    def execute(self, query: str, *values: Any) -> sqlite3.Cursor:
        if "wal_checkpoint(PASSIVE)" in query:
            raise sqlite3.OperationalError("database or disk is full")
        return super().execute(query, *values)


@pytest.mark.parametrize("damaged", [False, True])
async def test_damage_of_the_log_is_reported_although_the_log_cannot_be_emptied(
    store: SQLiteStorageBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    lease = await store.acquire("p", "r")
    await record(store, "one", "two", token=lease.token)
    other = await crashed(store, tmp_path / "copy")
    if damaged:
        flip(other, -100)
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=OnFullDisk))
    assert (await read(other))[0] == "one"
    assert any("Lost: record 2 of run r" in problem for problem in other.problems) is damaged


async def test_a_transaction_under_way_is_no_damage(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What looks like it is looked at once more when no process writes."""
    await record(store, "one")
    looks = [[b"frame"], []]
    monkeypatch.setattr(wal, "_lost", lambda *args: looks.pop(0))
    other = SQLiteStorageBackend(store.path, durability="fast")
    assert await read(other) == ["one"]
    assert (other.problems, looks) == ([], [])


async def test_a_log_that_stays_locked_is_an_error(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the connection that was opened is closed again."""
    await record(store, "one")

    def refuse(*args: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    other = SQLiteStorageBackend(store.path, durability="fast")
    with monkeypatch.context() as patch:
        patch.setattr(wal, "recover", refuse)
        with pytest.raises(StorageUnavailableError, match="database is locked"):
            await read(other)
    assert await read(other) == ["one"]


async def test_the_log_is_emptied_when_a_run_ends(store: SQLiteStorageBackend) -> None:
    """What is in the database is out of reach of damage to the log."""
    lease = await store.acquire("p", "r")
    await record(store, "one", token=lease.token)
    assert log_of(store).stat().st_size > 0
    await store.release(lease)
    assert await read(store) == ["one"]  # by the thread that has emptied it before
    assert log_of(store).stat().st_size == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"tableruns", b"table\xffuns"),
        (b"runsruns", b"ru\xffsruns"),
        (b"CREATE TABLE runs(", b"CREATE TABLE r\xffns("),
        (b"holder BLOB", b"h\xfflder BLOB"),
        (b"holder BLOB", b"helder BLOB"),
        (b"pipeline TEXT", b"pipe\xffine TEXT"),
    ],
)
async def test_text_that_is_no_utf_8_is_damage_and_restore_works(
    store: SQLiteStorageBackend, old: bytes, new: bytes
) -> None:
    """Python would only say that it cannot decode what SQLite says."""
    await record(store, "one")
    await store.backup()
    await store.close()
    data = store.path.read_bytes()
    assert old in data
    store.path.write_bytes(data.replace(old, new))
    with pytest.raises(CorruptRecordError, match="Restore a backup|restore a backup"):
        await record(store, "two")
    with contextlib.suppress(CorruptRecordError):
        assert [info.status for info in await store.runs("p")] == ["damaged"]
    await store.restore()
    assert await read(store) == ["one"]


async def test_a_newer_format_is_refused_and_left_as_it_is(store: SQLiteStorageBackend) -> None:
    """By readers and by writers."""
    await record(store, "one")
    await store.close()
    edit(store, "PRAGMA user_version = 999")
    before = store.path.read_bytes()
    for call in (read(store), record(store, "two")):
        with pytest.raises(FormatVersionError, match="newer tagent-nb"):
            await call
    assert store.path.read_bytes() == before


async def test_the_database_of_another_program_is_left_alone(store: SQLiteStorageBackend) -> None:
    """Nothing is added to a browser's history."""
    store.path.parent.mkdir()
    edit(store, "CREATE TABLE visits(url)")
    before = store.path.read_bytes()
    with pytest.raises(StorageUnavailableError, match="another program"):
        await record(store, "x")
    assert store.path.read_bytes() == before


@pytest.mark.parametrize("gone", [1, 2])
async def test_rows_deleted_after_a_kill_are_reported(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch, gone: int
) -> None:
    """Of steps that take longer than a second the end is noted with each record, not only with the lease."""
    monkeypatch.setattr(sqlite, "NOTE", 0.0)
    lease = await store.acquire("p", "r")
    for number in range(4):
        await record(store, str(number), token=lease.token)
    # The lease is not given back, as after a kill.
    store._file.open().execute(
        "DELETE FROM records WHERE id IN (SELECT id FROM records ORDER BY id DESC LIMIT ?)", (gone,)
    )
    again = SQLiteStorageBackend(store.path)
    events = await again.read_run("p", "r")
    assert f"4 records were recorded, and {4 - gone} are there" in str(events[-1])


async def test_the_end_of_a_run_is_noted_once_a_second(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that follow each other faster do not pay for it each time."""
    monkeypatch.setattr(sqlite, "NOTE", math.inf)
    lease = await store.acquire("p", "r")
    noted = []
    for number in range(4):
        if number == 3:
            monkeypatch.setattr(sqlite, "NOTE", 0.0)
        await record(store, str(number), token=lease.token)
        state = await store._state("p", "r")
        noted.append(int((state or b"").split()[3]))
    assert noted == [1, 1, 1, 4]
    await store.release(lease)
    assert not store._noted


async def test_a_missing_table_is_damage(store: SQLiteStorageBackend) -> None:
    """It is not made again: what was in it would be silently gone."""
    await record(store, "x")
    await store.close()
    edit(store, "DROP TABLE records")
    with pytest.raises(CorruptRecordError, match="lacks a table"):
        await record(store, "y")


@pytest.mark.parametrize("suffix", ["", "-wal", "-journal"])
@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
async def test_links_pipes_and_folders_in_place_of_files_are_refused(
    store: SQLiteStorageBackend, tmp_path: Path, suffix: str, kind: str
) -> None:
    """Neither the database nor its log leads elsewhere."""
    await record(store, "x")
    await store.close()
    path = store.path.with_name(store.path.name + suffix)
    path.unlink(missing_ok=True)
    secret = tmp_path / "secret"
    secret.write_text("do not touch")
    if kind == "link":
        path.symlink_to(secret)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    for call in (record(store, "y"), store.runs("p")):
        with pytest.raises(CorruptRecordError, match="Put the file itself|not a regular file"):
            await call
    assert secret.read_text() == "do not touch"


# -- trouble -----------------------------------------------------------------------------------


async def test_a_network_file_system_is_refused(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, the log would lose data."""
    monkeypatch.setattr(database, "file_system", lambda path: "nfs4")
    with pytest.raises(StorageUnavailableError, match=r"network file system \(nfs4\)"):
        await record(store, "x")
    assert not store.path.exists()


def test_the_kind_of_the_file_system_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the longest mount point above the file; unknown where the system does not tell."""
    assert database.file_system(Path("/proc/x")) == "proc"
    assert database.file_system(tmp_path / "x") not in ("", "proc")
    real = Path.read_text

    def mounts(path: Path) -> str:
        if path.name != "mounts":
            return real(path)
        return f"/ / ext4 rw 0 0\nhost:/x {tmp_path}/my\\040share nfs4 rw 0 0\n"

    monkeypatch.setattr(Path, "read_text", mounts)
    assert database.file_system(tmp_path / "my share/runs.db") == "nfs4"
    assert database.file_system(tmp_path / "my/runs.db") == "ext4"

    def refuse(path: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert database.file_system(tmp_path) == ""


async def test_a_log_that_cannot_be_used_is_an_error(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on systems without shared memory."""
    real = sqlite3.connect

    class WithoutLog(sqlite3.Connection):
        def execute(self, query: str, *values: Any) -> Any:
            return super().execute("SELECT 'delete'" if "journal_mode" in query else query, *values)

    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **options: real(*args, **options, factory=WithoutLog)
    )
    with pytest.raises(StorageUnavailableError, match="write-ahead log"):
        await record(store, "x")


async def test_a_folder_that_vanishes_is_an_error(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making it and opening the file."""
    monkeypatch.setattr(database, "make_folder", lambda path, sync: None)
    with pytest.raises(StorageUnavailableError, match="folder is gone"):
        await record(store, "x")


async def test_a_new_database_in_a_folder_that_may_only_be_read(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One clear error, though what was begun cannot be removed there either."""
    real, refusal = os.open, OSError(errno.EROFS, "Read-only file system")

    def refuse(path: Any, flags: int, *more: Any) -> int:
        if ".tagent-" in str(path):
            raise refusal
        return real(path, flags, *more)

    def keep(path: Path, missing_ok: bool = False) -> None:
        raise refusal

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(Path, "unlink", keep)
    with pytest.raises(StorageUnavailableError, match="Read-only file system"):
        await record(store, "x")


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_database_deleted_under_a_run_is_noticed(store: SQLiteStorageBackend, replaced: bool) -> None:
    """Nothing is written into a file that has no name any more."""
    lease = await store.acquire("p", "r")
    await record(store, "one", token=lease.token)
    store.path.unlink()
    if replaced:
        store.path.touch()
    with pytest.raises(StorageUnavailableError, match="deleted or replaced"):
        await record(store, "two", token=lease.token)


async def test_a_store_that_another_process_has_restored_is_used_anew(store: SQLiteStorageBackend) -> None:
    """By those who read and by runs that begin, through the object that had the old file open."""
    await record(store, "one")
    other = SQLiteStorageBackend(store.path)
    await other.backup()
    await record(store, "more", run_id="later")
    await other.restore(replace=True)
    await record(other, "two")
    await other.delete_run("p", "later")
    assert [info.run_id for info in await store.runs("p")] == ["r"]
    assert await read(store) == ["one", "two"]
    lease = await store.acquire("p", "new")
    await store.append("p", "new", [Warned(run_id="new", message="three")], token=lease.token)
    await store.release(lease)
    assert sorted(info.run_id for info in await other.runs("p")) == ["new", "r"]
    store.path.unlink()
    assert await store.runs("p") == []


async def test_a_full_disk_is_an_error_that_can_be_mended(store: SQLiteStorageBackend) -> None:
    """What was stored before stays, and recording goes on when there is space."""
    await record(store, "one")
    connection = store._file.open()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageUnavailableError, match="free some space"):
        await record(store, "x" * 50_000)
    with pytest.raises(StorageUnavailableError, match="free some space"):
        await store.save("p", {"x": "x" * 50_000})
    connection.execute("PRAGMA max_page_count = 1000000")
    await record(store, "two")
    assert await read(store) == ["one", "two"]


async def test_too_big_a_record_is_an_error(store: SQLiteStorageBackend) -> None:
    """With what to do instead."""
    await record(store, "one")
    store._file.open().setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1000)
    with pytest.raises(StorageUnavailableError, match="return its path"):
        await record(store, "x" * 2000)
    with pytest.raises(StorageUnavailableError, match="return its path"):
        await store.save("p", {"x": "x" * 2000})
    assert await read(store) == ["one"]


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (sqlite3.SQLITE_READONLY, "permissions"),
        (sqlite3.SQLITE_CANTOPEN, "permissions"),
        (sqlite3.SQLITE_IOERR, "Check the disk"),
        (sqlite3.SQLITE_CORRUPT, "Restore a backup"),
        (sqlite3.SQLITE_BUSY, "fuser"),
    ],
)
def test_each_kind_of_trouble_has_its_remedy(code: int, remedy: str) -> None:
    """By SQLite's error code."""
    error = sqlite3.OperationalError("no")
    error.sqlite_errorcode = code
    assert remedy in str(database.trouble(error, Path("runs.db")))


async def test_a_name_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    """Before anything is made."""
    store = SQLiteStorageBackend(tmp_path / ("x" * 300))
    for call in (record(store, "one"), store.list_pipelines(), store.save("p", {})):
        with pytest.raises(StorageUnavailableError, match="shorter"):
            await call
    assert list(tmp_path.iterdir()) == []


# -- locks, processes, forks -------------------------------------------------------------------


async def test_a_lock_held_elsewhere_delays_the_record_and_not_the_loop(store: SQLiteStorageBackend) -> None:
    """While another process writes, tasks go on and readers read; then the record is written."""
    await record(store, "one")
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.ensure_future(record(store, "two"))
    for _ in range(20):
        await asyncio.sleep(0.005)
        assert not writing.done()
    assert await read(store) == ["one"]
    other.execute("COMMIT")
    other.close()
    await writing
    assert await read(store) == ["one", "two"]


async def test_a_lock_that_is_never_given_back_is_an_error(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a bounded time; then it goes on."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT", 20)
    await record(store, "one")
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailableError, match="locked"):
        await record(store, "two")
    other.execute("COMMIT")
    other.close()
    await record(store, "three")
    assert await read(store) == ["one", "three"]


async def test_a_record_that_was_cancelled_while_it_waited_is_not_written(
    store: SQLiteStorageBackend,
) -> None:
    """The others of its batch are."""
    await record(store, "one")
    with store._file.lock:
        tasks = [asyncio.ensure_future(record(store, text)) for text in ("two", "three", "four")]
        # The thread that writes cannot begin: all of them wait.
        while len(store._waiting) < len(tasks):
            await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[1], asyncio.CancelledError)
    assert await read(store) == ["one", "two", "four"]


async def test_one_lost_lease_does_not_spoil_the_batch(tmp_path: Path) -> None:
    """Records that share a flush are judged one by one."""
    store = SQLiteStorageBackend(tmp_path / "x.db")
    lease = await store.acquire("p", "r")
    batch = [record(store, str(n), token=lease.token + n % 2) for n in range(6)]
    results = await asyncio.gather(*batch, return_exceptions=True)
    assert [isinstance(result, LeaseLostError) for result in results] == [False, True] * 3
    assert await read(store) == ["0", "2", "4"]


async def test_two_processes_may_make_the_same_file(tmp_path: Path) -> None:
    """At the same moment: one makes the tables, all of them record."""
    program = (
        "import asyncio, sys\n"
        "from tagent_nb.storage.sqlite.backend import SQLiteStorageBackend\n"
        "from tagent_nb.events import Warned\n"
        "store = SQLiteStorageBackend(sys.argv[1], durability='fast')\n"
        "print('ready', flush=True); input()\n"
        "asyncio.run(store.append('p', sys.argv[2], [Warned(run_id=sys.argv[2], message='x')]))\n"
    )
    path = tmp_path / "x.db"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path), f"r{n}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(4)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        child.communicate(timeout=240)
        assert child.returncode == 0
    assert len(await SQLiteStorageBackend(path).runs("p")) == 4


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_forked_child_records_on_its_own(store: SQLiteStorageBackend) -> None:
    """It takes over neither connections nor threads."""
    await record(store, "parent")
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(record(store, "child"))
            os._exit(0)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 120
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
        assert time.monotonic() < deadline, "the child hangs"
        await asyncio.sleep(0.01)
    assert os.waitstatus_to_exitcode(done[1]) == 0
    await record(store, "parent again")
    assert await read(store) == ["parent", "child", "parent again"]


async def test_another_process_id_means_a_fork(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections and threads of before are left to the parent."""
    await record(store, "one")
    await read(store)
    monkeypatch.setattr(os, "getpid", lambda: 12345)
    await record(store, "two")
    assert await read(store) == ["one", "two"]
    await store.close()
    for connection in database._left_to_parent:
        connection.close()


async def test_a_copy_of_the_file_made_with_its_log_is_whole(
    store: SQLiteStorageBackend, tmp_path: Path
) -> None:
    """Another process that opens what is there reads all of it, also before the log was emptied."""
    await record(store, "one", "two")
    folder = tmp_path / "copy"
    shutil.copytree(store.path.parent, folder)
    assert await read(SQLiteStorageBackend(folder / "runs.db")) == ["one", "two"]


async def test_opening_waits_where_sqlite_itself_gives_up(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process opens the same new file, SQLite may say "locked" at once. We try again."""
    other = await locked(store)
    refused: list[float] = []

    def let_go(seconds: float) -> None:
        refused.append(seconds)
        other.execute("ROLLBACK")
        other.close()

    monkeypatch.setattr(database, "sleep", let_go)
    await record(store, "first")
    assert len(refused) == 1
    assert await read(store) == ["first"]


async def test_opening_gives_up_with_the_remedy(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that stays is an error that names the file."""
    other = await locked(store)
    monkeypatch.setattr(database, "BUSY_TIMEOUT", 1)
    with pytest.raises(StorageUnavailableError, match="Another process has locked it"):
        await record(store, "first")
    other.close()


async def locked(store: SQLiteStorageBackend) -> sqlite3.Connection:
    """A connection that holds a new database as long as it likes."""
    await store.save("p", {})
    await store.close()
    other = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
    other.execute("PRAGMA journal_mode = DELETE")
    other.execute("BEGIN EXCLUSIVE")
    return other


@pytest.mark.parametrize("backups", [False, True])
async def test_an_emptied_file_is_no_new_store(tmp_path: Path, backups: bool) -> None:
    """Nothing is silently empty, nor is the log removed; a backup restores all."""
    path = tmp_path / "runs.db"
    storage = SQLiteStorageBackend(path)
    await record(storage, "one", "two")
    if backups:
        await storage.backup()
    log = path.with_name("runs.db-wal")
    content = log.read_bytes()
    await storage.close()
    path.write_bytes(b"")
    log.write_bytes(content)
    again = SQLiteStorageBackend(path)
    for call in (again.list_pipelines(), record(again, "three")):
        with pytest.raises(CorruptRecordError, match=r"lost all that was in it .*restore\(\)"):
            await call
    assert content
    assert log.read_bytes() == content
    if backups:
        await again.restore()
        assert await read(again) == ["one", "two"]
        assert next(tmp_path.glob("runs.db.damaged-*-wal")).read_bytes() == content
    await again.close()


async def test_a_log_without_its_database_is_not_put_into_a_new_one(store: SQLiteStorageBackend) -> None:
    """SQLite would take the pages of the old database for those of the new one."""
    await record(store, "one")
    log = store.path.with_name(store.path.name + "-wal")
    content = log.read_bytes()
    await store.close()
    store.path.unlink()
    log.write_bytes(content)
    with pytest.raises(CorruptRecordError, match=r"is gone, and its log is still there"):
        await record(store, "two")
    assert log.read_bytes() == content
    log.unlink()
    await record(store, "three")
    assert await read(store) == ["three"]


@pytest.mark.parametrize("links", [True, False])
async def test_of_two_that_make_a_store_both_use_the_same(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """The second finds the first one's file at the last moment, also where there are no hard links."""
    other = SQLiteStorageBackend(store.path)
    publish = database.publish
    published: list[bool] = []
    calls = iter([True, False])

    def refuse(*_: object) -> None:
        raise PermissionError

    def overtaken(aside: Path, path: Path, *, sync: bool) -> bool:
        if next(calls):
            asyncio.run(record(other, "theirs"))
        published.append(publish(aside, path, sync=sync))
        return published[-1]

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(database, "publish", overtaken)
    await record(store, "ours")
    assert published == [True, False]
    assert await read(store) == ["theirs", "ours"]
    assert not list(store.path.parent.glob(".tagent-*"))


async def test_a_new_store_that_cannot_be_named_leaves_nothing(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may be full at any moment."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(StorageUnavailableError, match="free some space"):
            await record(store, "one")
    assert list(store.path.parent.iterdir()) == []
    await record(store, "one")
    assert await read(store) == ["one"]


async def test_what_a_killed_process_left_of_a_new_store_is_swept(store: SQLiteStorageBackend) -> None:
    """What is older than an hour; nothing of other programs."""
    store.path.parent.mkdir()
    old, new, strange = (store.path.with_name(n) for n in (".tagent-1-0.tmp", ".tagent-2-0.tmp", ".x.tmp"))
    for file in (old, new, strange):
        file.touch()
    for file in (old, strange):
        os.utime(file, (0, 0))
    await record(store, "one")
    assert [file.exists() for file in (old, new, strange)] == [False, True, True]


@pytest.mark.parametrize(
    "made", ["TRIGGER t AFTER INSERT ON records BEGIN DELETE FROM records; END", "VIEW v AS SELECT 1"]
)
async def test_what_a_stranger_made_in_the_file_never_runs(tmp_path: Path, made: str) -> None:
    """A trigger could delete what is recorded."""
    storage = SQLiteStorageBackend(tmp_path / "runs.db")
    await record(storage, "one")
    await storage.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "runs.db")) as base:
        base.execute(f"CREATE {made}")
    again = SQLiteStorageBackend(tmp_path / "runs.db")
    with pytest.raises(CorruptRecordError, match="has triggers or views"):
        await record(again, "two")
    await again.close()


# -- files that may only be read ------------------------------------------------------------------

READER = """
    import asyncio, codecs, os, pydantic_core, shutil, sys
    from tagent_nb.errors import StorageUnavailableError
    from tagent_nb.events import Warned
    from tagent_nb.storage.sqlite.backend import SQLiteStorageBackend
    codecs.lookup("unicode_escape")  # while the modules of Python can be read
    if os.geteuid() == 0:
        os.setgroups([]); os.setgid(65534); os.setuid(65534)

    async def main():
        store = SQLiteStorageBackend(sys.argv[1])
        print(await store.list_pipelines(), [run.run_id for run in await store.runs("p")])
        print([event.message for event in await store.read_run("p", "r")])
        try:
            await store.append("p", "r", [Warned(run_id="r", message="mine")])
        except StorageUnavailableError as error:
            print(error)

    asyncio.run(main())
"""


async def read_as_another_user(store: SQLiteStorageBackend, folder: Path) -> list[str]:
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", textwrap.dedent(READER), str(store.path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


async def test_a_file_that_may_only_be_read_is_read_and_not_written() -> None:
    """At rest, and while its owner records: what is in the log is read as well."""
    # As another user, since permissions mean nothing to root; the folder's parents must let it in.
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    try:
        store = SQLiteStorageBackend(folder / "runs.db")
        await record(store, "one")
        await store.close()
        listed, texts, refused = await read_as_another_user(store, folder)
        assert (listed, texts) == ("['p'] ['r']", "['one']")
        assert "It may not be written: change its permissions" in refused
        folder.chmod(0o755)
        store.path.chmod(0o644)
        await record(store, "two")
        assert (await read_as_another_user(store, folder))[:2] == ["['p'] ['r']", "['one', 'two']"]
        await store.close()
    finally:
        folder.chmod(0o700)
        shutil.rmtree(folder)


async def test_each_look_at_a_file_that_may_only_be_read_sees_what_is_there_now(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is read as one that does not change is opened anew each time."""
    await record(store, "one")
    await store.close()
    access = os.access
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
        reader = SQLiteStorageBackend(store.path)
        assert await read(reader) == ["one"]
        await record(store, "two")
        assert await read(reader) == ["one", "two"]
        await store.close()
        assert await read(reader) == ["one", "two"]
        assert not list(store.path.parent.glob("*-shm"))
        with sqlite3.connect(store.path) as connection:
            connection.execute("DROP TABLE documents")
        connection.close()
        with pytest.raises(CorruptRecordError, match="lacks a table"):
            await read(reader)


# -- a full disk -------------------------------------------------------------------------------


def no_space(path: Path, *, sync: bool) -> sqlite3.Connection:
    """SQLite could not make the file for the index of its log."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    raise database.trouble(error, path) from error


@pytest.mark.parametrize("crashed", [False, True])
async def test_a_store_on_a_full_disk_can_be_read(
    store: SQLiteStorageBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crashed: bool
) -> None:
    """All that is recorded, also what a crash has left in the log; to read needs no space."""
    await record(store, "one", "two")
    path = tmp_path / "copy.db"
    if not crashed:
        await store.close()
    for suffix in ("", "-wal") if crashed else ("",):
        shutil.copy(store.path.with_name(store.path.name + suffix), f"{path}{suffix}")
    monkeypatch.setattr(database, "connect", no_space)
    full = SQLiteStorageBackend(path)
    assert await read(full) == ["one", "two"]
    assert [info.run_id for info in await full.runs("p")] == ["r"]
    with pytest.raises(StorageUnavailableError, match="disk I/O error"):
        await full.acquire("p", "r")
    monkeypatch.undo()
    await record(full, "three")
    assert await read(full) == ["one", "two", "three"]


async def test_a_disk_that_fails_is_not_taken_for_a_full_one(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it cannot be read without space either, the error is the first one."""
    await record(store, "one")
    await store.close()
    monkeypatch.setattr(database, "connect", no_space)
    monkeypatch.setattr(database, "connect_without_space", lambda path: no_space(path, sync=False))
    with pytest.raises(StorageUnavailableError, match="disk I/O error"):
        await read(store)

    def locked(path: Path, *, sync: bool) -> sqlite3.Connection:
        raise StorageUnavailableError("locked")

    monkeypatch.setattr(database, "connect", locked)
    with pytest.raises(StorageUnavailableError, match="locked"):
        await read(store)


# -- many runs ---------------------------------------------------------------------------------


async def test_a_look_for_the_newest_run_takes_few_steps(store: SQLiteStorageBackend) -> None:
    """However many are stored: the steps of SQLite's machine are counted."""
    await record(store, "one", run_id="r")
    with contextlib.closing(sqlite3.connect(store.path)) as connection:
        connection.executemany(
            "INSERT INTO runs(pipeline, run) VALUES (?, ?)",
            [("q" if n % 2 else "p", f"r{n}") for n in range(20_000)],
        )
        connection.execute("INSERT INTO records SELECT number << 32, x'00' FROM runs WHERE number > 1")
        connection.commit()
    assert await store.newest_run("p") == "r19998"
    reader = store._file._reading
    assert reader is not None
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    reader.set_progress_handler(count, 10)
    assert await store.newest_run("p", besides="r19998") == "r19996"
    assert await store.has_run("q", "r19999")
    assert not await store.has_run("q", "r1x")
    assert steps < 100
    await store.delete_run("p", "r19998")
    assert steps < 200


async def test_a_name_that_is_no_id_does_not_hide_the_newest_run(store: SQLiteStorageBackend) -> None:
    """Another program may have put anything into the file."""
    await record(store, "one", run_id="r1")
    await record(store, "one", run_id="r2")
    edit(
        store,
        "INSERT INTO runs(pipeline, run) VALUES ('p', '../../x')",
        "INSERT INTO records SELECT number << 32, x'00' FROM runs WHERE run = '../../x'",
    )
    assert await store.newest_run("p") == "r2"
    assert await store.newest_run("p", besides="r2") == "r1"
    assert [info.run_id for info in await store.runs("p", limit=2)] == ["r1", "r2"]


@pytest.mark.parametrize("size", [None, 0, 55])
def test_a_log_that_is_emptied_or_removed_meanwhile_has_lost_nothing(
    tmp_path: Path, size: int | None
) -> None:
    """Another connection may checkpoint and close while this one looks at the log."""
    if size is not None:
        (tmp_path / "runs.db-wal").write_bytes(bytes(size))
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        assert wal.recover(connection, tmp_path / "runs.db", None) is None


LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as index:
    try:
        # The byte that each connection locks for as long as it is open.
        fcntl.lockf(index, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 128)
    except OSError:
        print("held")
    else:
        print("free")
"""


async def test_a_second_connection_takes_no_lock_of_the_first_away(store: SQLiteStorageBackend) -> None:
    """A program that opens and closes a file of SQLite's drops the locks of the whole process on it, and
    another process may then empty the index that this one has in its memory."""
    await record(store, "one")
    index = store.path.with_name(store.path.name + "-shm")

    def state() -> str:
        command = [sys.executable, "-c", LOCK, str(index)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert state() == "held"
    other = SQLiteStorageBackend(store.path, durability="fast")
    assert await read(other) == ["one"]
    assert state() == "held"
    await other.close()
    assert state() == "held"
    await store.close()
    assert not index.exists()


async def test_an_append_while_a_thread_uses_the_file_is_written_when_it_is_free(
    store: SQLiteStorageBackend,
) -> None:
    """An append goes without a thread only where nothing is in the way."""
    lease = await store.acquire("p", "r")
    await store.append("p", "r", [Warned(run_id="r", message="one")], token=lease.token)
    in_use, free = threading.Event(), threading.Event()

    def use() -> None:
        with store._file.lock:
            in_use.set()
            free.wait(60)

    thread = threading.Thread(target=use)
    thread.start()
    in_use.wait(60)
    append = asyncio.ensure_future(
        store.append("p", "r", [Warned(run_id="r", message="two")], token=lease.token)
    )
    await asyncio.sleep(0)
    assert not append.done()
    free.set()
    await append
    thread.join()
    assert [event.message for event in await store.read_run("p", "r")] == ["one", "two"]
