"""Storages that users bring: four methods are enough, and URLs of their own name them."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tagent_nb import (
    CorruptRecordError,
    DefinitionError,
    FormatVersionError,
    LeaseLostError,
    NotStoredError,
    Pipeline,
    PipelineExecutor,
    PipelineMemoryManager,
    PipelineStateMachine,
    StorageBackend,
    StorageError,
    StorageUnavailableError,
    Warned,
    cli,
    open_storage,
    register_storage,
)
from tagent_nb.events import StepFinished
from tagent_nb.notebook.session import Session
from tagent_nb.serde import StoredValue
from tagent_nb.storage import open as opening
from tagent_nb.storage.document_backend import MAX_HEADS
from tagent_nb.testing.contract import StorageContract
from tagent_nb.testing.samples import plain, sample_run
from tests.own_storage import Files, Table
from tests.storage_kinds import stored_records

ROOT = Path(__file__).parents[2]


class TestFiles(StorageContract):
    """A backend of four methods keeps every promise that it declares."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> StorageBackend:
        return Files(tmp_path / "own")

    def another(self, storage: StorageBackend) -> StorageBackend:
        assert isinstance(storage, Files)
        return Files(storage.folder)


class TestTable(StorageContract):
    """So does one that says ``{}`` where there is nothing, and uses names that are ours, too."""

    @pytest.fixture
    def storage(self) -> StorageBackend:
        return Table()


# -- runs -------------------------------------------------------------------------------------------


def counting(name: str = "count", calls: list[str] | None = None, fail: bool = False) -> Pipeline:
    """Three steps that say when they run; the last may fail."""
    calls = [] if calls is None else calls
    pipeline = Pipeline(name)

    @pipeline.task
    def first() -> int:
        calls.append("first")
        return 1

    @pipeline.task
    def second(first: int) -> list[int]:
        calls.append("second")
        return [first] * 3

    @pipeline.task
    def third(second: list[int]) -> int:
        calls.append("third")
        if fail:
            raise ValueError("not yet")
        return sum(second)

    return pipeline


async def test_four_methods_record_resume_and_list_runs(tmp_path: Path) -> None:
    """In one process and from the next: what was recorded is not done again."""
    calls: list[str] = []
    failed = await PipelineExecutor(counting(calls=calls, fail=True), storage=Files(tmp_path)).execute()
    assert not failed.success
    assert calls[:2] == ["first", "second"]
    calls.clear()
    executor = PipelineExecutor(counting(calls=calls), storage=Files(tmp_path))
    result = await executor.execute(resume=True, on_change="rerun")
    assert (result.success, result["third"], result.run_id) == (True, 3, failed.run_id)
    assert calls == ["third"]
    own = Files(tmp_path)
    (info,) = await own.runs("count")
    assert (info.run_id, info.status, info.steps_done) == (result.run_id, "completed", 3)
    assert await open_storage(own).list_pipelines() == [counting().id]


async def test_what_four_methods_cannot_promise_is_said_once(tmp_path: Path) -> None:
    """As a warning of the first run of a process; the next ones have none."""
    own = Files(tmp_path)
    warnings = [list((await PipelineExecutor(counting(), storage=own).execute()).warnings) for _ in range(2)]
    assert len(warnings[0]) == 1
    assert "Files keeps runs through its four methods. These do not promise" in warnings[0][0]
    assert warnings[1] == []


async def test_all_that_takes_a_storage_takes_four_methods(tmp_path: Path) -> None:
    """A memory manager, a state machine, and the methods of the backend itself, on the same runs."""
    own = Files(tmp_path)
    pipeline = counting()
    manager = PipelineMemoryManager(own)
    machine = PipelineStateMachine(pipeline, manager)
    machine.pipeline_memory.save_step_result("first", 5)
    machine.pipeline_memory.shared_data["k"] = (1, 2)
    await manager.save("count")
    memory = await PipelineMemoryManager(Files(tmp_path)).load("count")
    assert memory.get_step_result("first") == 5
    assert memory.shared_data == {"k": (1, 2)}
    run_id = await own.newest_run("count")
    assert run_id is not None
    assert await own.has_run("count", run_id)
    assert len(await own.read_run("count", run_id)) > 1
    assert own.keeps(StoredValue.of(1))
    lease = await own.acquire("count", run_id)
    await own.append("count", run_id, [Warned(run_id=run_id, message="on")], token=lease.token)
    await own.renew(lease)
    await own.release(lease)
    heard: list[str] = []
    with own.subscribe(heard.append):
        assert len(heard) == 1
    await own.save_memories("count", {"m": 1})
    assert await own.memories("count") == {"m": 1}
    made = await own.backup(tmp_path / "backups")
    assert await own.verify(made.path) == made
    assert await own.backups(tmp_path / "backups") == [made]
    assert await own.prune("count", keep_last=1) == []
    await own.delete_run("count", run_id)
    assert await own.lost_runs() == ""
    assert (await own.restore(made.path)).restored == [(pipeline.id, "run", run_id)]
    assert [info.run_id for info in await own.runs("count")] == [run_id]
    with own.subscribe(heard.append):
        assert len(heard) == 1
    assert own.allow_pickle(tmp_path / "key") is own
    # By their names of before.
    with own.telling(heard.append):
        assert await own.emptied() == ""
    await own.close()


async def test_saved_data_is_the_users_own_document() -> None:
    """What is saved through either side is loaded through the other, as the plain dict that it is."""
    own = Table()
    storage = open_storage(own)
    await storage.save("p", {"a": [1, None, "é"], "when": datetime(2026, 1, 2, tzinfo=UTC)})
    document = await own.load("p")
    assert document["a"] == [1, None, "é"]
    await own.save("q", {"b": 2})
    assert await storage.load("q") == {"b": 2}
    assert (await storage.load("p"))["when"] == datetime(2026, 1, 2, tzinfo=UTC)
    await own.save("empty", {})
    assert await storage.load("empty") == {}
    assert await storage.list_pipelines() == ["empty", "p", "q"]
    with pytest.raises(NotStoredError):
        await storage.load("none")
    with pytest.raises(DefinitionError, match="begin with '_tagent-'"):
        await storage.save("_tagent-run-x", {})


async def test_a_long_run_writes_a_bounded_part_of_itself_with_each_record() -> None:
    """However long it is: the document that is written with a record stays small, and all is read again."""
    own = Table()
    storage = open_storage(own)
    lease = await storage.acquire("p", "r")
    for n in range(300):
        event = StepFinished(run_id="r", step=f"s{n}", output=StoredValue.of("x" * 2000))
        await storage.append("p", "r", [event], token=lease.token)
    await storage.append("p", "r", [Warned(run_id="r", message="y" * 500_000)], token=lease.token)
    await storage.append("p", "r", [Warned(run_id="r", message="end")], token=lease.token)
    parts = {name: size for name, size in own.saves if name.startswith("_tagent-part-")}
    written = [size for name, size in own.saves if name.startswith("_tagent-run-")]
    assert len(parts) == len([name for name, _ in own.saves if name in parts]) > 5
    assert max(written[:300]) < 100_000
    assert written[-1] < 5_000
    assert len(await open_storage(own).read_run("p", "r")) == 302
    (info,) = await storage.runs("p")
    assert info.size == sum(len(record) for record in await stored_records(storage))
    await storage.release(lease)
    await storage.delete_run("p", "r")
    assert own.texts == {}


class Slow(Table):
    """Each save waits until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.go, self.done = threading.Event(), threading.Event(), threading.Event()

    async def save(self, pipeline_id: str, data: dict[str, Any]) -> None:
        self.reached.set()
        await asyncio.to_thread(self.go.wait)
        await super().save(pipeline_id, data)
        self.done.set()


async def test_records_that_wait_go_out_together() -> None:
    """While one is written, those of other tasks gather, and take one save."""
    own = Slow()
    storage = open_storage(own)

    def begin(n: int) -> asyncio.Future[None]:
        return asyncio.ensure_future(storage.append("p", "r", [Warned(run_id="r", message=str(n))]))

    appends = [begin(0)]
    await asyncio.to_thread(own.reached.wait)
    appends += [begin(n) for n in range(1, 100)]
    # On the loop of the four methods this comes behind all of them.
    await storage.list_pipelines()
    own.go.set()
    await asyncio.gather(*appends)
    assert len(own.saves) == 2
    assert len(await storage.read_run("p", "r")) == 100


async def test_a_run_of_hours_stays_one_list_away(tmp_path: Path) -> None:
    """More runs than are kept in memory: each can be carried on."""
    storage = open_storage(Table())
    names = [f"r{n}" for n in range(MAX_HEADS + 5)]
    for _ in range(2):
        for name in names:
            await storage.append("p", name, [Warned(run_id=name, message="x")])
    assert [info.run_id for info in await storage.runs("p")] == names
    assert len(await storage.read_run("p", "r0")) == 2


KILLED = """
import asyncio, sys, time
from pathlib import Path
from tagent_nb import Pipeline, PipelineExecutor
from tests.own_storage import Files

pipeline = Pipeline("killed")
for n in range(30):
    def step(n=n):
        print(n, flush=True)
        time.sleep(0.01)
        return n
    step.__name__ = f"s{n}"
    pipeline.task(step)
resume = sys.argv[2] == "resume"
result = PipelineExecutor(pipeline, storage=Files(Path(sys.argv[1]))).run(resume=resume)
print("done", result.success, len(result.step_outputs), flush=True)
"""


@pytest.mark.parametrize("after", [1, 7, 20])
def test_a_killed_run_goes_on_in_a_new_process(tmp_path: Path, after: int) -> None:
    """SIGKILL in the middle: what was recorded is not done again, as far as a save is all or nothing."""
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "own")]
    child = subprocess.Popen([*arguments, "new"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None
    began = [int(child.stdout.readline()) for _ in range(after)]
    child.kill()
    began += [int(line) for line in child.stdout.read().split()]
    child.wait()
    recorded = asyncio.run(Files(tmp_path / "own").runs("killed"))[0].steps_done
    assert recorded >= len(began) - 2
    resumed = subprocess.run([*arguments, "resume"], capture_output=True, text=True, check=True, cwd=ROOT)
    *again, done = resumed.stdout.splitlines()
    assert done == "done True 30"
    assert len(again) == 30 - recorded


# -- what a backend does wrong ----------------------------------------------------------------------


class Broken(Table):
    """Fails where it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: dict[str, Exception] = {}

    def _raise(self, name: str) -> None:
        if name in self.broken:
            raise self.broken[name]

    async def save(self, pipeline_id: str, data: dict[str, Any]) -> None:
        self._raise("save")
        await super().save(pipeline_id, data)

    async def load(self, pipeline_id: str) -> dict[str, Any]:
        self._raise("load")
        return await super().load(pipeline_id)

    async def delete(self, pipeline_id: str) -> None:
        self._raise("delete")
        await super().delete(pipeline_id)

    async def list_pipelines(self) -> list[str]:
        self._raise("list_pipelines")
        return await super().list_pipelines()


async def test_a_save_that_fails_is_an_error_and_the_run_goes_on_behind_it() -> None:
    """It names backend, method, document and cause; what was recorded before is there."""
    own = Broken()
    storage = open_storage(own)
    lease = await storage.acquire("p", "r")
    await storage.append("p", "r", [Warned(run_id="r", message="one")], token=lease.token)
    own.broken["save"] = ConnectionError("no route")
    event = Warned(run_id="r", message="lost")
    batch = [storage.append("p", "r", [event], token=lease.token) for _ in range(3)]
    for error in await asyncio.gather(*batch, return_exceptions=True):
        assert isinstance(error, StorageUnavailableError)
        assert "Broken.save('_tagent-run-" in str(error)
        assert "failed: ConnectionError: no route" in str(error)
    own.broken.clear()
    await storage.append("p", "r", [Warned(run_id="r", message="two")], token=lease.token)
    messages = [event.message for event in await storage.read_run("p", "r") if isinstance(event, Warned)]
    assert messages == ["one", "two"]
    own.broken["list_pipelines"] = TimeoutError("slow")
    with pytest.raises(
        StorageUnavailableError, match=r"Broken\.list_pipelines\(\) failed: TimeoutError: slow"
    ):
        await storage.list_pipelines()


@pytest.mark.parametrize(
    "error", [KeyError("p"), FileNotFoundError(), NotStoredError("none"), OSError(5, "I/O")]
)
async def test_what_cannot_be_loaded_and_is_not_listed_is_absent(error: Exception) -> None:
    """Whatever a backend raises or gives where there is nothing."""
    own = Broken()
    own.broken["load"] = error
    storage = open_storage(own)
    with pytest.raises(NotStoredError, match="Nothing is saved"):
        await storage.load("p")
    assert await storage.memories("p") == {}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("not JSON"), CorruptRecordError),
        (KeyError("k"), CorruptRecordError),
        (OSError(5, "I/O"), StorageUnavailableError),
    ],
)
async def test_what_is_listed_and_cannot_be_loaded_is_never_taken_for_absent(
    error: Exception, kind: type[Exception]
) -> None:
    """Nothing is written over it."""
    own = Broken()
    storage = open_storage(own)
    await storage.append("p", "r", sample_run("r"))
    before = dict(own.texts)
    own.broken["load"] = error
    with pytest.raises(kind, match=type(error).__name__):
        await open_storage(own).read_run("p", "r")
    with pytest.raises(kind):
        await storage.append("p", "r", [Warned(run_id="r", message="x")])
    assert own.texts == before
    own.broken.clear()
    own.broken["delete"] = error
    with pytest.raises(StorageUnavailableError, match="delete"):
        await storage.delete_run("p", "r")


def head(own: Table) -> str:
    """Id of the only run's head."""
    return next(name for name in own.texts if name.startswith("_tagent-run-"))


HEADS: list[tuple[str, Any, str]] = [
    ("run", "other", "not what was saved"),
    ("tagent", "1", "not what was saved"),
    ("tagent", 99, "reads up to 1"),
    ("parts", "many", "not what was saved"),
    ("parts", 2, "state lost: part 1 of 2 is missing"),
    ("records", ["%%%"], "a record is damaged"),
    ("records", [7], "a record is damaged"),
    ("records", None, "not what was saved"),
]


@pytest.mark.parametrize(("field", "value", "named"), HEADS)
async def test_damaged_documents_are_named(field: str, value: Any, named: str) -> None:
    """The run is listed as damaged, and reading it says what is wrong."""
    own = Table()
    storage = open_storage(own)
    await storage.append("p", "r", sample_run("r"))
    document = json.loads(own.texts[head(own)])
    own.texts[head(own)] = json.dumps({**document, field: value})
    kind = FormatVersionError if value == 99 else CorruptRecordError
    with pytest.raises(kind, match=named):
        await open_storage(own).read_run("p", "r")
    if field != "parts" and kind is CorruptRecordError:
        (info,) = await open_storage(own).runs("p")
        assert info.status == "damaged"
        assert named in str(info.problem)
        assert await storage.prune("p", max_bytes=0) == []


async def test_other_damage_is_named_too() -> None:
    """A part, a lease, an empty document, saved data that is no JSON, and memories that are not ours."""
    own = Table()
    storage = open_storage(own)
    for message in ("x" * 70_000, "y", "z"):
        await storage.append("p", "r", [Warned(run_id="r", message=message)])
    (part,) = (name for name in own.texts if name.startswith("_tagent-part-"))
    whole = dict(own.texts)
    own.texts[part] = json.dumps({**json.loads(own.texts[part]), "records": "none"})
    with pytest.raises(CorruptRecordError, match="_tagent-part-"):
        await storage.read_run("p", "r")
    own.texts = whole
    own.texts[head(own)] = "{}"
    with pytest.raises(CorruptRecordError, match="gave an empty dict, and list_pipelines"):
        await storage.read_run("p", "r")
    own.texts[head(own)] = "[1]"
    with pytest.raises(CorruptRecordError, match="gave a list, and list_pipelines"):
        await storage.read_run("p", "r")
    lease = await storage.acquire("q", "r")
    name = next(name for name in own.texts if name.startswith("_tagent-lease-"))
    own.texts[name] = json.dumps({**json.loads(own.texts[name]), "token": "high"})
    with pytest.raises(CorruptRecordError, match="_tagent-lease-"):
        await storage.renew(lease)
    await storage.save_memories("m", {"a": 1})
    own.texts["_tagent-memories-m"] = json.dumps({"a": 1})
    with pytest.raises(CorruptRecordError, match="not what was saved"):
        await storage.memories("m")

    class Odd(Table):
        async def load(self, pipeline_id: str) -> dict[str, Any]:
            return {"when": datetime(2026, 1, 2)}

    with pytest.raises(CorruptRecordError, match="holds what JSON cannot"):
        await open_storage(Odd()).load("p")


async def test_methods_that_are_not_async_are_named() -> None:
    """With what to write."""

    class Sync(Table):
        def list_pipelines(self) -> list[str]:  # type: ignore[override]
            return []

    with pytest.raises(
        DefinitionError, match="Sync.list_pipelines must be an async method: write `async def"
    ):
        await open_storage(Sync()).list_pipelines()


async def test_what_is_stored_under_a_key_is_signed(tmp_path: Path) -> None:
    """Saved data, too: it is no plain document then, and without the key it is refused."""
    own = Table()
    storage = open_storage(own).allow_pickle(tmp_path / "key")
    await storage.save("p", {"odd": complex(1, 2)})
    await storage.append("p", "r", sample_run("r"))
    assert await storage.load("p") == {"odd": complex(1, 2)}
    other = Table()
    other.texts = own.texts
    for call in (open_storage(other).load("p"), open_storage(other).read_run("p", "r")):
        with pytest.raises(CorruptRecordError, match="signed"):
            await call
    await own.save("p", {"plain": 1})
    with pytest.raises(CorruptRecordError, match="not signed"):
        await storage.load("p")


async def test_a_restore_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """Nothing else uses the store meanwhile; what was there is kept aside, what cannot be read is named."""
    own = Broken()
    storage = open_storage(own)
    await storage.save("p", {"n": 1})
    await storage.append("p", "r", sample_run("r"))
    await storage.save_memories("p", {"m": 1})
    made = await storage.backup(tmp_path / "backups")
    own.texts[head(own)] = "{not JSON"
    own.texts["a user's own"] = "{}"
    real, count = own.save, [0]

    async def save(pipeline_id: str, data: dict[str, Any]) -> None:
        if not pipeline_id.startswith("_tagent-aside-"):
            count[0] += 1
        if count[0] > 3:
            raise ConnectionError("gone")
        await real(pipeline_id, data)

    own.save = save  # type: ignore[method-assign]
    with pytest.raises(StorageUnavailableError, match="restore was stopped half-way"):
        await storage.restore(made.path)
    assert any("Not kept aside" in problem for problem in storage.problems)
    own.save = real  # type: ignore[method-assign]
    other = Table()
    other.texts = own.texts
    with pytest.raises(StorageError, match="This store is not whole"):
        await open_storage(other).runs("p")
    own.texts["_tagent-restoring"] = own.texts["_tagent-restoring"].replace("content", "c")
    with pytest.raises(StorageError, match="This store is not whole"):
        await open_storage(other).runs("p")
    await open_storage(other).restore(made.path)
    assert await open_storage(other).load("p") == {"n": 1}
    assert await open_storage(other).memories("p") == {"m": 1}
    assert plain(await open_storage(other).read_run("p", "r")) == plain(sample_run("r"))
    assert own.texts["a user's own"] == "{}"
    assert any(name.startswith("_tagent-aside-") for name in own.texts)


async def test_what_a_stopped_deletion_left_goes_with_its_pipeline() -> None:
    """Parts and leases without a run; what belongs to others stays."""
    own = Table()
    storage = open_storage(own)
    for name in ("p", "pp"):
        await storage.append(name, "r", [Warned(run_id="r", message="x" * 70_000)])
        await storage.append(name, "r", [Warned(run_id="r", message="y")])
        await storage.acquire(name, "leased")
    del own.texts[next(name for name in own.texts if name.startswith("_tagent-run-01p"))]
    await storage.save("p", {"n": 1})
    assert await storage.runs("p") == []
    assert await storage.has_run("p", "r") is False
    await storage.delete("p")
    assert await storage.list_pipelines() == ["pp"]
    assert all("02pp" in name for name in own.texts)


async def test_what_another_process_deletes_meanwhile_is_not_missed() -> None:
    """A list may still have it: it is left out, and to delete it again is no error."""

    class Fading(Table):
        gone: str | None = None

        async def load(self, pipeline_id: str) -> dict[str, Any]:
            if pipeline_id == self.gone:
                raise NotStoredError(pipeline_id)
            return await super().load(pipeline_id)

        async def delete(self, pipeline_id: str) -> None:
            del self.texts[pipeline_id]
            raise KeyError(pipeline_id)

    own = Fading()
    storage = open_storage(own)
    for name in ("r", "s"):
        await storage.append("p", name, sample_run(name))
    own.gone = head(own)
    assert [info.run_id for info in await storage.runs("p")] == ["s"]
    with pytest.raises(CorruptRecordError, match="none of its records"):
        await storage.read_run("p", "r")
    assert [info.run_id for info in await storage.prune("p", max_bytes=0)] == []
    real, looked = own.list_pipelines, [0]

    async def late() -> list[str]:
        looked[0] += 1
        return [name for name in await real() if looked[0] <= 2 or name != own.gone]

    own.list_pipelines = late  # type: ignore[method-assign]
    assert [info.run_id for info in await storage.runs("p")] == ["s"]
    own.list_pipelines = real  # type: ignore[method-assign]
    own.gone = None
    await storage.delete_run("p", "r")
    assert [info.run_id for info in await storage.runs("p")] == ["s"]


async def test_a_batch_of_which_one_has_lost_its_lease_fails_by_itself() -> None:
    """The others learn what went wrong with the save."""
    own = Slow()
    storage = open_storage(own)
    own.go.set()
    lease = await storage.acquire("p", "r")
    await storage.append("p", "r", sample_run("r")[:5], token=lease.token)
    own.go.clear()
    own.reached.clear()
    event = Warned(run_id="r", message="x")

    def begin(token: int) -> asyncio.Future[None]:
        return asyncio.ensure_future(storage.append("p", "r", [event], token=token))

    first = begin(lease.token)
    await asyncio.to_thread(own.reached.wait)
    others = [begin(lease.token), begin(lease.token + 1)]
    await storage.list_pipelines()
    real = own.save

    async def save(pipeline_id: str, data: dict[str, Any]) -> None:
        raise ConnectionError("gone")

    own.save = save  # type: ignore[method-assign]
    own.go.set()
    await first
    failed = await asyncio.gather(*others, return_exceptions=True)
    assert [type(error) for error in failed] == [StorageUnavailableError, LeaseLostError]
    own.save = real  # type: ignore[method-assign]
    await storage.append("p", "r", [event], token=lease.token)
    assert len(await storage.read_run("p", "r")) == 7


# -- one object for one backend ---------------------------------------------------------------------


async def test_one_backend_is_opened_once(tmp_path: Path) -> None:
    """All that open it share one object; a copy has its own, and neither keeps the other alive."""
    own, before = Files(tmp_path), set(threading.enumerate())
    storage = open_storage(own)
    assert open_storage(own) is open_storage(storage) is storage
    assert repr(storage) == "<Files, through its four methods>"
    copied = copy.copy(own)
    assert open_storage(copied) is not storage
    assert pickle.loads(pickle.dumps(own)).folder == own.folder
    again = copy.copy(own)
    vars(again).update(vars(own))
    assert open_storage(again) is not storage
    await storage.list_pipelines()
    threads = {thread for thread in threading.enumerate() if thread.name == "tagent-nb documents"} - before
    assert len(threads) == 1
    dropped = weakref.ref(own)
    del own, storage, copied, again
    gc.collect()
    assert dropped() is None
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


async def test_its_own_close_is_called() -> None:
    """Sync or async; it can be used afterwards."""

    class Closing(Table):
        closed = 0

        async def close(self) -> None:
            self.closed += 1

    class ClosingAtOnce(Closing):
        def close(self) -> None:  # type: ignore[override]
            self.closed += 1

    for own in (Closing(), ClosingAtOnce()):
        storage = open_storage(own)
        await storage.save("p", {"n": 1})
        await storage.close()
        assert own.closed == 1
        assert await storage.load("p") == {"n": 1}


async def test_all_calls_come_on_one_loop() -> None:
    """A pool of connections belongs to a loop: runs and notebooks use several."""
    loops: set[int] = set()

    class Looping(Table):
        async def list_pipelines(self) -> list[str]:
            loops.add(id(asyncio.get_running_loop()))
            return await super().list_pipelines()

    storage = open_storage(Looping())
    await asyncio.gather(*(asyncio.to_thread(asyncio.run, storage.list_pipelines()) for _ in range(3)))
    await storage.list_pipelines()
    assert len(loops) == 1
    assert id(asyncio.get_running_loop()) not in loops


async def test_a_call_that_is_cancelled_is_made_to_its_end() -> None:
    """A document is not left half-written because a run was stopped."""
    own = Slow()
    storage = open_storage(own)
    saving = asyncio.ensure_future(storage.save("p", {"n": 1}))
    await asyncio.to_thread(own.reached.wait)
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    own.go.set()
    await asyncio.to_thread(own.done.wait)
    assert await storage.load("p") == {"n": 1}


def test_after_a_fork_it_has_a_loop_of_its_own() -> None:
    """Threads are not copied."""
    storage = open_storage(Table())
    asyncio.run(storage.save("p", {"n": 1}))
    child = os.fork()
    if child == 0:
        os._exit(0 if asyncio.run(storage.load("p")) == {"n": 1} else 1)
    assert os.waitpid(child, 0)[1] == 0


# -- URLs of one's own ------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StorageBackend]:
    """A factory, registered for the scheme ``mine``."""
    monkeypatch.setattr(opening, "_registered", {})

    def factory(url: str) -> StorageBackend:
        return Files(tmp_path / url.removeprefix("mine:"))

    register_storage("mine", factory)
    return factory


async def test_a_registered_scheme_names_a_storage(mine: object, tmp_path: Path) -> None:
    """With the settings that every URL takes, from code, cells and the command line."""
    storage = open_storage("mine:here?keep_last=3")
    assert storage.retention is not None
    assert storage.retention.keep_last == 3
    result = await PipelineExecutor(counting(), storage="mine:here").execute()
    assert [info.run_id for info in await Files(tmp_path / "here").runs("count")] == [result.run_id]
    register_storage("mine", lambda url: open_storage("memory:"))
    assert open_storage("mine:here").capabilities == {"leases", "order"}


def test_a_file_of_the_command_line_may_register_its_scheme(
    mine: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``tagent-nb run FILE --storage mine:runs``."""
    file = tmp_path / "flow.py"
    file.write_text(
        "from pathlib import Path\n"
        "from tagent_nb import Pipeline, register_storage\n"
        "from tests.own_storage import Files\n"
        f"register_storage('fresh', lambda url: Files(Path({str(tmp_path)!r}) / url[6:]))\n"
        "pipeline = Pipeline('flow')\n"
        "@pipeline.task\n"
        "def only():\n"
        "    return 1\n"
    )
    assert cli.main(["run", str(file), "--storage", "fresh:cli"]) == 0
    assert [info.status for info in asyncio.run(Files(tmp_path / "cli").runs("flow"))] == ["completed"]


def test_a_cell_names_it(mine: object, tmp_path: Path) -> None:
    """``%tagent_pipeline flow --storage mine:cells``, and a variable that holds a backend of four methods."""
    session = Session({"kept": Files(tmp_path / "variable")}, folder=tmp_path / ".tagent")
    session.use("flow", storage=session.storage("mine:cells"))
    assert repr(session.workspace.storage) == "<Files, through its four methods>"
    session.use("flow", storage=session.storage("kept"))
    assert session.workspace.storage is open_storage(session.namespace["kept"])


@pytest.mark.parametrize(
    ("scheme", "factory", "named"),
    [
        ("s", Files, "at least two"),
        ("S3", Files, "at least two"),
        ("a b", Files, "at least two"),
        (7, Files, "at least two"),
        ("sqlite", Files, "one of tagent-nb"),
        ("good", "Files", "must be callable"),
    ],
)
def test_a_scheme_that_cannot_be_is_refused(scheme: Any, factory: Any, named: str) -> None:
    """Before anything is opened."""
    with pytest.raises(DefinitionError, match=named):
        register_storage(scheme, factory)


def test_a_misspelt_scheme_is_refused_with_what_was_meant(mine: object) -> None:
    """Ours, registered ones, and those of entry points."""
    with pytest.raises(DefinitionError, match=r"no kind 'mien'. Did you mean 'mine'\?"):
        open_storage("mien:x")
    with pytest.raises(DefinitionError, match=r"no kind 'sqlight'. Did you mean 'sqlite'\?.*mine"):
        open_storage("sqlight:///x")


def test_what_a_factory_gives_is_checked(mine: object) -> None:
    """It must take the URL, and durability where it is said, and give a backend."""
    register_storage("odd", lambda url: url)  # type: ignore[arg-type,return-value]
    with pytest.raises(DefinitionError, match="gave str, and a storage derives from"):
        open_storage("odd:x")
    register_storage("none", lambda: Table())
    with pytest.raises(DefinitionError, match="cannot be called with the URL"):
        open_storage("none:x")
    with pytest.raises(DefinitionError, match="cannot be called with the URL and durability"):
        open_storage("mine:x?durability=fast")
    warnings: list[str] = []

    def durable(url: str, durability: str = "full") -> StorageBackend:
        warnings.extend([url, durability])
        return Table()

    register_storage("durable", durable)
    open_storage("durable:x?durability=fast&region=eu&keep_last=2")
    assert warnings == ["durable:x?region=eu", "fast"]


def test_an_object_with_the_four_methods_is_refused_with_what_to_derive_from() -> None:
    """It is nearly there."""

    class Loose:
        save = load = delete = list_pipelines = Table.save

    with pytest.raises(DefinitionError, match="Derive its class from tagent_nb.StorageBackend"):
        open_storage(Loose())  # type: ignore[arg-type]


def test_packages_bring_schemes_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that has imported nothing of theirs; one that cannot be imported is named."""
    info = tmp_path / "their_storage-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-storage\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[tagent_nb.storage]\ntheirs = their_storage:make\nbroken = their_absent_storage:make\n"
    )
    (tmp_path / "their_storage.py").write_text(
        "from tests.own_storage import Table\ndef make(url):\n    return Table()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert repr(open_storage("theirs:x")) == "<Table, through its four methods>"
    with pytest.raises(DefinitionError, match="scheme 'broken' cannot be used.*their_absent_storage"):
        open_storage("broken:x")
    with pytest.raises(DefinitionError, match="Did you mean 'theirs'"):
        open_storage("their:x")
