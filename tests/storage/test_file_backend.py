"""Storage in a folder: the contract, and what is special about files."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from tagent_nb.errors import CorruptRecordError, FormatVersionError, LeaseLostError, StorageUnavailableError
from tagent_nb.events import Event, StepFinished, Warned
from tagent_nb.serde import StoredValue
from tagent_nb.storage import FileStorageBackend, StorageBackend
from tagent_nb.storage import filesystem as disk
from tagent_nb.storage.file import backend as file
from tagent_nb.storage.file import journal, locks, order
from tagent_nb.storage.format.envelope import Draft, pack
from tagent_nb.testing.contract import StorageContract
from tagent_nb.testing.samples import plain, sample_run
from tests.storage_kinds import replace_records, stored_records


class TestFileStorageFull(StorageContract):
    """The contract of all backends, with a flush per record."""

    durability: Literal["full", "fast"] = "full"

    @pytest.fixture
    def storage(self, tmp_path: Path) -> StorageBackend:
        return FileStorageBackend(tmp_path / "runs", durability=self.durability)

    def another(self, storage: StorageBackend) -> StorageBackend:
        assert isinstance(storage, FileStorageBackend)
        return FileStorageBackend(storage.base_path, durability=self.durability)


class TestFileStorageFast(TestFileStorageFull):
    """The same without."""

    durability = "fast"


@pytest.fixture
def store(tmp_path: Path) -> FileStorageBackend:
    """An empty store."""
    return FileStorageBackend(tmp_path / "runs", durability="fast")


def messages(events: list[Event]) -> list[str]:
    """What the warnings among events say."""
    return [event.message for event in events if isinstance(event, Warned)]


def warned(text: str) -> list[Event]:
    """A batch of one event."""
    return [Warned(run_id="r", message=text)]


def open_files() -> int:
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def record(store: StorageBackend, *texts: str, run_id: str = "r") -> None:
    """A run of a few events, one record each."""
    for text in texts:
        await store.append("p", run_id, [Warned(run_id=run_id, message=text)])


def journal_of(store: FileStorageBackend) -> Path:
    """The journal of the run that :func:`record` makes."""
    return store.base_path / "p" / "r.journal"


# -- what is on the disk -----------------------------------------------------------------------


async def test_files_and_folders_are_private(store: FileStorageBackend) -> None:
    """0700 and 0600, whatever the umask is."""
    before = os.umask(0)
    try:
        await store.save("p", {"x": 1})
        lease = await store.acquire("p", "r")
        await store.append("p", "r", sample_run("r"), token=lease.token)
    finally:
        os.umask(before)
    made = [store.base_path, *store.base_path.rglob("*")]
    assert {path.suffix for path in made} == {"", ".record", ".journal", ".lease", ".order", ".checked"}
    for path in made:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


async def test_a_step_of_2_kb_takes_less_than_3_kb(store: FileStorageBackend) -> None:
    """One record a step, written once: 1,000 steps of 2 KB are at most 3 MB, and 2,000 twice as much."""
    lease = await store.acquire("p", "r")
    sizes = []
    for n in range(200):
        event = StepFinished(
            run_id="r",
            step=f"step_{n}",
            output=StoredValue.of({"text": "x" * 2000, "n": n}),
            key="k" * 64,
            components={"runner": "python-1", "code": "c" * 64, "input:before": "i" * 64},
            seconds=0.1,
        )
        await store.append("p", "r", [event], token=lease.token)
        sizes.append(journal_of(store).stat().st_size)
    assert sizes[-1] < 200 * 3000
    steps = [after - before for before, after in pairwise(sizes)]
    assert max(steps) - min(steps) < 20


async def test_files_of_others_are_left_alone(store: FileStorageBackend) -> None:
    """Foreign files and folders are neither listed nor deleted."""
    await record(store, "x")
    for name in ("README.txt", "p/notes.txt", "p/~~.journal", "P/x", "empty/x", "a.b/r.journal"):
        path = store.base_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert await store.list_pipelines() == ["p"]
    assert [info.run_id for info in await store.runs("p")] == ["r"]
    await store.delete("p")
    assert await store.list_pipelines() == []
    assert (store.base_path / "p/notes.txt").exists()


async def test_what_a_dead_process_left_aside_is_swept(store: FileStorageBackend, tmp_path: Path) -> None:
    """Old temporary files go when the folder is next written to; young ones may be in use."""
    await record(store, "x")
    old, young = store.base_path / "p/.1-1.tmp", store.base_path / "p/.1-2.tmp"
    for path in (old, young):
        path.touch()
    os.utime(old, (0, 0))
    await FileStorageBackend(store.base_path).save("p", {})
    assert (old.exists(), young.exists()) == (False, True)


def test_the_folder_may_be_a_link_that_the_user_made(tmp_path: Path) -> None:
    """The place of the store is the user's own choice."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    asyncio.run(FileStorageBackend(tmp_path / "link").save("p", {"x": 1}))
    assert asyncio.run(FileStorageBackend(tmp_path / "real").load("p")) == {"x": 1}


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_calls_come_in_the_order_that_survives_a_loss_of_power(tmp_path: Path) -> None:
    """Write aside, flush, rename, flush the folder; and after each record a flush of its journal.

    The place of a run among the others is noted before there is a run.
    """
    program = (
        "import asyncio, sys\n"
        "from tagent_nb.storage.file.backend import FileStorageBackend\n"
        "from tagent_nb.events import Warned\n"
        "async def main():\n"
        "    store = FileStorageBackend(sys.argv[1])\n"
        "    await store.save('p', {'x': 1})\n"
        "    for text in ('one', 'two'):\n"
        "        await store.append('p', 'r', [Warned(run_id='r', message=text)])\n"
        "asyncio.run(main())\n"
    )
    log = tmp_path / "log"
    calls = "trace=openat,write,fsync,fdatasync,rename,mkdir"
    subprocess.run(
        [
            "strace",
            "-f",
            "-y",
            "-o",
            str(log),
            "-e",
            calls,
            sys.executable,
            "-c",
            program,
            str(tmp_path / "runs"),
        ],
        check=True,
    )
    order: list[str] = []
    for line in log.read_text().splitlines():
        call = line.partition(" ")[2].strip()
        name = call.partition("(")[0]
        if "/runs" not in call or name == "openat":
            continue
        what = next(
            part for part in (".tmp", ".journal", ".lease", ".order", "runs/p", "runs") if part in call
        )
        order.append(f"{name} {what}")
    whole = ["write .tmp", "fsync .tmp", "rename .tmp", "fsync runs/p"]
    made = ["mkdir runs", "mkdir runs/p", "fsync runs"]
    noted = ["write .order", "fsync .order"]
    assert order == [*made, *whole, *noted, *whole, "write .journal", "fdatasync .journal"]


def test_a_system_that_cannot_flush_folders_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows."""
    monkeypatch.delattr(os, "O_DIRECTORY")
    disk.replace_file(tmp_path / "x", b"content")
    assert disk.read_file(tmp_path / "x") == b"content"


# -- damage ------------------------------------------------------------------------------------


async def test_a_torn_end_is_dropped_reported_and_cut_off(store: FileStorageBackend) -> None:
    """Readers leave it out and say so; the next writer cuts it off, and what it writes is whole."""
    await record(store, "one", "two", "three")
    path = journal_of(store)
    os.truncate(path, path.stat().st_size - 10)
    reader, writer = FileStorageBackend(store.base_path), FileStorageBackend(store.base_path)
    texts = messages(await reader.read_run("p", "r"))
    assert texts[:2] == ["one", "two"]
    assert "torn" in texts[2]
    assert reader.problems == texts[2:]
    assert [(info.status, info.problem) for info in await reader.runs("p")] == [("interrupted", None)]
    await record(writer, "four")
    assert any("cut off" in problem for problem in writer.problems)
    assert messages(await store.read_run("p", "r")) == ["one", "two", "four"]


async def test_a_torn_end_may_hide_that_more_is_missing(store: FileStorageBackend) -> None:
    """What is said of the torn record is not all: the lease tells how many there were."""
    await record(store, "one", "two", "three", "four")
    records = await stored_records(store)
    await replace_records(store, [*records[:2], records[2][:-10]])
    texts = messages(await store.read_run("p", "r"))
    assert texts[:2] == ["one", "two"]
    assert "was torn and is left out" in texts[2]
    assert "4 records were recorded, and 2 are there" in texts[2]


async def test_a_journal_whose_lease_is_damaged_or_gone_says_so(store: FileStorageBackend) -> None:
    """It is read, and nothing shows whether its end is missing; the next writer knows again."""
    await record(store, "one", "two")
    lease = journal_of(store).with_suffix(".lease")
    whole = lease.read_bytes()
    for content, expected in (
        (whole.replace(b" r 2 ", b" r 9 "), "is damaged"),
        (None, "is gone"),
        (b"", "is gone"),
    ):
        lease.unlink() if content is None else lease.write_bytes(content)
        again = FileStorageBackend(store.base_path)
        texts = messages(await again.read_run("p", "r"))
        assert texts[:2] == ["one", "two"]
        assert expected in texts[2]
        (info,) = await again.runs("p")
        assert (info.status, info.problem) == ("interrupted", texts[2])
    await record(again, "three")
    assert messages(await store.read_run("p", "r")) == ["one", "two", "three"]


async def test_a_lease_of_an_older_version_gets_room_for_the_count(store: FileStorageBackend) -> None:
    """Its token and its holder are what they were."""
    lease = await store.acquire("p", "r")
    path = journal_of(store).with_suffix(".lease")
    token, holder = await store._lease("p", "r")
    path.write_bytes(b"%020d %b" % (token, holder))
    assert await store._lease("p", "r") == (token, holder)
    await store.append("p", "r", [Warned(run_id="r", message="one")], token=lease.token)
    assert await store._lease("p", "r") == (token, holder)
    assert messages(await store.read_run("p", "r")) == ["one"]


async def test_a_record_whose_count_cannot_be_written_is_taken_back(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both or neither."""
    await record(store, "one", "two")

    def refuse(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        with pytest.raises(StorageUnavailableError, match="full"):
            await record(store, "three")
    await record(store, "four")
    assert messages(await store.read_run("p", "r")) == ["one", "two", "four"]


async def test_a_disk_that_cannot_be_read_is_no_damaged_run(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of runs says so, and is there again when the disk is."""
    await record(store, "one")

    def refuse(*args: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", refuse)
        with pytest.raises(StorageUnavailableError, match="Cannot read .*: Input/output error. Check the"):
            await store.runs("p")
    assert [info.run_id for info in await store.runs("p")] == ["r"]


async def test_an_older_copy_of_a_record_in_its_place_is_reported(
    store: FileStorageBackend, tmp_path: Path
) -> None:
    """The run forked: another program has put back a record that another one had replaced."""
    await record(store, "one", "two")
    shutil.copytree(store.base_path, tmp_path / "copy")
    other = FileStorageBackend(tmp_path / "copy", durability="fast")
    await record(other, "another three")
    await record(store, "three")
    await replace_records(store, await stored_records(other))
    texts = messages(await store.read_run("p", "r"))
    assert texts[:3] == ["one", "two", "another three"]
    assert "Record 3 of run r of pipeline p is not the one that was recorded there" in texts[3]
    (info,) = await store.runs("p")
    assert info.problem == texts[3]


async def test_a_torn_end_of_another_process_is_cut_off_by_a_writer_that_is_open(
    store: FileStorageBackend,
) -> None:
    """Also where the other process died while this one had the journal open."""
    await record(store, "one", "two")
    with journal_of(store).open("ab") as other:
        other.write(pack("events", "r", b"cut")[:-20])
    await record(store, "three")
    assert messages(await store.read_run("p", "r")) == ["one", "two", "three"]


async def test_damage_before_the_end_is_an_error_for_readers_and_writers(store: FileStorageBackend) -> None:
    """Nothing is dropped, nothing is written, and the other runs are still listed."""
    await record(store, "one", "two", "three")
    await record(store, "x", run_id="other")
    path = journal_of(store)
    data = path.read_bytes()
    damaged = data.replace(b"two", b"tvo")
    path.write_bytes(damaged)
    again = FileStorageBackend(store.base_path)
    with pytest.raises(CorruptRecordError, match=r"r\.journal.*checksum"):
        await again.read_run("p", "r")
    with pytest.raises(CorruptRecordError):
        await record(again, "four")
    assert path.read_bytes() == damaged
    by_id = {info.run_id: info for info in await again.runs("p")}
    assert (by_id["r"].status, by_id["other"].status) == ("damaged", "interrupted")
    assert "checksum" in str(by_id["r"].problem)


async def test_damage_under_an_open_writer_stops_it(store: FileStorageBackend) -> None:
    """What others did to the journal meanwhile is checked before anything is written behind it."""
    await record(store, "one", "two")
    path = journal_of(store)
    damaged = path.read_bytes().replace(b"two", b"tvo") + pack("events", "r", b"{}")
    path.write_bytes(damaged)
    with pytest.raises(CorruptRecordError, match="checksum"):
        await record(store, "three")
    assert path.read_bytes() == damaged


async def test_cut_at_every_64th_byte_a_journal_is_never_silently_empty(
    store: FileStorageBackend,
) -> None:
    """What is left is whole events and a warning, or a typed error."""
    await store.append("p", "r", sample_run("r")[:1])
    for event in sample_run("r")[1:]:
        await store.append("p", "r", [event])
    path = journal_of(store)
    data, events = path.read_bytes(), plain(sample_run("r"))
    for size in range(0, len(data), 64):
        path.write_bytes(data[:size])
        again = FileStorageBackend(store.base_path)
        try:
            read = await again.read_run("p", "r")
        except CorruptRecordError:
            assert size < data.index(b"\ntagent-nb", 1)
            assert [info.status for info in await again.runs("p")] == ["damaged"]
        else:
            torn = bool(again.problems)
            whole = plain(read[:-1] if torn else read)
            assert whole == events[: len(whole)]
            assert torn or data[size : size + 9] == b"tagent-nb"


@pytest.mark.parametrize("name", ["snapshot", "memories"])
async def test_cut_at_every_64th_byte_a_document_is_a_typed_error(
    store: FileStorageBackend, name: str
) -> None:
    """A document has no end that could be dropped."""
    await store.save("p", {"text": "x" * 1000})
    await store.save_memories("p", {"text": "x" * 1000})
    path = store.base_path / f"p/{name}.record"
    data = path.read_bytes()
    for size in range(0, len(data), 64):
        path.write_bytes(data[:size])
        with pytest.raises(CorruptRecordError, match=f"{name}.record"):
            await (store.load("p") if name == "snapshot" else store.memories("p"))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xef\xbb\xbf{}", b"{}{}", b'{"a":1,"a":2}', b"[" * 200_000, b"9" * 5000, b"NaN",
        b"PK\x03\x04" + b"\0" * 99, b"\x80\x04\x95.", b"\xff\xfe\x00", b"{}", b"null",
    ],
    ids=lambda content: ascii(content[:12]),
)  # fmt: skip
@pytest.mark.parametrize("wrapped", [False, True])
async def test_whatever_a_file_holds_is_a_typed_error(
    store: FileStorageBackend, content: bytes, wrapped: bool
) -> None:
    """Bare, or in an envelope whose checksum is right; only a wrapped ``{}`` is a document of ours."""
    await store.save("p", {"x": 1})
    await record(store, "x")
    for path, kind, owner in (
        (store.base_path / "p/snapshot.record", "snapshot", "p"),
        (journal_of(store), "events", "r"),
    ):
        path.write_bytes(pack(kind, owner, content) if wrapped else content)
    again = FileStorageBackend(store.base_path)
    if wrapped and content == b"{}":
        assert await again.load("p") == {}
    else:
        with pytest.raises(CorruptRecordError):
            await again.load("p")
    with pytest.raises(CorruptRecordError):
        await again.read_run("p", "r")
    assert [info.status for info in await again.runs("p")] == ["damaged"]


async def test_a_newer_format_is_refused_and_left_as_it_is(store: FileStorageBackend) -> None:
    """By readers and by writers; the list of runs says so."""
    await record(store, "one")
    path = journal_of(store)
    newer = path.read_bytes() + b"tagent-nb 999 something new\n"
    path.write_bytes(newer)
    again = FileStorageBackend(store.base_path)
    for call in (again.read_run("p", "r"), record(again, "two")):
        with pytest.raises(FormatVersionError, match="newer tagent-nb"):
            await call
    (info,) = await again.runs("p")
    assert (info.status, "newer" in str(info.problem)) == ("damaged", True)
    assert path.read_bytes() == newer


async def test_records_that_belong_elsewhere_are_refused(store: FileStorageBackend) -> None:
    """A file copied to another name is not taken for what the name says."""
    await record(store, "x")
    await store.save("p", {"x": 1})
    folder = store.base_path / "p"
    (folder / "r2.journal").write_bytes((folder / "r.journal").read_bytes())
    (folder / "memories.record").write_bytes((folder / "snapshot.record").read_bytes())
    (store.base_path / "q").mkdir()
    (store.base_path / "q/snapshot.record").write_bytes((folder / "snapshot.record").read_bytes())
    for call in (store.read_run("p", "r2"), store.memories("p"), store.load("q")):
        with pytest.raises(CorruptRecordError, match="belong"):
            await call


def _link(path: Path) -> None:
    secret = path.parent.parent.parent / "secret"
    secret.write_text("do not touch")
    path.symlink_to(secret)


def _socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


STRANGE: dict[str, Any] = {
    "link": _link,
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "socket": _socket,
}


@pytest.mark.parametrize("kind", STRANGE)
async def test_links_pipes_and_folders_in_place_of_files_are_refused(
    store: FileStorageBackend, tmp_path: Path, kind: str
) -> None:
    """Reading neither hangs nor follows, writing changes nothing; the run is listed as damaged."""
    await record(store, "x")
    await store.save("p", {"x": 1})
    await store.close()
    for name in ("r.journal", "snapshot.record"):
        path = store.base_path / "p" / name
        path.unlink()
        STRANGE[kind](path)
    for call in (store.read_run("p", "r"), record(store, "y"), store.load("p")):
        with pytest.raises(CorruptRecordError, match="Put the file itself|not a regular file"):
            await call
    assert [info.status for info in await store.runs("p")] == ["damaged"]
    if kind == "link":
        assert (tmp_path / "secret").read_text() == "do not touch"
    path = store.base_path / "p/r.lease"
    path.unlink(missing_ok=True)
    STRANGE[kind](path)
    with pytest.raises(CorruptRecordError):
        await store.acquire("p", "r")


async def test_a_link_in_place_of_a_pipelines_folder_is_refused(
    store: FileStorageBackend, tmp_path: Path
) -> None:
    """A store from a stranger does not lead elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    store.base_path.mkdir()
    (store.base_path / "p").symlink_to(tmp_path / "elsewhere")
    for call in (store.save("p", {}), store.load("p"), record(store, "x"), store.runs("p")):
        with pytest.raises(CorruptRecordError, match="symbolic link"):
            await call
    assert await store.list_pipelines() == []
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_too_long_a_file_is_refused_unread(store: FileStorageBackend) -> None:
    """A sparse file of some terabytes costs no memory."""
    await store.save("p", {"x": 1})
    os.truncate(store.base_path / "p/snapshot.record", 1 << 40)
    with pytest.raises(CorruptRecordError, match="at most"):
        await store.load("p")


# -- trouble with the disk ---------------------------------------------------------------------


async def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    """The message names the place and the remedy."""
    (tmp_path / "runs").write_text("I am a file")
    store = FileStorageBackend(tmp_path / "runs")
    for call in (store.save("p", {}), record(store, "x"), store.list_pipelines(), store.load("p")):
        with pytest.raises(StorageUnavailableError, match="use another folder"):
            await call
    await store.close()
    assert (tmp_path / "runs").read_text() == "I am a file"


@pytest.mark.parametrize("fault", ["write", "fsync", "rename"])
async def test_a_failed_save_leaves_what_was_saved(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Wherever it fails, the old document is there and nothing is left aside."""
    await store.save("p", {"x": 1})

    def fail(*args: object, **kwargs: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        target: Any = Path if fault == "rename" else os
        patch.setattr(target, "replace" if fault == "rename" else fault, fail)
        with pytest.raises(StorageUnavailableError, match="disk is full"):
            await store.save("p", {"x": 2})
    assert await store.load("p") == {"x": 1}
    assert not list(store.base_path.rglob("*.tmp"))


async def test_a_record_that_did_not_fit_is_taken_back(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a record is cut off at once, and recording goes on when there is space again."""
    await record(store, "one")
    real = os.write
    calls = []

    def half(descriptor: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(descriptor, bytes(data)[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(StorageUnavailableError, match="free some space"):
            await record(store, "two")
    assert len(calls) == 2
    await record(store, "three")
    assert messages(await store.read_run("p", "r")) == ["one", "three"]
    assert store.problems == []


async def test_a_record_that_cannot_be_taken_back_is_cut_off_later(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the disk refuses that as well, the next record finds a torn end and removes it."""
    await record(store, "one")
    real = os.write

    calls = []

    def half(descriptor: int, data: bytes) -> int:
        calls.append(len(data))
        return refuse() if len(calls) > 1 else real(descriptor, data[:20])

    def refuse(*args: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(StorageUnavailableError, match="Check the disk"):
            await record(store, "two")
    await record(store, "three")
    assert messages(await store.read_run("p", "r")) == ["one", "three"]
    assert any("torn and is left out" in problem for problem in store.problems)


async def test_a_failed_flush_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may not be on the disk is not reported as recorded."""
    store = FileStorageBackend(tmp_path)
    await record(store, "one")

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "_flush", fail)
        with pytest.raises(StorageUnavailableError, match="flush"):
            await record(store, "two")
    await record(store, "three")
    assert messages(await store.read_run("p", "r"))[-1] == "three"


async def test_a_torn_end_that_cannot_be_cut_off_is_an_error(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written behind it."""
    await record(store, "one")
    await store.close()
    with journal_of(store).open("ab") as torn:
        torn.write(b"tagent-nb 1 json")
    size = journal_of(store).stat().st_size

    def refuse(*args: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(StorageUnavailableError, match="Cannot repair"):
            await record(store, "two")
    assert journal_of(store).stat().st_size == size
    await record(store, "three")
    assert messages(await store.read_run("p", "r")) == ["one", "three"]


@pytest.mark.parametrize("fault", ["pwrite", "unlink"])
async def test_trouble_with_leases_and_deletes_is_an_error(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """With the file's name, and with everything still there."""
    await record(store, "one")
    await store.save("p", {"x": 1})

    def refuse(*args: object, **kwargs: object) -> int:
        raise OSError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os if fault == "pwrite" else Path, fault, refuse)
        calls = [store.delete("p"), store.delete_run("p", "r")]
        if fault == "pwrite":
            calls.append(store.acquire("p", "r"))  # type: ignore[arg-type]
        for call in calls:
            with pytest.raises(StorageUnavailableError, match="permissions"):
                await call
    again = FileStorageBackend(store.base_path)
    assert messages(await again.read_run("p", "r")) == ["one"]
    assert await again.load("p") == {"x": 1}


async def test_documents_that_cannot_be_deleted_are_an_error(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline without runs has only documents."""
    await store.save("p", {"x": 1})

    def refuse(*args: object, **kwargs: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StorageUnavailableError, match="permissions"):
        await store.delete("p")


async def test_a_folder_that_vanishes_at_the_wrong_moment_is_an_error(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making the folder and opening the lease."""
    for module in (file, journal):
        monkeypatch.setattr(module, "make_folder", lambda path, sync: None)
    with pytest.raises(StorageUnavailableError, match=r"r\.lease"):
        await store.acquire("p", "r")
    await store.close()


async def test_a_file_that_cannot_be_read_is_an_error(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for an absent or a damaged one."""
    await store.save("p", {"x": 1})

    def refuse(*args: object) -> int:
        raise OSError(5, "Input/output error")

    await record(store, "x")
    (store.base_path / "p/r.lease").unlink()
    monkeypatch.setattr(os, "lseek", refuse)
    for call in (store.load("p"), store.runs("p"), store.read_run("p", "r")):
        with pytest.raises(StorageUnavailableError, match="Cannot read"):
            await call


async def test_a_journal_deleted_under_a_run_is_noticed(store: FileStorageBackend) -> None:
    """Nothing is written into a file that has no name any more."""
    lease = await store.acquire("p", "r")
    await store.append("p", "r", warned("one"), token=lease.token)
    journal_of(store).unlink()
    with pytest.raises(StorageUnavailableError, match="was deleted"):
        await store.append("p", "r", warned("two"), token=lease.token)


async def test_a_store_deleted_under_a_run_is_noticed(store: FileStorageBackend) -> None:
    """The lease went with it, so this process has no right to record any more."""
    lease = await store.acquire("p", "r")
    await store.append("p", "r", warned("one"), token=lease.token)
    subprocess.run(["rm", "-r", str(store.base_path)], check=True)
    with pytest.raises(LeaseLostError, match="deleted"):
        await store.append("p", "r", warned("two"), token=lease.token)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (13, "permissions"),
        (30, "permissions"),
        (24, "ulimit"),
        (errno.ENAMETOOLONG, "shorter"),
        (5, "Check the disk"),
        (122, "full"),
        (40, "itself"),
    ],
)
def test_each_kind_of_trouble_has_its_remedy(code: int, remedy: str) -> None:
    """By the system's error number."""
    error = disk.trouble(OSError(code, os.strerror(code)), "write", Path("x"))
    assert remedy in str(error)
    assert "x" in str(error)


async def test_a_name_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    """Before anything is made, with the remedy."""
    store = FileStorageBackend(tmp_path / ("x" * 300))
    for call in (record(store, "one"), store.list_pipelines(), store.runs("p"), store.save("p", {})):
        with pytest.raises(StorageUnavailableError, match="shorter"):
            await call
    assert list(tmp_path.iterdir()) == []


# -- locks, processes, threads -----------------------------------------------------------------


async def test_a_lock_held_elsewhere_delays_the_record_and_not_the_loop(store: FileStorageBackend) -> None:
    """While another process holds the lock, tasks go on; then the record is written."""
    await record(store, "one")
    lock = os.open(store.base_path / "p/r.lease", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    writing = asyncio.ensure_future(record(store, "two"))
    listing = asyncio.ensure_future(store.runs("p"))
    for _ in range(20):
        await asyncio.sleep(0.005)
        assert not writing.done()
        assert not listing.done()
    os.close(lock)
    await writing
    assert [info.run_id for info in await listing] == ["r"]
    assert messages(await store.read_run("p", "r")) == ["one", "two"]


async def test_a_lock_that_is_never_given_back_is_an_error(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a bounded time, with the name of the file."""
    monkeypatch.setattr(locks, "LOCK_WAIT", 0.02)
    await record(store, "one")
    lock = os.open(store.base_path / "p/r.lease", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(StorageUnavailableError, match=r"r\.lease"):
        await record(store, "two")
    os.close(lock)
    await record(store, "three")
    assert messages(await store.read_run("p", "r")) == ["one", "three"]


async def test_more_runs_than_may_be_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are closed and opened again as needed; nothing is lost, and few stay open."""
    monkeypatch.setattr(file, "MAX_OPEN", 3)
    store = FileStorageBackend(tmp_path)
    names = [f"r{n}" for n in range(8)]
    before = open_files()
    for text in ("one", "two"):
        for name in names:
            await record(store, text, run_id=name)
    assert open_files() <= before + 6
    for name in names:
        assert messages(await store.read_run("p", name)) == ["one", "two"]


async def test_a_run_in_use_is_not_closed_to_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest run may be waiting for its lock at that moment."""
    monkeypatch.setattr(file, "MAX_OPEN", 1)
    store = FileStorageBackend(tmp_path, durability="fast")
    await record(store, "one")
    lock = os.open(tmp_path / "p/r.lease", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    writing = asyncio.ensure_future(record(store, "two"))
    while not store._files["p", "r"]._mutex.locked():
        await asyncio.sleep(0)
    await record(store, "x", run_id="other")
    os.close(lock)
    await writing
    assert messages(await store.read_run("p", "r")) == ["one", "two"]


async def test_a_run_that_has_ended_keeps_no_file_open(store: FileStorageBackend) -> None:
    """A notebook that runs for weeks does not run out of files."""
    before = open_files()
    for n in range(5):
        lease = await store.acquire("p", f"r{n}")
        await store.append("p", f"r{n}", warned("x"), token=lease.token)
        await store.release(lease)
    assert open_files() <= before


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_forked_child_records_on_its_own(tmp_path: Path) -> None:
    """It takes over neither the parent's locks nor its threads."""
    store = FileStorageBackend(tmp_path)
    await record(store, "parent")
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(record(store, "child"))
            asyncio.run(record(store, "own", run_id="other"))
            os._exit(0)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 120
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
        assert time.monotonic() < deadline, "the child hangs"
        await asyncio.sleep(0.01)
    assert os.waitstatus_to_exitcode(done[1]) == 0
    await record(store, "parent again")
    assert messages(await store.read_run("p", "r")) == ["parent", "child", "parent again"]
    assert messages(await store.read_run("p", "other")) == ["own"]


async def test_a_reader_never_sees_half_a_record(store: FileStorageBackend) -> None:
    """Lists and readers beside a writer find whole records only, and report nothing."""
    reader = FileStorageBackend(store.base_path)
    value = StoredValue.of("x" * 300_000)
    await record(store, "first")

    async def write() -> None:
        for n in range(40):
            await store.append("p", "r", [StepFinished(run_id="r", step=f"s{n}", output=value)])
            await asyncio.sleep(0)

    writing = asyncio.ensure_future(write())
    while not writing.done():
        await reader.read_run("p", "r")
        await reader.runs("p")
    await writing
    assert reader.problems == []
    assert len(await reader.read_run("p", "r")) == 41


async def test_another_process_id_means_a_fork(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and threads of before are left to the parent."""
    await record(store, "one")
    monkeypatch.setattr(os, "getpid", lambda: 12345)
    await record(store, "two")
    assert messages(await store.read_run("p", "r")) == ["one", "two"]


def test_it_says_what_it_is(tmp_path: Path) -> None:
    """In lists of settings and in messages."""
    assert repr(FileStorageBackend(tmp_path)) == f"FileStorageBackend({str(tmp_path)!r}, durability='full')"


async def test_a_lease_that_cannot_be_read_hides_no_other_run(tmp_path: Path) -> None:
    """The run is listed as damaged; the others are listed and read as before."""
    storage = FileStorageBackend(tmp_path / "runs")
    await record(storage, "one", run_id="a")
    await record(storage, "two", run_id="b")
    (storage.base_path / "p" / "a.lease").unlink()
    (storage.base_path / "p" / "a.lease").mkdir()
    assert {info.run_id: info.status for info in await storage.runs("p")} == {
        "a": "damaged",
        "b": "interrupted",
    }
    assert len(await storage.read_run("p", "b")) == 1


async def test_a_file_in_the_place_of_a_pipeline_is_an_error(store: FileStorageBackend) -> None:
    """Which says what is wrong."""
    store.base_path.mkdir()
    (store.base_path / "p").touch()
    with pytest.raises(StorageUnavailableError, match="A file is where a folder belongs"):
        await store.runs("p")


async def test_a_path_that_is_too_long_with_the_pipeline_is_an_error(tmp_path: Path) -> None:
    """Although that of the store is not."""
    path = str(tmp_path)
    path += "/" + "/".join(["d" * 100] * 45)
    store = FileStorageBackend(path[: os.pathconf(tmp_path, "PC_PATH_MAX") - 20].rstrip("/"))
    with pytest.raises(StorageUnavailableError, match="Its name is too long"):
        await store.runs("p" * 60)


@pytest.mark.parametrize(
    "body", [b"{", b"[1]", b'{"summary": {}}', b'{"summary": {"cost": NaN}}', b"\xff", b""]
)
async def test_a_last_record_that_says_nothing_is_of_a_damaged_run(
    store: FileStorageBackend, body: bytes
) -> None:
    """Its checksum is right, and what is in it is no summary: the others are listed as they are."""
    await begin_runs(store, "other")
    await store._append("p", "r", Draft("p", "r", body + b"\n"), None)
    assert [(info.run_id, info.status) for info in await store.runs("p")] == [
        ("other", "interrupted"),
        ("r", "damaged"),
    ]
    with pytest.raises(CorruptRecordError):
        await store.read_run("p", "r")


# -- the order of runs -------------------------------------------------------------------------


def order_of(store: FileStorageBackend) -> Path:
    """The file of names."""
    return store.base_path / "p" / "runs.order"


async def test_what_a_living_process_writes_aside_stays(store: FileStorageBackend) -> None:
    """After the clock was set forth by a day it seems old."""
    await record(store, "x")
    folder = store.base_path / "p"
    mine, other, short = folder / f".{os.getpid()}-1.tmp", folder / ".4999999-1.tmp", folder / ".left.tmp"
    for path in (mine, other, short):
        path.touch()
        os.utime(path, (time.time() - 86_400,) * 2)
    await FileStorageBackend(store.base_path).save("p", {})
    assert [path.exists() for path in (mine, other, short)] == [True, False, False]


async def begin_runs(store: FileStorageBackend, *names: str) -> None:
    """Runs whose times go backwards."""
    for n, name in enumerate(names):
        await store.append("p", name, [Warned(run_id=name, at=1e9 - n, message="x")])


async def test_half_of_a_name_is_no_name(store: FileStorageBackend) -> None:
    """A crash may have torn the last line; what is left of it may be the name of another run."""
    await begin_runs(store, "r1", "r10")
    order_of(store).write_text("r1\nr10\nr1")
    assert await store.newest_run("p") == "r10"
    await begin_runs(store, "r11")
    assert order_of(store).read_text() == "r1\nr10\nr11\n"
    order_of(store).write_text("r1")
    await begin_runs(store, "r12")
    assert await store.newest_run("p") == "r12"


async def test_names_of_deleted_runs_do_not_pile_up(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is written anew; a run that is just being begun keeps its place."""
    monkeypatch.setattr(order, "SPARE", 3)
    await begin_runs(store, "a", "b", "c", "d", "e", "f")
    for name in "abcd":
        await store.delete_run("p", name)
    await store.acquire("p", "beginning")
    with order_of(store).open("a") as file:
        file.write("beginning\n")
    assert [info.run_id for info in await store.runs("p")] == ["e", "f"]
    assert order_of(store).read_text() == "e\nf\nbeginning\n"


async def test_runs_are_listed_where_their_order_cannot_be_kept(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, or a folder that may only be read: the order is worked out each time."""
    await begin_runs(store, "late", "early")
    order_of(store).unlink()

    def full(*what: Any, **more: Any) -> None:
        raise StorageUnavailableError("The disk is full.")

    monkeypatch.setattr(order, "replace_file", full)
    for _ in range(2):
        assert [info.run_id for info in await store.runs("p")] == ["early", "late"]
    monkeypatch.undo()
    assert await store.newest_run("p") == "late"
    monkeypatch.setattr(order, "write_all", lambda *what: os.write(-1, b""))
    with pytest.raises(StorageUnavailableError, match="Cannot write"):
        await begin_runs(store, "new")
    assert not await store.has_run("p", "new")


async def test_what_is_no_file_in_the_place_of_the_order_is_reported(store: FileStorageBackend) -> None:
    """It is not written through a link."""
    await begin_runs(store, "r")
    target = store.base_path / "target"
    order_of(store).rename(target)
    order_of(store).symlink_to(target)
    for call in (store.runs("p"), begin_runs(store, "s")):
        with pytest.raises(CorruptRecordError, match="symbolic link"):
            await call


async def test_a_run_whose_beginning_cannot_be_read_is_placed_by_its_id(store: FileStorageBackend) -> None:
    """Or, if that tells no time, before all others; without a byte, behind all: it may be the newest."""
    names = ["20260101T000000-aaaaaaaa", "x", "20250101T000000-bbbbbbbb"]
    await begin_runs(store, *names)
    for path in (store.base_path / "p").glob("*.journal"):
        path.write_bytes(b"damaged")
    order_of(store).unlink()
    assert [info.run_id for info in await store.runs("p")] == ["x", names[2], names[0]]
    (store.base_path / "p" / "pipe.journal").mkdir()
    order_of(store).write_text("x\n")
    assert [info.run_id for info in await store.runs("p")] == ["x", names[2], names[0], "pipe"]


async def test_an_order_that_another_process_writes_anew_is_opened_again(store: FileStorageBackend) -> None:
    """A name is never written into a file that has no name any more."""
    await begin_runs(store, "a")
    real, seen = order.locked, 0

    @contextlib.contextmanager
    def slow(descriptor: int, path: Path) -> Iterator[None]:
        nonlocal seen
        with real(descriptor, path):
            seen += 1
            if seen == 1:
                disk.replace_file(path, b"a\nother\n")
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "locked", slow)
        await begin_runs(store, "b")
    assert order_of(store).read_text() == "a\nother\nb\n"
    shutil.rmtree(store.base_path)
    with pytest.raises(StorageUnavailableError, match="not there"):
        store._order(store.base_path / "p").add("c")


async def test_a_listed_run_may_be_gone_a_moment_later(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process deletes it; the others are listed."""
    await begin_runs(store, "a", "b")
    await store.acquire("p", "a")
    assert {row.run_id for row in await store._rows("p", ["a", "gone", "b"])} == {"a", "b"}
    (store.base_path / "p" / "a.lease").unlink()
    (store.base_path / "p" / "a.lease").mkdir()
    assert [(info.run_id, info.status) for info in await store.runs("p")] == [
        ("a", "damaged"),
        ("b", "interrupted"),
    ]
    (store.base_path / "p" / "something").touch()
    monkeypatch.setattr(order, "os", SimpleNamespace(**{**vars(os), "scandir": lambda path: os.open("", 0)}))
    assert await store.newest_run("p") is None
    monkeypatch.setattr(order, "os", SimpleNamespace(**{**vars(os), "scandir": lambda path: os.close(-1)}))
    with pytest.raises(StorageUnavailableError, match="Cannot read"):
        await store.runs("p")


async def test_a_run_deleted_during_the_look_is_left_out(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process, between the order of the runs and the look at each: not even its size counts."""
    other = FileStorageBackend(store.base_path, durability="fast")
    for run_id in ("r0", "r1", "r2"):
        await record(store, "x", run_id=run_id)
    in_order = store._in_order

    def in_order_then_deleted(folder: Path) -> Iterator[tuple[str, str]]:
        names = list(in_order(folder))
        asyncio.run(other.delete_run("p", "r1"))
        return iter(names)

    monkeypatch.setattr(store, "_in_order", in_order_then_deleted)
    assert [run_id for run_id, size in await store._runs("p") if size] == ["r0", "r2"]


async def test_a_lease_that_cannot_be_read_says_of_no_run_that_it_was_lost(store: FileStorageBackend) -> None:
    """Without its journal nothing is left to list; the pipeline has no other run."""
    await record(store, "x")
    journal_of(store).unlink()
    lease = store.base_path / "p" / "r.lease"
    lease.unlink(missing_ok=True)
    lease.mkdir()
    assert await FileStorageBackend(store.base_path).runs("p") == []
    assert await FileStorageBackend(store.base_path).list_pipelines() == []


async def test_a_disk_that_fails_while_runs_are_listed_is_an_error(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of storage, with the file's name: it is no run without records."""
    await record(store, "x")

    def fail(*arguments: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(journal, "os", SimpleNamespace(**{**vars(os), "pread": fail}))
    with pytest.raises(StorageUnavailableError, match=r"Cannot read .*r\.journal: Input/output error"):
        await store.runs("p")


async def test_a_folder_that_cannot_be_listed_is_an_error(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no folder without pipelines."""
    await record(store, "x")

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(file, "os", SimpleNamespace(**{**vars(os), "scandir": fail}))
    with pytest.raises(StorageUnavailableError, match=r"Cannot read .*runs: Input/output error"):
        await store.list_pipelines()
