"""What all backends share: names of storages, who holds a lease, and bodies of records."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tagent_nb.errors import (
    CorruptRecordError,
    DefinitionError,
    LeaseLostError,
    StorageError,
    StorageUnavailableError,
)
from tagent_nb.events import (
    ApprovalRequested,
    CallRecorded,
    Event,
    RunResumed,
    RunStarted,
    StepFinished,
    Warned,
)
from tagent_nb.serde import StoredValue
from tagent_nb.storage import (
    FileStorageBackend,
    Holder,
    MemoryStorageBackend,
    RecordStoreBackend,
    SQLiteStorageBackend,
    StorageBackend,
    open_storage,
)
from tagent_nb.storage import lease as leases
from tagent_nb.storage.file.journal import TAIL
from tagent_nb.storage.format.events import Summary, decode_events, encode_events, summary_of
from tagent_nb.storage.lease import process_start
from tagent_nb.testing.contract import StorageContract
from tagent_nb.testing.samples import DEAD_PID, holder, plain, sample_run
from tests.storage_kinds import replace_records, stored_records

# -- open_storage ------------------------------------------------------------------------------


def test_memory_and_folders_are_named_by_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder as text, as a path, as a URL; nothing is made before the first record."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert isinstance(open_storage(), MemoryStorageBackend)
    assert isinstance(open_storage("memory:"), MemoryStorageBackend)
    folders = {
        "runs": tmp_path / "runs",
        Path("some/runs"): tmp_path / "some/runs",
        "~/runs": tmp_path / "home/runs",
        "file:runs": tmp_path / "runs",
        f"file://{tmp_path}/my%20runs": tmp_path / "my runs",
        f"file://localhost{tmp_path}/runs": tmp_path / "runs",
    }
    for name, folder in folders.items():
        storage = open_storage(name, durability="fast")
        assert isinstance(storage, FileStorageBackend)
        assert (storage.base_path, storage.durability) == (folder, "fast")
    assert list(tmp_path.iterdir()) == []


def test_without_locks_a_folder_holds_a_database(tmp_path: Path) -> None:
    """As on Windows, where nothing else may ask for them either."""
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "from tagent_nb.storage import open_storage\n"
        "print(open_storage(sys.argv[1], durability='fast'))\n"
        "print(open_storage('sqlite:///' + sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "runs")]
    folder, database = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert folder == f"SQLiteStorageBackend({str(tmp_path / 'runs' / 'runs.db')!r}, durability='fast')"
    assert database == f"SQLiteStorageBackend({str(tmp_path / 'runs')!r}, durability='full')"


def test_where_the_system_has_no_locks_a_folder_is_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its durability is what was asked for."""
    for module in ("backend", "journal"):
        monkeypatch.delitem(sys.modules, f"tagent_nb.storage.file.{module}")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    storage = open_storage(tmp_path / "runs", durability="fast")
    assert isinstance(storage, SQLiteStorageBackend)
    assert (storage.path, storage.durability) == (tmp_path / "runs" / "runs.db", "fast")


def test_a_module_that_is_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the locks may be missing."""
    monkeypatch.delitem(sys.modules, "tagent_nb.storage.file.backend")
    monkeypatch.setitem(sys.modules, "tagent_nb.storage.file.journal", None)
    with pytest.raises(ModuleNotFoundError, match="journal"):
        open_storage(tmp_path / "runs")


def test_a_backend_is_returned_as_it_is() -> None:
    """So that functions can take either."""
    storage = MemoryStorageBackend()
    assert open_storage(storage) is storage


@pytest.mark.parametrize("bad", ["", "  ", 7, b"runs"])
def test_what_is_no_storage_is_refused(bad: Any) -> None:
    """The message shows what to write."""
    with pytest.raises(DefinitionError, match="memory:"):
        open_storage(bad)


def test_an_unknown_kind_gets_a_hint() -> None:
    """A slip in the scheme is not taken for a folder."""
    with pytest.raises(DefinitionError, match="Did you mean 'memory'"):
        open_storage("memry:")


def test_an_unknown_durability_is_refused(tmp_path: Path) -> None:
    """There are two levels."""
    with pytest.raises(DefinitionError, match="'full' or 'fast'"):
        open_storage(tmp_path, durability="slow")  # type: ignore[arg-type]


# -- holders of leases -------------------------------------------------------------------------


def test_this_process_lives_and_a_dead_one_does_not() -> None:
    """A process that has ended, or is a zombie, does not hold its lease any longer."""
    here = Holder.here(100.0, 30.0)
    for now in (-86_300.0, 100.0, 86_500.0):
        # Its own clock may be set as one likes: heartbeats are counted from the start of the machine.
        assert 29 < (here.left(now, shared=False) or 0.0) <= 30
    assert replace(here, ticks=here.ticks - 31).left(100.0, shared=False) == 0.0
    assert replace(here, ticks=here.ticks + 31).left(100.0, shared=False) is None
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.DEVNULL) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process_start(child.pid) is None
    assert process_start(child.pid) is None
    assert process_start(DEAD_PID) is None


def test_a_machine_that_was_started_anew_has_lost_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no wait for them; those of a machine that does not say who it is are heard or not."""
    here = Holder.here(100.0, 30.0)
    before = replace(here, machine="before", boot="before")
    assert before.is_gone == bool(here.home)
    monkeypatch.setattr(leases, "home_id", lambda: "this")
    assert replace(before, home="this").left(100.0, shared=False) == 0.0
    for other in (
        replace(before, home="that"),
        replace(before, home=""),
        replace(before, home="this", boot=""),
    ):
        assert not other.is_gone
        assert other.left(101.0, shared=False) == 29.0
    # A container beside this one has the same clock, whatever its processes' numbers.
    beside = replace(here, machine="beside")
    assert (beside.left(9e9, shared=False) or 0) > 29
    assert replace(beside, ticks=here.ticks - 31).left(100.0, shared=False) == 0.0


def test_of_a_system_that_does_not_count_from_its_start_the_time_is_taken() -> None:
    """Of its own processes; of those of another machine only if it can be right."""
    here = replace(Holder.here(100.0, 30.0), boot="")
    assert here.left(131.0, shared=False) == 0.0
    assert here.left(99.0, shared=False) is None
    away = replace(here, machine="away", home="")
    assert away.left(110.0, shared=False) == 20.0
    assert away.left(131.0, shared=False) is None
    assert away.left(131.0, shared=True) == 0.0
    assert away.left(99.0, shared=True) is None


def test_a_system_may_not_say_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and Windows have no such files."""
    monkeypatch.setattr(leases, "_PROC", Path("/nowhere"))
    monkeypatch.setattr(leases, "_MACHINE", Path("/nowhere"))
    assert leases.boot_id.__wrapped__() == ""
    assert leases.home_id.__wrapped__() == ""


async def test_a_claim_that_is_to_count_for_long_is_not_watched() -> None:
    """The refusal comes at once, and says how long it counts."""
    storage = MemoryStorageBackend()
    future = holder(7, host="elsewhere", machine="another", beat=9e12, ttl=1e6)
    assert await storage._swap_lease("p", "r", 0, 1, future)
    with pytest.raises(LeaseLostError, match="its claim ends in 1000000 s"):
        await storage.acquire("p", "r")


async def test_a_run_that_is_claimed_while_it_is_deleted_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says so."""
    storage = MemoryStorageBackend()
    await storage.append("p", "r", [Warned(run_id="r", message="x")])

    async def claimed(*what: Any) -> bool:
        return False

    monkeypatch.setattr(storage, "_remove_run", claimed)
    with pytest.raises(StorageError, match="another process has begun to carry it on"):
        await storage.delete_run("p", "r")


class PlainBackend(FileStorageBackend):
    """A backend that implements no more than it must."""

    _ordered = RecordStoreBackend._ordered
    _newest = RecordStoreBackend._newest
    _has_run = RecordStoreBackend._has_run
    _rows = RecordStoreBackend._rows


class TestPlainBackend(StorageContract):
    """The contract holds without the faster ways as well."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> StorageBackend:
        return PlainBackend(tmp_path / "runs", durability="fast")


async def test_a_plain_backend_lists_damaged_leases_and_skips_what_is_gone(tmp_path: Path) -> None:
    storage = PlainBackend(tmp_path, durability="fast")
    await storage.append("p", "r", [Warned(run_id="r", message="x")])
    (tmp_path / "p" / "r.lease").unlink()
    (tmp_path / "p" / "r.lease").mkdir()
    assert [info.status for info in await storage.runs("p")] == ["damaged"]
    assert await storage._rows("p", ["gone"]) == []


class StatelessBackend(PlainBackend):
    """One that keeps nothing that says where the records of a run end."""

    _state = RecordStoreBackend._state


async def test_a_backend_without_states_cannot_tell_that_the_last_records_are_missing(tmp_path: Path) -> None:
    """It reads and lists what there is."""
    storage = StatelessBackend(tmp_path, durability="fast")
    for text in ("one", "two"):
        await storage.append("p", "r", [Warned(run_id="r", message=text)])
    assert await storage._state("p", "r") is None
    journal = tmp_path / "p" / "r.journal"
    size = len(await storage._read("p", "r") or b"")
    await storage.append("p", "r", [Warned(run_id="r", message="three")])
    os.truncate(journal, size)
    again = StatelessBackend(tmp_path, durability="fast")
    assert [event.message for event in await again.read_run("p", "r")] == ["one", "two"]  # type: ignore[attr-defined]
    assert [info.problem for info in await again.runs("p")] == [None]
    assert again.problems == []


async def test_a_run_that_begins_while_it_is_read_lacks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its records end was looked for before there was one."""
    storage, other = (PlainBackend(tmp_path, durability="fast") for _ in range(2))
    look = storage._state

    async def begin(pipeline_id: str, run_id: str) -> bytes | None:
        state = await look(pipeline_id, run_id)
        if not state:
            await other.append(pipeline_id, run_id, [Warned(run_id=run_id, message="one")])
        return state

    monkeypatch.setattr(storage, "_state", begin)
    assert [event.message for event in await storage.read_run("p", "r")] == ["one"]  # type: ignore[attr-defined]
    assert storage.problems == []


async def test_a_plain_backend_lists_long_runs_by_their_last_records(tmp_path: Path) -> None:
    storage = PlainBackend(tmp_path, durability="fast")
    for text in ("one" * TAIL, "two"):
        await storage.append("p", "r", [Warned(run_id="r", message=text)])
    assert len(await storage._tail("p", "r")) == TAIL
    again = PlainBackend(tmp_path, durability="fast")
    (info,) = await again.runs("p")
    assert (info.run_id, info.problem) == ("r", None)
    assert info.size > 3 * TAIL


async def test_a_store_that_cannot_be_reached_is_no_damaged_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of runs fails, where a damaged run would be one line of it."""
    storage = PlainBackend(tmp_path, durability="fast")
    await storage.append("p", "r", [Warned(run_id="r", message="x" * 2 * TAIL)])

    async def away(*what: str) -> bytes:
        raise StorageUnavailableError("The disk is away.")

    again = PlainBackend(tmp_path, durability="fast")
    monkeypatch.setattr(again, "_read", away)
    with pytest.raises(StorageUnavailableError, match="is away"):
        await again.runs("p")


def test_a_process_name_may_hold_anything(tmp_path: Path) -> None:
    """Spaces and brackets in the name of a process do not shift what is read about it."""
    program = tmp_path / "a) R 1 (b"
    program.symlink_to(sys.executable)
    with subprocess.Popen([str(program), "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = process_start(child.pid)
        assert started is not None
        assert started.isdigit()
        assert int(started) >= int(process_start(os.getpid()) or 0)
        child.communicate(b"\n")


def test_without_proc_a_signal_tells_who_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS: start times are unknown, so only a dead process can be distinguished from others."""
    monkeypatch.setattr(leases, "_PROC", Path("/nowhere"))
    assert process_start(os.getpid()) == ""
    assert process_start(DEAD_PID) is None

    def refuse(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert process_start(1) == ""


def test_without_signals_the_heartbeat_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows signal 0 would end the other process."""
    monkeypatch.setattr(leases, "_PROC", Path("/nowhere"))
    monkeypatch.setattr(leases, "_SIGNALS", False)
    assert process_start(DEAD_PID) == ""


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff", b'{"host": 1}', b"[" * 100_000])
def test_a_holder_that_cannot_be_read_is_none(data: bytes) -> None:
    """The token still fences."""
    assert Holder.from_bytes(data) is None


# -- bodies of records -------------------------------------------------------------------------


def test_values_are_stored_as_they_are() -> None:
    """A value's bytes are in the record once, and not escaped."""
    value = 'say "zwölf" \\ ' * 100
    events: list[Event] = [StepFinished(run_id="r", step=name, output=StoredValue.of(value)) for name in "ab"]
    body = encode_events(events)
    assert body.count(StoredValue.of(value).blob) == 2
    assert len(body) < 2 * len(StoredValue.of(value).blob) + 400
    decoded = decode_events(body, "here")
    assert [event.output.value for event in decoded if isinstance(event, StepFinished)] == [value, value]


def test_half_of_a_surrogate_pair_in_a_message_stops_nothing() -> None:
    """A traceback may hold any text; what cannot be written is replaced."""
    (event,) = decode_events(encode_events([Warned(run_id="r", message="\ud800 ☃ \0")]), "here")
    assert isinstance(event, Warned)
    assert event.message.endswith(" ☃ \0")


def _body(*events: object, rest: bytes = b"", **more: object) -> bytes:
    return json.dumps({"events": list(events), **more}).encode() + b"\n" + rest


WARNED = {"event": "Warned", "run_id": "r", "at": 1.0, "message": "x"}
FINISHED = {"event": "StepFinished", "run_id": "r", "at": 1.0, "step": "a"}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\n", b"{}", b"{}\n", b"null\n", b"[]\n", b'{"events": {}}\n', b'{"events": []}\n',
        b'\xef\xbb\xbf{"events": []}\n', b'{"events": []}{"events": []}\n', b"\x80\x04N.\n", b"\xff\n",
        b'{"events": [NaN]}\n', b'{"events": [Infinity]}\n', b"[" * 200_000 + b"\n",
        b'{"events": [' + b"9" * 5000 + b"]}\n", b'{"events": [{"event": "Warned", "event": "Warned"}]}\n',
        _body(1), _body(None), _body([]), _body({}), _body({"event": "No"}), _body({"event": ["Warned"]}),
        _body({**WARNED, "message": 1}), _body({**WARNED, "extra": 1}), _body({"event": "Warned"}),
        _body({**WARNED, "at": "now"}), _body(WARNED, rest=b"x"), _body({**FINISHED, "output": 1}),
        _body({**FINISHED, "output": {"blob": 4, "digest": "d"}}, rest=b"abc"),
        _body({**FINISHED, "output": {"blob": 3, "digest": "d"}}, rest=b"abcd"),
        _body({**FINISHED, "output": {"blob": -1, "digest": "d"}}),
        _body({**FINISHED, "output": {"blob": True, "digest": "d"}}, rest=b"a"),
        _body({**FINISHED, "output": {"blob": "3", "digest": "d"}}, rest=b"abc"),
        _body({**FINISHED, "output": {"blob": 3.0, "digest": "d"}}, rest=b"abc"),
        _body({**FINISHED, "output": {"blob": 3}}, rest=b"abc"),
        _body({**FINISHED, "output": {"digest": "d"}}),
        _body({"event": "RunStarted", "run_id": "r", "at": 1, "pipeline": "p", "steps": "abc"}),
        _body({"event": "__class__"}), _body({"event": "StepEvent", "run_id": "r", "step": "a"}),
    ],
    ids=lambda body: ascii(body)[:30],
)  # fmt: skip
def test_a_body_that_is_not_ours_is_refused(body: bytes) -> None:
    """With a checksum that is right: another program's file, or a newer writer's."""
    with pytest.raises(CorruptRecordError):
        decode_events(body, "here")


@pytest.mark.parametrize("summary", [1, None, [], {}, {"states": {}}, {"states": {"done": "x"}}])
def test_a_summary_that_is_not_ours_is_refused(summary: object) -> None:
    """The list of runs shows such a run as damaged."""
    with pytest.raises(CorruptRecordError, match="summary"):
        summary_of(_body(WARNED, summary=summary), "here", "p", "r", size=1, alive=False)


def test_no_class_is_found_by_its_name() -> None:
    """A model whose class was not passed becomes a dict; nothing is imported for it."""
    before = set(sys.modules)
    blob = b'{"$t":"model","name":"xml.sax.handler.ContentHandler","v":{"x":1},"schema":"0"}'
    head = {**FINISHED, "output": {"blob": len(blob), "digest": "d"}}
    (event,) = decode_events(_body(head, rest=blob), "here")
    assert isinstance(event, StepFinished)
    assert event.output.value == {"x": 1}
    assert set(sys.modules) - before == set()


# -- the contract itself -----------------------------------------------------------------------


def test_the_contract_says_what_it_needs() -> None:
    """A subclass without the fixture gets a message, not a puzzle."""
    fixture = StorageContract.__dict__["storage"]
    function = getattr(fixture, "_get_wrapped_function", lambda: fixture.__wrapped__)()
    with pytest.raises(pytest.UsageError, match="fixture named 'storage'"):
        function(StorageContract())


async def test_the_contract_finds_a_backend_that_forgets_to_fence(tmp_path: Path) -> None:
    """The suite is worth something: it fails for a backend that accepts a late write."""

    class Careless(FileStorageBackend):
        async def _append(self, pipeline_id: str, run_id: str, record: bytes, token: int | None) -> None:
            await super()._append(pipeline_id, run_id, record, None)

    storage = Careless(tmp_path)
    with pytest.raises(BaseException, match="DID NOT RAISE"):
        await StorageContract().test_the_loser_writes_nothing_more(storage)


async def test_a_backend_may_keep_nothing_that_says_where_a_run_ends(tmp_path: Path) -> None:
    """Then nothing is said of an end that is missing, and nothing of its absence."""

    class Plain(FileStorageBackend):
        _rows = RecordStoreBackend._rows

        async def _state(self, pipeline_id: str, run_id: str) -> bytes | None:
            return None

    storage = Plain(tmp_path)
    await storage.append("p", "r", sample_run("r"))
    await storage.append("p", "r", [Warned(run_id="r", message="last")])
    await storage.append("p", "r", sample_run("r")[-1:])
    await replace_records(storage, (await stored_records(storage))[:1])
    assert [(info.status, info.problem) for info in await storage.runs("p")] == [("completed", None)]
    assert plain(await storage.read_run("p", "r")) == plain(sample_run("r"))
    assert storage.problems == []


async def test_a_claim_lost_to_one_that_was_given_back_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process took the run and gave it back within the blink of an eye: try again, it says."""
    storage = MemoryStorageBackend()

    async def lose(*args: object) -> bool:
        return False

    monkeypatch.setattr(storage, "_swap_lease", lose)
    with pytest.raises(LeaseLostError, match="another process"):
        await storage.acquire("p", "r")


async def test_a_lease_that_could_not_be_given_back_can_be_claimed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the same object only: any other sees a holder that lives."""
    storage = MemoryStorageBackend()
    lease = await storage.acquire("p", "r")

    async def refuse(*args: object) -> bool:
        raise StorageUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_swap_lease", refuse)
        with pytest.raises(StorageUnavailableError):
            await storage.release(lease)
    other = MemoryStorageBackend()
    other._leases = storage._leases
    with pytest.raises(LeaseLostError):
        await other.acquire("p", "r")
    again = await storage.acquire("p", "r")
    assert again.token > lease.token
    with pytest.raises(LeaseLostError):
        await storage.acquire("p", "r")


async def test_counts_start_again_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was counted but not stored does not stay in the list of runs."""
    storage = FileStorageBackend(tmp_path, durability="fast")
    await storage.append("p", "r", [RunStarted(run_id="r", pipeline="x", steps=("a", "b"))])

    async def refuse(*args: object) -> None:
        raise asyncio.CancelledError

    done = [StepFinished(run_id="r", step=name, output=StoredValue.of(1), cost=1.0) for name in "ab"]
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_append", refuse)
        with pytest.raises(asyncio.CancelledError):
            await storage.append("p", "r", [done[0]])
    await storage.append("p", "r", [done[1]])
    (info,) = await storage.runs("p")
    assert (info.steps_done, info.cost) == (1, 1.0)


@pytest.mark.parametrize("ended", ["", "killed", "waits", "unpriced", "finished"])
def test_a_list_of_runs_counts_the_calls_of_an_attempt_that_died(ended: str) -> None:
    """And counts them once if the attempt could say itself what it used."""
    step: dict[str, Any] = {"run_id": "r", "step": "a"}
    events: list[Event] = [RunStarted(run_id="r", pipeline="p", steps=("a",))]
    cost = None if ended == "unpriced" else 0.5
    events.append(CallRecorded(**step, kind="model", key="k", cost=cost))
    if ended == "killed":
        events.append(RunResumed(run_id="r", steps=("a",)))
    if ended == "waits":
        events.append(ApprovalRequested(**step, output=StoredValue.of({}), call="c", tool="send"))
    if ended == "finished":
        events.append(StepFinished(**step, output=StoredValue.of(1), cost=0.5))
    summary = Summary().add_all(events)
    for _ in range(2):  # to look is not to count
        info = summary.to_info("p", "r", size=0, alive=False)
        assert (info.cost, info.unpriced) == ((0.0, True) if ended == "unpriced" else (0.5, False))
