"""What is saved in a folder has a verified copy of the version before, which takes the place of damage."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tagent_nb import (
    CorruptRecordError,
    FileStorageBackend,
    FormatVersionError,
    NotStoredError,
    Pipeline,
    PipelineExecutor,
    StorageUnavailableError,
)
from tagent_nb.storage import filesystem as disk
from tagent_nb.storage.file import copies

Files = FileStorageBackend


@pytest.fixture
def store(tmp_path: Path) -> Files:
    return FileStorageBackend(tmp_path / "runs", durability="fast")


def snapshot(store: Files) -> Path:
    """The file of what is saved for pipeline ``p``."""
    return store.base_path / "p" / "snapshot.record"


def asides(store: Files) -> list[Path]:
    """Damaged files that were put aside."""
    return sorted((store.base_path / "p").glob("*.damaged-*"))


def again(store: Files) -> Files:
    """The same store in another process."""
    return FileStorageBackend(store.base_path, durability="fast")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)


def garble(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\xff" * 40)


def of_another(path: Path) -> None:
    path.write_bytes((path.parent.parent / "q" / path.name).read_bytes())


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").touch()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE = [empty, truncate, flip, garble, of_another, folder, pipe]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", ["snapshot", "memories"])
async def test_damage_is_got_over_with_the_version_before(
    store: Files, damage: Callable[[Path], None], kind: str
) -> None:
    """The warning says which file, what was lost, and where the damaged one is; that happens once."""

    async def save(pipeline: str, value: Any) -> None:
        await (store.save if kind == "snapshot" else store.save_memories)(pipeline, value)

    async def load(storage: Files) -> Any:
        return await (storage.load if kind == "snapshot" else storage.memories)("p")

    await save("q", {"n": 0})
    for n in range(3):
        await save("p", {"n": n})
    path = snapshot(store).with_name(f"{kind}.record")
    damage(path)
    other = again(store)
    assert await load(other) == {"n": 1}
    (problem,) = other.problems
    (aside,) = asides(store)
    assert problem.startswith(f"{path} was damaged (")
    assert (
        f"What was saved last is lost, and the version before it is there again; the damaged one is {aside}."
        in problem
    )
    assert aside.is_dir() == (damage is folder)
    # It is as any other document now: whole, and with a copy.
    last = again(store)
    assert await load(last) == {"n": 1}
    assert last.problems == []
    await save("p", {"n": 3})
    damage(path)
    assert await load(last) == {"n": 1}


async def test_what_was_saved_once_has_no_version_before(store: Files) -> None:
    """Its damage is the error that it was, and nothing is moved."""
    await store.save("p", {"n": 0})
    flip(snapshot(store))
    with pytest.raises(CorruptRecordError, match="checksum"):
        await store.load("p")
    assert asides(store) == []


@pytest.mark.parametrize("damage", DAMAGE)
async def test_damage_of_both_is_an_error(store: Files, damage: Callable[[Path], None]) -> None:
    """As it was without a copy; saving makes it good."""
    await store.save("q", {"n": 0})
    for n in range(2):
        await store.save("p", {"n": n})
    damage(snapshot(store))
    flip(snapshot(store).with_suffix(".copy"))
    for _ in range(2):
        with pytest.raises(CorruptRecordError, match=r"snapshot\.record"):
            await again(store).load("p")
    assert asides(store) == []
    await store.save("p", {"n": 2})
    assert await again(store).load("p") == {"n": 2}


async def test_damage_never_becomes_the_copy(store: Files) -> None:
    """What is damaged when the next version is saved does not take the place of an intact copy."""
    for n in range(2):
        await store.save("p", {"n": n})
    flip(snapshot(store))
    await store.save("p", {"n": 2})
    flip(snapshot(store))
    assert await store.load("p") == {"n": 0}


async def test_a_copy_never_answers_for_what_was_deleted(store: Files) -> None:
    """Neither at once, nor if the document alone is taken away, nor after something new was saved."""
    for n in range(2):
        await store.save("p", {"n": n})
    await store.save_memories("p", {"m": 1})
    snapshot(store).unlink()
    with pytest.raises(NotStoredError):
        await store.load("p")
    await store.save("p", {"new": 1})
    flip(snapshot(store))
    with pytest.raises(CorruptRecordError):
        await store.load("p")
    await store.save("p", {"new": 2})
    await store.delete("p")
    assert not snapshot(store).parent.exists()
    with pytest.raises(NotStoredError):
        await store.load("p")


async def test_delete_takes_copies_and_what_was_put_aside_along(store: Files) -> None:
    """All that held the pipeline's data is gone; what was no file of ours stays."""
    for n in range(2):
        await store.save("p", {"n": n})
    flip(snapshot(store))
    await store.load("p")
    assert len(asides(store)) == 1
    await store.delete("p")
    assert not (store.base_path / "p").exists()
    for n in range(2):
        await store.save("p", {"n": n})
    folder(snapshot(store))
    await store.load("p")
    (aside,) = asides(store)
    await store.delete("p")
    assert list((store.base_path / "p").iterdir()) == [aside]
    assert await store.list_pipelines() == []


async def test_copies_show_nowhere(store: Files, tmp_path: Path) -> None:
    """Not in the lists, not in a backup, and not in what is restored."""
    for n in range(3):
        await store.save("p", {"n": n})
    assert await store.list_pipelines() == ["p"]
    assert await store.runs("p") == []
    made = await store.backup(tmp_path / "backups")
    assert (made.pipelines, made.runs) == (1, 0)
    info = await store.restore(made.path, folder=tmp_path / "backups", replace=True)
    assert info.restored == [("p", "document", "snapshot")]
    assert await store.load("p") == {"n": 2}
    assert not snapshot(store).with_suffix(".copy").exists()


async def test_a_backup_holds_what_was_recovered(store: Files, tmp_path: Path) -> None:
    """Damage that a copy makes good leaves nothing out of a backup."""
    for n in range(2):
        await store.save("p", {"n": n})
    flip(snapshot(store))
    made = await store.backup(tmp_path / "backups")
    assert made.pipelines == 1
    assert "was damaged" in store.problems[0]


async def test_signed_copies_are_verified_with_the_key(store: Files, tmp_path: Path) -> None:
    """A copy that is not signed with the store's key does not answer; without a key nothing is moved."""
    key = tmp_path / "key"
    store.allow_pickle(key)
    for n in range(2):
        await store.save("p", {"n": n})
    copy, signed = snapshot(store).with_suffix(".copy"), snapshot(store).read_bytes()
    flip(snapshot(store))
    assert await again(store).allow_pickle(key).load("p") == {"n": 0}
    # Whole, and signed: who has no key must not put it aside for an older one that is not.
    await store.save("p", {"n": 1})
    plain = FileStorageBackend(tmp_path / "plain")
    for n in range(2):
        await plain.save("p", {"plain": n})
    shutil.copy(plain.base_path / "p/snapshot.copy", copy)
    with pytest.raises(CorruptRecordError, match="signed"):
        await again(store).load("p")
    assert snapshot(store).read_bytes() == signed
    flip(snapshot(store))
    with pytest.raises(CorruptRecordError, match="checksum"):
        await again(store).allow_pickle(key).load("p")


async def test_a_newer_format_is_neither_damage_nor_copied(store: Files) -> None:
    """It is refused with the file unchanged, whatever copy is there."""
    for n in range(2):
        await store.save("p", {"n": n})
    newer = snapshot(store).read_bytes().replace(b"tagent-nb 1", b"tagent-nb 999")
    snapshot(store).write_bytes(newer)
    with pytest.raises(FormatVersionError):
        await store.load("p")
    assert snapshot(store).read_bytes() == newer
    copy = snapshot(store).with_suffix(".copy").read_bytes()
    await store.save("p", {"n": 2})
    assert snapshot(store).with_suffix(".copy").read_bytes() == copy


SAVING = """
import asyncio, os, signal, sys
from pathlib import Path
from tagent_nb import FileStorageBackend
from tagent_nb.storage.file import copies

where, after = sys.argv[1], int(sys.argv[2])
store = FileStorageBackend(where, durability="fast")
real, writes = copies.replace_file, []

def replace(path, data, **options):
    if len(writes) == after:
        os.kill(os.getpid(), signal.SIGKILL)
    writes.append(path.name)
    real(path, data, **options)

async def main():
    await store.save("p", {"n": 0})
    await store.save("p", {"n": 1})
    copies.replace_file = replace
    await store.save("p", {"n": 2})

asyncio.run(main())
"""


@pytest.mark.parametrize(("after", "last"), [(0, 1), (1, 1)])
async def test_a_kill_while_saving_leaves_a_version_and_its_copy(store: Files, after: int, last: int) -> None:
    """Before the copy is made, and between the copy and the document: damage is got over then, too."""
    child = subprocess.run([sys.executable, "-c", SAVING, str(store.base_path), str(after)], check=False)
    assert child.returncode == -signal.SIGKILL
    assert await store.load("p") == {"n": last}
    flip(snapshot(store))
    assert await store.load("p") == {"n": last - 1 + after}


RECOVERING = """
import asyncio, os, signal, sys
from pathlib import Path
from tagent_nb import FileStorageBackend

store, step = FileStorageBackend(sys.argv[1], durability="fast"), int(sys.argv[2])
done = [0]

def dying(real):
    def call(*args, **options):
        if done[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        done[0] += 1
        return real(*args, **options)
    return call

Path.rename, Path.replace = dying(Path.rename), dying(Path.replace)
asyncio.run(store.load("p"))
"""


@pytest.mark.parametrize("damage", [flip, folder])
@pytest.mark.parametrize("step", [0, 1, 2])
async def test_a_kill_while_recovering_loses_nothing(
    store: Files, damage: Callable[[Path], None], step: int
) -> None:
    """The next that reads goes on; the pipeline is listed meanwhile."""
    for n in range(2):
        await store.save("p", {"n": n})
    damage(snapshot(store))
    child = subprocess.run([sys.executable, "-c", RECOVERING, str(store.base_path), str(step)], check=False)
    assert child.returncode == -signal.SIGKILL
    assert await store.list_pipelines() == ["p"]
    assert await again(store).load("p") == {"n": 0}
    assert len(asides(store)) == 1
    assert not snapshot(store).with_suffix(".recovering").exists()


async def test_a_recovery_that_was_stopped_and_is_damaged_takes_the_copy(store: Files) -> None:
    """A half that was on its way into the place of a damaged document is no reason to lose both."""
    for n in range(2):
        await store.save("p", {"n": n})
    snapshot(store).unlink()
    half = snapshot(store).with_suffix(".recovering")
    half.write_bytes(b"half")
    assert await store.load("p") == {"n": 0}
    assert "was damaged. What was saved last is lost" in store.problems[0]
    await store.delete("p")
    snapshot(store).parent.mkdir()
    half.write_bytes(b"half")
    with pytest.raises(NotStoredError):
        await store.load("p")


async def test_two_who_recover_at_once_lose_nothing(store: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has seen damage, and finds it made good when its turn comes, moves nothing."""
    for n in range(2):
        await store.save("p", {"n": n})
    good = snapshot(store).read_bytes()
    flip(snapshot(store))
    real = copies.folder_locked

    def late(folder: Path) -> Any:
        snapshot(store).write_bytes(good)
        return real(folder)

    monkeypatch.setattr(copies, "folder_locked", late)
    assert await store.load("p") == {"n": 1}
    assert (store.problems, asides(store)) == ([], [])


async def test_where_nothing_can_be_written_the_copy_still_answers(
    store: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that is mounted read-only or full; the warning says that the damage is still there."""
    for n in range(2):
        await store.save("p", {"n": n})
    flip(snapshot(store))

    def full(path: Path, data: bytes, **options: Any) -> None:
        raise StorageUnavailableError("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(copies, "replace_file", full)
        assert await store.load("p") == {"n": 0}
    assert "for this process only: the copy cannot take its place. The disk is full." in store.problems[0]
    assert asides(store) == []
    assert await again(store).load("p") == {"n": 0}
    assert len(asides(store)) == 1


async def test_what_cannot_be_moved_or_removed_is_an_error_that_names_it(
    store: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder in the document's place, a stale copy, and a pipeline's folder that cannot be opened."""
    for n in range(2):
        await store.save("p", {"n": n})
    snapshot(store).unlink()

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(StorageUnavailableError, match=r"remove .*snapshot\.copy"):
            await store.save("p", {"n": 2})
    snapshot(store).mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(StorageUnavailableError, match=r"move .*snapshot\.record"):
            await store.save("p", {"n": 2})
    await store.save("p", {"n": 3})
    assert await store.load("p") == {"n": 3}
    flip(snapshot(store))
    real = os.open

    def no_folders(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_DIRECTORY:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", no_folders)
    with pytest.raises(StorageUnavailableError, match="open .*p:"):
        await store.load("p")


async def test_a_run_says_that_its_memories_were_recovered(tmp_path: Path) -> None:
    """What a notebook shows: a warning of the run, in place of a run that fails."""
    pipeline = Pipeline("flow")

    @pipeline.task
    def only() -> int:
        return 1

    storage = FileStorageBackend(tmp_path / "runs", durability="fast")
    for n in range(2):
        await storage.save_memories(pipeline.id, {"n": n})
    (tmp_path / "runs" / disk.to_file_name(pipeline.id) / "memories.record").write_bytes(b"")
    result = await PipelineExecutor(pipeline, storage=tmp_path / "runs").execute()
    assert result.success
    assert any("memories.record was damaged" in warning for warning in result.warnings)
