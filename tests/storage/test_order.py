"""Many runs in a folder: the newest are known without listing it, and never wrongly."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagent_nb import Pipeline, PipelineExecutor
from tagent_nb.errors import CorruptRecordError, StorageError, StorageUnavailableError
from tagent_nb.events import Warned
from tagent_nb.storage import FileStorageBackend
from tagent_nb.storage.file import checked, order
from tagent_nb.storage.file.order import RunOrder


@pytest.fixture
def store(tmp_path: Path) -> FileStorageBackend:
    """An empty store."""
    return FileStorageBackend(tmp_path / "runs", durability="fast")


def folder_of(store: FileStorageBackend) -> Path:
    """Where the runs are."""
    return store.base_path / "p"


async def begin(store: FileStorageBackend, *names: str) -> None:
    """Runs of one record each."""
    for name in names:
        await store.append("p", name, [Warned(run_id=name, at=1e9, message="x")])


async def listed(store: FileStorageBackend) -> list[str]:
    """All runs, by a look at all of the folder."""
    return [info.run_id for info in await store.runs("p")]


async def settled(store: FileStorageBackend, pipeline_id: str = "p") -> None:
    """Look until a look is noted: with a slow clock the first may fall into the tick of a change."""
    for _ in range(1000):
        with no_listing() as listings:
            await store.newest_run(pipeline_id)
        if not listings:
            return


@contextlib.contextmanager
def no_listing() -> Iterator[list[str]]:
    """Within it, each listing of a folder is noted."""
    listings: list[str] = []

    def scandir(path: Path) -> Any:
        listings.append(str(path))
        return os.scandir(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "os", SimpleNamespace(**{**vars(os), "scandir": scandir}))
        yield listings


# -- without a listing -------------------------------------------------------------------------


async def test_the_newest_runs_are_known_without_a_listing(store: FileStorageBackend) -> None:
    """By any object; also after runs, documents and deletions, of old runs and of the newest."""
    names = [f"r{n}" for n in range(30)]
    await begin(store, *names)
    assert await listed(store) == names
    await settled(store)
    with no_listing() as listings:
        for storage in (store, FileStorageBackend(store.base_path)):
            assert await storage.newest_run("p") == "r29"
            assert await storage.newest_run("p", besides="r29") == "r28"
        lease = await store.acquire("p", "s")
        assert await store.newest_run("p") == "r29"
        await store.append("p", "s", [Warned(run_id="s", message="x")], token=lease.token)
        await store.release(lease)
        await store.save("p", {"x": 1})
        assert [info.run_id for info in await store.runs("p", limit=3)] == ["r28", "r29", "s"]
        for name in ("r3", "r29", "s", "r28"):
            await store.delete_run("p", name)
        assert await store.newest_run("p", besides="r27") == "r26"
        await begin(store, "r29")
        assert [info.run_id for info in await store.runs("p", limit=3)] == ["r26", "r27", "r29"]
    assert listings == []
    assert await listed(store) == ["r0", "r1", "r2", *names[4:28], "r29"]


async def test_runs_and_resumes_list_nothing(store: FileStorageBackend) -> None:
    """Whatever an executor asks of the store, none of it takes longer because of earlier runs."""
    pipeline = Pipeline("p")

    @pipeline.task
    async def newest() -> int:
        return 1

    for _ in range(3):
        await PipelineExecutor(pipeline, storage=store).execute()
    await settled(store, pipeline.id)
    with no_listing() as listings:
        executor = PipelineExecutor(pipeline, storage=store)
        for resume in (False, True, False):
            assert (await executor.execute(resume=resume)).success
    assert listings == []
    assert len(await store.runs(pipeline.id)) == 5


async def test_the_order_of_runs_that_come_and_go_does_not_grow(store: FileStorageBackend) -> None:
    """The line of a deleted run goes where no other is behind it, and with it the blanks before it."""
    await begin(store, "keep")
    size = (folder_of(store) / "runs.order").stat().st_size
    for n in range(20):
        await begin(store, f"a{n}", f"b{n}")
        await store.delete_run("p", f"a{n}")
        await store.delete_run("p", f"b{n}")
    assert (folder_of(store) / "runs.order").stat().st_size == size
    await store.delete_run("p", "keep")
    await begin(store, "other")
    assert await listed(store) == ["other"]


async def test_a_run_begun_anew_stays_in_the_order(store: FileStorageBackend) -> None:
    """Another process may begin a run of the same name between its deletion and the change to the order."""
    await begin(store, "a", "b")
    assert await listed(store) == ["a", "b"]
    for name in ("a", "b"):
        RunOrder(folder_of(store), lambda name: 0.0, lambda name: False, sync=False).remove(name)
    assert await store.newest_run("p") == "b"


async def test_a_name_at_the_edge_of_what_is_read_is_no_part_of_another(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the end of the order is read from the middle of a line, that line's rest is not a name."""
    monkeypatch.setattr(order, "PART", 5)
    await begin(store, "b", "xb", "c")
    assert await listed(store) == ["b", "xb", "c"]
    await store.delete_run("p", "b")
    assert (folder_of(store) / "runs.order").read_text() == "b\nxb\nc\n"
    assert await store.newest_run("p", besides="c") == "xb"
    assert await listed(store) == ["xb", "c"]


# -- in doubt, all of the folder is looked at -----------------------------------------------------


def truncate(folder: Path) -> None:
    with (folder / "runs.order").open("r+b") as file:
        file.truncate(4)


def damage_last(folder: Path) -> None:
    """As a disk does it: no time tells."""
    path = folder / "runs.order"
    data = path.read_bytes()
    path.write_bytes(data[:-2] + b"#\n")
    note = checked.Checked(folder, path)
    note.looked(note._line())


def leave_out(folder: Path) -> None:
    (folder / "runs.order").write_text("r0\nr1\n")


@pytest.mark.parametrize(
    "harm",
    [
        truncate,
        damage_last,
        leave_out,
        lambda folder: (folder / "runs.order").unlink(),
        lambda folder: (folder / "runs.order").write_bytes(b""),
        lambda folder: (folder / "runs.checked").unlink(),
        lambda folder: (folder / "runs.checked").write_bytes(b""),
        lambda folder: (folder / "runs.checked").write_bytes(os.urandom(300)),
        lambda folder: (folder / "runs.order").write_bytes(b"\xff\xfe\0../../x\n"),
    ],
)
async def test_an_order_that_is_wrong_is_made_anew_from_the_runs(
    store: FileStorageBackend, harm: Callable[[Path], object]
) -> None:
    """A missing, shortened or damaged one, and one that was put back: no run is missed, nothing is asked."""
    for n in range(4):
        await store.append("p", f"r{n}", [Warned(run_id=f"r{n}", at=1e9 + n, message="x")])
    assert await listed(store) == ["r0", "r1", "r2", "r3"]
    harm(folder_of(store))
    assert await store.newest_run("p") == "r3"
    assert await listed(store) == ["r0", "r1", "r2", "r3"]
    await begin(store, "s")
    assert await listed(store) == ["r0", "r1", "r2", "r3", "s"]
    await settled(store)
    with no_listing() as listings:
        assert await store.newest_run("p") == "s"
    assert listings == []


async def test_a_run_that_another_program_puts_into_the_folder_is_noticed(
    store: FileStorageBackend, tmp_path: Path
) -> None:
    """A copy of a file, or an older version of this program: at the next question."""
    other = FileStorageBackend(tmp_path / "other")
    await other.append("p", "later", [Warned(run_id="later", at=2e9, message="x")])
    await begin(store, "a", "b")
    assert await listed(store) == ["a", "b"]
    shutil.copy(folder_of(other) / "later.journal", folder_of(store))
    assert await store.newest_run("p") == "later"
    (folder_of(store) / "later.journal").replace(folder_of(store) / "other.journal")
    assert await store.newest_run("p") == "other"


async def test_a_run_that_loses_its_records_is_the_newest_still(store: FileStorageBackend) -> None:
    """An older run is not answered for one whose journal was deleted: it is listed as lost."""
    await begin(store, "a", "b")
    assert await listed(store) == ["a", "b"]
    (folder_of(store) / "b.journal").unlink()
    for _ in range(2):
        assert await store.newest_run("p") == "b"
    with pytest.raises(CorruptRecordError, match="state lost"):
        await store.read_run("p", "b")


async def test_what_is_no_name_of_ours_does_not_count(store: FileStorageBackend) -> None:
    """A stranger's journal beside ours stays where it is."""
    await begin(store, "a", "b")
    (folder_of(store) / "What else.journal").write_bytes(b"")
    for _ in range(2):
        assert await store.newest_run("p") == "b"
        assert await store.newest_run("p", besides="b") == "a"
    await begin(store, "c")
    assert await listed(store) == ["a", "b", "c"]


async def test_a_change_that_fails_half_way_is_looked_into(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between the change and the note of it."""
    await begin(store, "a", "b")
    assert await listed(store) == ["a", "b"]
    with monkeypatch.context() as patch:
        patch.setattr(checked.Checked, "_write", lambda *what: None)
        await begin(store, "c")
    with no_listing() as listings:
        assert await store.newest_run("p") == "c"
    assert len(listings) == 1
    await settled(store)
    await begin(store, "d")
    with no_listing() as listings:
        assert await store.newest_run("p") == "d"
    assert listings == []


async def test_a_system_with_coarse_times_is_never_trusted(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where times are whole seconds, two changes may have the same one."""
    monkeypatch.setattr(checked, "_COARSE", 1)
    await begin(store, "a", "b")
    assert await listed(store) == ["a", "b"]
    with no_listing() as listings:
        assert await store.newest_run("p") == "b"
    assert len(listings) == 1


async def test_a_change_in_the_same_tick_as_the_look_is_not_missed(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look counts only if it began at a later time than that of the folder's last change."""
    await begin(store, "a", "b")
    real = os.fstat

    def same_tick(descriptor: int) -> Any:
        state = real(descriptor)
        return SimpleNamespace(**{name: getattr(state, name) for name in dir(state) if name[:3] == "st_"} | {
            "st_ctime_ns": folder_of(store).stat().st_ctime_ns
        })  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setattr(checked, "os", SimpleNamespace(**{**vars(os), "fstat": same_tick}))
        assert await listed(store) == ["a", "b"]
    with no_listing() as listings:
        assert await store.newest_run("p") == "b"
    assert len(listings) == 1


@pytest.mark.parametrize("put", [Path.mkdir, lambda path: path.symlink_to("runs.order")])
async def test_what_is_no_file_in_its_place_is_done_without(
    store: FileStorageBackend, put: Callable[[Path], object]
) -> None:
    """It is neither followed nor in the way."""
    await begin(store, "a", "b")
    path = folder_of(store) / "runs.checked"
    path.unlink()
    put(path)
    await begin(store, "c")
    for _ in range(2):
        assert await store.newest_run("p") == "c"
    assert await listed(store) == ["a", "b", "c"]
    assert path.is_dir() or path.is_symlink()


async def test_trouble_with_the_order_is_reported_or_got_over(
    store: FileStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it cannot be read is an error; that the name of a deleted run stays in it is none."""
    await begin(store, "a", "b", "c")
    assert await listed(store) == ["a", "b", "c"]

    def refuse(*what: Any) -> Any:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(order, "os", SimpleNamespace(**{**vars(os), "ftruncate": refuse, "pwrite": refuse}))
        await store.delete_run("p", "a")
        await store.delete_run("p", "c")
        with pytest.raises(StorageUnavailableError, match="Cannot write"):
            await begin(store, "d")
    assert await listed(store) == ["b"]
    assert await store.newest_run("p") == "b"
    with monkeypatch.context() as patch:
        patch.setattr(order, "os", SimpleNamespace(**{**vars(os), "pread": refuse}))
        with pytest.raises(StorageUnavailableError, match="Cannot read"):
            await store.newest_run("p")
    with monkeypatch.context() as patch:
        patch.setattr(checked, "os", SimpleNamespace(**{**vars(os), "pwrite": refuse}))
        await begin(store, "d")
    assert await store.newest_run("p") == "d"


# -- whatever happens --------------------------------------------------------------------------

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["begin", "claim", "delete", "stray", "lose", "truncate", "line", "forget", "save", "list"]
        ),
        st.integers(0, 9),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(OPERATIONS, st.integers(1, 4))
def test_the_newest_runs_are_those_of_a_look_at_all(operations: list[tuple[str, int]], count: int) -> None:
    """After any changes by this program and by others, its end says what all of the folder does."""

    async def check(base: Path) -> None:
        store, folder = FileStorageBackend(base / "runs", durability="fast"), base / "runs" / "p"
        for what, n in [("begin", 0), *operations]:
            name, path = f"r{n}", folder / "runs.order"
            if what == "begin":
                # Into a run that was lost nothing is recorded.
                with contextlib.suppress(StorageError):
                    await begin(store, name)
            elif what == "claim":
                await store.release(await store.acquire("p", name))
            elif what == "delete" and await store.has_run("p", name):
                await store.delete_run("p", name)
            elif what == "stray" and not await store.has_run("p", name):
                other = FileStorageBackend(base / "other", durability="fast")
                await begin(other, name)
                (base / "other" / "p" / f"{name}.journal").replace(folder / f"{name}.journal")
                await other.delete("p")
            elif what == "lose":
                (folder / f"{name}.journal").unlink(missing_ok=True)
            elif what == "truncate" and path.exists():
                os.truncate(path, min(n, path.stat().st_size))
            elif what == "line" and path.exists():
                path.write_text(path.read_text() + name + "\n")
            elif what == "forget":
                path.unlink(missing_ok=True)
            elif what == "save":
                await store.save("p", {"n": n})
            elif what == "list":
                await store.runs("p")
            newest = await store._newest("p", count)
            if folder.exists():
                order = RunOrder(folder, lambda name: 0.0, partial(store._has_lost, folder), sync=False)
                assert newest == order.names()[-count:], (what, name)
        await store.close()

    with tempfile.TemporaryDirectory() as base:
        asyncio.run(check(Path(base)))


async def test_what_changes_between_a_look_and_its_note_is_looked_at_again(store: FileStorageBackend) -> None:
    """Another process put a run there after the folder was listed: the note would hide it."""
    await begin(store, "r0")
    folder = folder_of(store)
    note = checked.Checked(folder, folder / "runs.order")
    (folder / "runs.checked").unlink(missing_ok=True)
    before = b""
    while not before:
        # With a slow clock the look may fall into the tick of the change.
        before = note.looking()
    (folder / "r1.journal").touch()
    note.looked(before)
    assert not note.holds()
