"""Pickles are opt-in, signed, and never loaded before their signature was checked."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tagent_nb.errors import CorruptRecordError, DefinitionError, EncodeError, StorageUnavailableError
from tagent_nb.events import StepCached, StepFinished
from tagent_nb.serde import StoredValue, signed_dump
from tagent_nb.storage import (
    FileStorageBackend,
    MemoryStorageBackend,
    RecordStoreBackend,
    SQLiteStorageBackend,
)
from tagent_nb.storage.format import pickled as pickles
from tagent_nb.storage.format.envelope import pack
from tagent_nb.storage.format.events import encode_events
from tagent_nb.storage.format.pickled import PickledOutput
from tests.storage_kinds import KINDS, make_store


class Odd:
    """A value that JSON cannot hold, and a pickle can."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Odd) and other.text == self.text

    __hash__ = None  # type: ignore[assignment]


class Trap:
    """What a stranger would plant: to load it is to run it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RecordStoreBackend]:
    """An empty store of each kind that is durable."""
    yield from make_store(request.param, tmp_path)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A key that is not made yet."""
    return tmp_path / "keys" / "tagent.key"


@pytest.fixture
def files(tmp_path: Path) -> FileStorageBackend:
    """A store in a folder, for what is the same for all kinds."""
    return FileStorageBackend(tmp_path / "runs", durability="fast")


def finished(value: object) -> StepFinished:
    """A step with this value."""
    return StepFinished(run_id="r", step="a", output=StoredValue.of(value))


async def outputs(store: RecordStoreBackend) -> list[Any]:
    """The outputs of the recorded steps."""
    events = await store.read_run("p", "r")
    return [event.output for event in events if isinstance(event, StepFinished | StepCached)]


async def test_values_come_back_with_the_key(store: RecordStoreBackend, key: Path) -> None:
    """Outputs, saved data and memories; JSON is still used for what it can hold."""
    store.allow_pickle(key)
    odd, usual = finished(Odd("x")), finished({"n": 1})
    assert store.keeps(odd.output)
    await store.append("p", "r", [odd, usual])
    await store.append("p", "r", [StepCached(run_id="r", step="b", output=StoredValue.of(Odd("y")), key="k")])
    await store.save("p", {"odd": Odd("z")})
    await store.save_memories("p", {"usual": 1})
    await store.close()
    first, second, third = await outputs(store)
    assert (first.value, second.value, third.value) == (Odd("x"), {"n": 1}, Odd("y"))
    assert (first.storable, first.problem, first.digest) == (True, None, odd.output.digest)
    assert first.value is first.value
    assert isinstance(second, StoredValue)
    assert await store.load("p") == {"odd": Odd("z")}
    assert await store.memories("p") == {"usual": 1}
    assert [info.steps_done for info in await store.runs("p")] == [2]


async def test_a_pickled_value_can_be_recorded_again(files: FileStorageBackend, key: Path) -> None:
    """As it is, without being loaded."""
    files.allow_pickle(key)
    await files.append("p", "r", [finished(Odd("x"))])
    (output,) = await outputs(files)
    await files.append("p", "r", [StepCached(run_id="r", step="b", output=output, key="k")])
    again = (await outputs(files))[1]
    assert (again.value, again.sealed) == (Odd("x"), output.sealed)


async def test_without_asking_nothing_is_pickled(store: RecordStoreBackend) -> None:
    """The value is recorded as a problem, and saved data is refused."""
    odd = finished(Odd("x"))
    assert not store.keeps(odd.output)
    assert store.keeps(StoredValue.of(1))
    assert MemoryStorageBackend().keeps(odd.output)
    await store.append("p", "r", [odd])
    (output,) = await outputs(store)
    assert (output.value, output.storable) == (None, False)
    with pytest.raises(EncodeError):
        await store.save("p", {"odd": Odd("x")})


async def test_what_cannot_be_pickled_is_a_problem_as_before(files: FileStorageBackend, key: Path) -> None:
    """A generator, for one."""
    files.allow_pickle(key)
    lazy = finished(n for n in range(3))
    assert not files.keeps(lazy.output)
    await files.append("p", "r", [lazy])
    (output,) = await outputs(files)
    assert (output.value, output.storable) == (None, False)
    with pytest.raises(EncodeError):
        await files.save("p", {"lazy": (n for n in range(3))})


async def test_a_store_with_a_key_is_not_read_without_it(
    files: FileStorageBackend, key: Path, tmp_path: Path
) -> None:
    """Nor with another key; the error names the remedy."""
    files.allow_pickle(key)
    await files.append("p", "r", [finished(1)])
    with pytest.raises(CorruptRecordError, match="with its key"):
        await FileStorageBackend(files.base_path).read_run("p", "r")
    with pytest.raises(CorruptRecordError, match="checksum"):
        await FileStorageBackend(files.base_path).allow_pickle(tmp_path / "other.key").read_run("p", "r")


async def test_unsigned_records_are_refused_where_pickles_are_allowed(
    store: RecordStoreBackend, key: Path
) -> None:
    """Otherwise a stranger would only have to leave the signature out."""
    await store.append("p", "r", [finished(1)])
    await store.save("p", {"x": 1})
    store.allow_pickle(key)
    for call in (store.read_run("p", "r"), store.load("p"), store.append("p", "r", [finished(2)])):
        with pytest.raises(CorruptRecordError, match="not signed"):
            await call


async def test_a_planted_pickle_is_never_loaded(files: FileStorageBackend, key: Path, tmp_path: Path) -> None:
    """Bare, in an envelope with a right checksum, or signed with another key; with a key and without."""
    marker = tmp_path / "executed"
    trap = Trap(marker)
    folder = files.base_path / "p"
    folder.mkdir(parents=True)
    foreign = b"f" * 32
    sealed = signed_dump(trap, foreign)
    body = encode_events([finished(trap)], key=foreign)
    plants = [
        (pickle.dumps(trap), pickle.dumps(trap)),
        (pack("snapshot", "p", pickle.dumps(trap)), pack("events", "r", pickle.dumps(trap))),
        (pack("snapshot", "p", sealed), pack("events", "r", body)),
        (pack("snapshot", "p", sealed, key=foreign), pack("events", "r", body, key=foreign)),
    ]
    for snapshot, journal in plants:
        (folder / "snapshot.record").write_bytes(snapshot)
        (folder / "r.journal").write_bytes(journal)
        for store in (
            FileStorageBackend(files.base_path),
            FileStorageBackend(files.base_path).allow_pickle(key),
        ):
            with pytest.raises(CorruptRecordError):
                await store.load("p")
            await store.runs("p")
            try:
                values = await outputs(store)
            except CorruptRecordError:
                continue
            assert [(output.value, output.storable) for output in values] == [(None, False)]
            assert "allow_pickle" in str(values[0].problem)
    assert not marker.exists()
    with pytest.raises(CorruptRecordError):
        _ = PickledOutput(sealed, "d", b"other" * 8).value
    assert not marker.exists()
    _ = PickledOutput(sealed, "d", foreign).value
    assert marker.exists()


async def test_backups_of_a_store_with_a_key_are_signed(
    files: FileStorageBackend, key: Path, tmp_path: Path
) -> None:
    """They are verified and restored with the key only."""
    files.allow_pickle(key)
    await files.append("p", "r", [finished(Odd("x"))])
    made = await files.backup(tmp_path / "backups")
    other = FileStorageBackend(tmp_path / "copy")
    with pytest.raises(CorruptRecordError, match="with its key"):
        await other.restore(made.path)
    await other.allow_pickle(key).restore(made.path)
    assert [output.value for output in await outputs(other)] == [Odd("x")]


# -- the key -----------------------------------------------------------------------------------


def test_the_key_is_made_once_and_private(files: FileStorageBackend, key: Path) -> None:
    """0600 in a folder 0700; the second time it is read."""
    files.allow_pickle(key)
    made = key.read_bytes()
    files.allow_pickle(key)
    assert key.read_bytes() == made
    assert len(made) == 32
    assert (key.stat().st_mode & 0o777, key.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_key_within_the_store_is_refused(tmp_path: Path) -> None:
    """It would be given away with it, also where a link leads there."""
    (tmp_path / "link").symlink_to(tmp_path)
    files, database = FileStorageBackend(tmp_path / "runs"), SQLiteStorageBackend(tmp_path / "runs.db")
    for store, path in (
        (files, tmp_path / "runs" / "key"),
        (database, tmp_path / "runs.db"),
        (database, tmp_path / "runs.db.backups" / "key"),
        (files, tmp_path / "link" / "runs" / "key"),
        (FileStorageBackend(tmp_path / "link" / "runs"), tmp_path / "runs" / "key"),
        (database, tmp_path / "link" / "runs.db.backups" / "key"),
        (SQLiteStorageBackend(tmp_path / "link" / "runs.db"), tmp_path / "runs.db.backups" / "key"),
    ):
        with pytest.raises(DefinitionError, match="within the store"):
            store.allow_pickle(path)
        assert not path.exists()


def test_a_key_that_is_no_secret_is_refused(files: FileStorageBackend, tmp_path: Path) -> None:
    """Readable by others, too short, or a link."""
    path = tmp_path / "key"
    path.write_bytes(b"k" * 32)
    path.chmod(0o644)
    with pytest.raises(DefinitionError, match="chmod 600"):
        files.allow_pickle(path)
    path.chmod(0o600)
    files.allow_pickle(path)
    path.write_bytes(b"short")
    with pytest.raises(DefinitionError, match="holds no key"):
        files.allow_pickle(path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(CorruptRecordError, match="symbolic link"):
        files.allow_pickle(tmp_path / "link")


def test_a_key_that_another_process_makes_first_is_taken(
    files: FileStorageBackend, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both end with the same key."""
    real = pickles.open_file

    def late(path: Path, flags: int, doing: str) -> int:
        path.write_bytes(b"f" * 32)
        path.chmod(0o600)
        return real(path, flags, doing)

    monkeypatch.setattr(pickles, "open_file", late)
    files.allow_pickle(key)
    assert files._key == b"f" * 32


@pytest.mark.parametrize("fault", ["write", "open"])
def test_a_key_that_cannot_be_made_is_an_error(
    files: FileStorageBackend, key: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """With the file's name."""
    real = os.open

    def refuse(*args: Any, **kwargs: Any) -> int:
        if fault == "open" and not args[1] & os.O_CREAT:
            return real(*args, **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fault, refuse)
    with pytest.raises(StorageUnavailableError, match=r"tagent\.key"):
        files.allow_pickle(key)
