"""The faults that storage must survive, injected into real processes, files and servers.

``make test`` runs few repetitions, ``make test-faults`` all of them; each test prints how often its fault was
injected and what was lost.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import pytest

from tagent_nb import PipelineExecutor
from tagent_nb.errors import CorruptRecordError, LeaseLostError, StorageError, StorageUnavailableError
from tagent_nb.events import Event, RunFinished, StepFinished, Warned
from tagent_nb.serde import StoredValue
from tagent_nb.storage import RecordStoreBackend, StorageBackend, open_storage
from tagent_nb.storage.run_info import time_in
from tests.redis_server import RedisServer
from tests.storage_child import STEPS, steps
from tests.storage_kinds import replace_records, stored_records

pytestmark = pytest.mark.faults

Repetitions = Callable[[int, int], int]
CHILD = Path(__file__).parents[1] / "storage_child.py"
BACKENDS = ["file", "sqlite", pytest.param("redis", marks=pytest.mark.requires("redis-server"))]


def report(fault: str, injected: int, lost: int) -> None:
    """One line for `make test-faults`, and a failure if anything was lost."""
    print(f"\n{fault}: injected {injected}, lost {lost}")
    assert lost == 0, fault


def kind_of(url: str) -> str:
    """What a report calls a store."""
    return url.partition(":")[0] if ":" in url else "file"


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty store of the kind that the test asks for."""
    kind = request.param
    if kind != "redis":
        yield f"sqlite:///{tmp_path}/runs.db" if kind == "sqlite" else str(tmp_path / "runs")
        return
    server = RedisServer(tmp_path, "--appendonly", "yes")
    yield server.url
    server.kill()


on_all = pytest.mark.parametrize("url", BACKENDS, indirect=True)
on_disks = pytest.mark.parametrize("url", BACKENDS[:2], indirect=True)


class Nursery:
    """A process that becomes a :class:`Child` whenever one is asked for, by a fork."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair()
        self._lock = threading.Lock()
        with other:
            number = other.fileno()
            self._process = subprocess.Popen(
                [sys.executable, str(CHILD), str(number)],
                stdin=subprocess.DEVNULL,
                pass_fds=[number],
                cwd=CHILD.parent.parent,
            )
        atexit.register(self.close)

    def ask(self, wish: str, *words: str, descriptors: Sequence[int] = ()) -> int:
        """``"start"`` gives the pid of a new process, ``"wait"`` the exit code of an ended one."""
        with self._lock:
            socket.send_fds(self._socket, [json.dumps([wish, *words]).encode()], descriptors)
            return int(self._socket.recv(100))

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.wait()


nursery = lru_cache(maxsize=1)(Nursery)


class Child:
    """A process of ``storage_child.py``."""

    def __init__(self, *words: str) -> None:
        stdin, self._to = os.pipe()
        source, stdout = os.pipe()
        self.pid = nursery().ask("start", *words, descriptors=[stdin, stdout])
        os.close(stdin)
        os.close(stdout)
        self._lines = os.fdopen(source)

    def hear(self) -> str:
        """The next line it says; empty when it has ended."""
        return self._lines.readline().strip()

    def tell(self, words: str) -> None:
        """Write a line to it."""
        os.write(self._to, f"{words}\n".encode())

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> list[str]:
        """SIGKILL; what it had still said."""
        self.signal(signal.SIGKILL)
        return self._rest()[0]

    def end(self) -> list[str]:
        """Wait for its own end; what it had still said."""
        rest, code = self._rest()
        assert code == 0
        return rest

    def _rest(self) -> tuple[list[str], int]:
        with self._lines:
            rest = self._lines.read().split("\n")
        os.close(self._to)
        return rest, nursery().ask("wait", str(self.pid))


async def finished(storage: StorageBackend, pipeline_id: str, run_id: str) -> list[str]:
    """The steps that a run has recorded, in order."""
    events = await storage.read_run(pipeline_id, run_id)
    return [event.step for event in events if isinstance(event, StepFinished)]


# -- killed processes --------------------------------------------------------------------------


@on_all
async def test_killed_while_recording(url: str, repetitions: Repetitions) -> None:
    """SIGKILL at a random moment: whatever was acknowledged is there once, and the next process goes on."""
    count, lost, acknowledged = repetitions(4, 100), 0, -1
    for _ in range(count):
        child = Child("record", url)
        assert child.hear() == "go"
        for _ in range(random.randrange(30)):
            acknowledged = max(acknowledged, int(child.hear()))
        time.sleep(random.random() * 0.002)
        numbers = [int(line) for line in child.kill()[:-1] if line.isdigit()]
        acknowledged = max([acknowledged, *numbers])
        storage = open_storage(url)
        steps = await finished(storage, "p", "r")
        assert steps == [f"s{n}" for n in range(len(steps))]
        lost += max(0, acknowledged + 1 - len(steps))
        await storage.close()
    report(f"SIGKILL while recording ({kind_of(url)})", count, lost)


@on_all
async def test_killed_in_the_middle_of_a_run(url: str, tmp_path: Path, repetitions: Repetitions) -> None:
    """The run is resumed by another process; no step that was recorded runs again."""
    count, injected, lost = repetitions(4, 100), 0, 0
    effects, pipeline_id = tmp_path / "effects", steps().id
    while injected < count:
        effects.write_text("")
        recorded: list[str] = []
        seen, output, patience = 0, "", 0.08
        while "done" not in output:
            child = Child("run", url, str(effects))
            assert child.hear() == "go"
            time.sleep(random.random() * patience)
            # On a busy machine it needs longer to come any further.
            patience *= 1.1
            output = " ".join(child.kill())
            injected += "done" not in output
            ran = effects.read_text().split()
            lost += len(set(ran[seen:]) & set(recorded))
            seen = len(ran)
            storage = open_storage(url)
            runs = await storage.runs(pipeline_id)
            recorded = await finished(storage, pipeline_id, runs[-1].run_id) if runs else []
            await storage.close()
        assert f"done True {STEPS}" in output
        assert recorded == [f"s{n}" for n in range(STEPS)]
        storage = open_storage(url)
        await storage.delete(pipeline_id)
        await storage.close()
    report(f"SIGKILL in the middle of a run ({kind_of(url)})", injected, lost)


@on_all
async def test_killed_while_runs_begin_and_go(url: str, repetitions: Repetitions) -> None:
    """SIGKILL of processes that share a store: what tells its newest runs misses none of them."""
    count, lost = repetitions(3, 60), 0
    for turn in range(count):
        names = [f"{letter}{turn}-" for letter in "abc"]
        children = [Child("turnover", url, name) for name in names]
        for child in children:
            assert child.hear() == "go"
        for child in children:
            child.tell("go")
        heard = [
            line for child in children for line in [child.hear() for _ in range(random.randrange(1, 15))]
        ]
        time.sleep(random.random() * 0.005)
        for child in children:
            heard += child.kill()[:-1]
        # Every fourth is deleted again.
        there = {line for line in heard if line and int(line.partition("-")[2]) % 4 != 3}
        storage = open_storage(url)
        assert isinstance(storage, RecordStoreBackend)
        # First what is said without a look at all of them.
        newest = await storage._newest("p", 12)
        infos = [info.run_id for info in await storage.runs("p")]
        lost += len(there.difference(infos)) + (newest != infos[-12:])
        await storage.close()
    report(f"SIGKILL while runs begin and go ({kind_of(url)})", 3 * count, lost)


@on_all
async def test_killed_while_restoring(url: str, tmp_path: Path, repetitions: Repetitions) -> None:
    """All that was stored is there, or the store is refused until ``restore()`` has gone on; never a part."""
    count, lost, half = repetitions(4, 100), 0, 0
    folder = tmp_path / "backups"
    storage = open_storage(url)
    assert isinstance(storage, RecordStoreBackend)
    runs = [f"r{n}" for n in range(20)]
    for run_id in runs:
        event = StepFinished(run_id=run_id, step="s0", output=StoredValue.of("x" * 500))
        await storage.append("p", run_id, [event])
    await storage.backup(folder)
    await storage.close()
    for _ in range(count):
        child = Child("restore", url, str(folder))
        assert child.hear() == "go"
        child.tell("now")
        time.sleep(random.random() * 0.1)
        child.kill()
        again = open_storage(url)
        assert isinstance(again, RecordStoreBackend)
        try:
            await again.list_pipelines()
        except StorageError:
            half += 1
            await again.restore(folder=folder)
        for run_id in runs:
            lost += await finished(again, "p", run_id) != ["s0"]
        await again.close()
    report(f"SIGKILL while restoring ({kind_of(url)}, {half} times half-way)", count, lost)


@on_all
async def test_two_processes_resume_one_run(url: str, repetitions: Repetitions) -> None:
    """At the same moment: one goes on, the other gets an error that names it."""
    count, wrong = repetitions(5, 50), 0
    children = [Child("claim", url), Child("claim", url)]
    for child in children:
        assert child.hear() == "go"
    for n in range(count):
        for child in children:
            child.tell(f"r{n}")
        answers = [child.hear() for child in children]
        winner = next((answer.split()[1] for answer in answers if answer.startswith("won")), "none")
        losers = [answer for answer in answers if answer.startswith("lost")]
        wrong += len(losers) != 1 or f"process {winner}" not in losers[0]
    for child in children:
        child.kill()
    report(f"two processes resume one run ({kind_of(url)})", count, wrong)


@on_all
async def test_a_process_that_hangs_writes_nothing_late(url: str, repetitions: Repetitions) -> None:
    """SIGSTOP until its lease has expired and another process has taken over: its late write is refused."""
    count, lost = repetitions(1, 10), 0
    for _ in range(count):
        child = Child("hang", url)
        assert child.hear() == "go"
        child.signal(signal.SIGSTOP)
        storage = open_storage(url)
        lease = None
        while lease is None:
            with contextlib.suppress(LeaseLostError):
                lease = await storage.acquire("p", "r")
            await asyncio.sleep(0.02)
        await storage.append("p", "r", [Warned(run_id="r", message="winner")], token=lease.token)
        child.signal(signal.SIGCONT)
        child.tell("go on")
        heard = child.hear()
        lost += f"lost Run r of pipeline p was taken over or deleted by process {os.getpid()} on" not in heard
        events = await storage.read_run("p", "r")
        lost += [event.message for event in events if isinstance(event, Warned)] != ["before", "winner"]
        child.end()
        await storage.release(lease)
        await storage.delete("p")
        await storage.close()
    report(f"late write after SIGSTOP ({kind_of(url)})", count, lost)


@on_all
async def test_eight_processes_write_one_store(url: str, repetitions: Repetitions) -> None:
    """Each records 200 steps (50 in the short form) into a run of its own, all at once: all are there."""
    each = repetitions(50, 200)
    children = [Child("many", url, f"r{n}", str(each)) for n in range(8)]
    for child in children:
        assert child.hear() == "go"
    for child in children:
        child.tell("now")
    for child in children:
        assert "done" in child.end()
    storage = open_storage(url)
    counts = [len(await finished(storage, "p", f"r{n}")) for n in range(8)]
    await storage.close()
    report(f"eight writers of {each} records ({kind_of(url)})", 8 * each, 8 * each - sum(counts))


# -- records in another order --------------------------------------------------------------------


def _changed(records: list[bytes]) -> tuple[str, list[bytes]]:
    """A change that keeps each record as it is, and what kind it is."""
    first, second = sorted(random.sample(range(len(records) - 1), 2))
    kind = random.choice(["swapped", "doubled", "left out", "moved", "cut off"])
    if kind == "swapped":
        records[first], records[second] = records[second], records[first]
    elif kind == "doubled":
        records.insert(second, records[first])
    elif kind == "left out":
        del records[first:second]
    elif kind == "moved":
        records.append(records.pop(first))
    else:
        del records[second + 1 :]
    return kind, records


@on_all
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "plain"])
async def test_records_swapped_doubled_or_left_out(
    url: str, signed: bool, tmp_path: Path, repetitions: Repetitions
) -> None:
    """Each record is as it was written: the error names the one that is not in its place. A missing end is
    reported, and what is before it is read."""
    count, silent = repetitions(5, 50), 0
    for n in range(count):
        storage = open_storage(url)
        assert isinstance(storage, RecordStoreBackend)
        if signed:
            storage.allow_pickle(tmp_path / "key")
        run_id = f"r{n}"
        lease = await storage.acquire("p", run_id)
        for number in range(random.randrange(4, 12)):
            event = Warned(run_id=run_id, message=str(number))
            await storage.append("p", run_id, [event], token=lease.token)
        await storage.release(lease)
        records = await stored_records(storage, run_id)
        whole = len(records)
        kind, records = _changed(records)
        await replace_records(storage, records, run_id)
        storage.problems.clear()
        try:
            events = await storage.read_run("p", run_id)
        except CorruptRecordError as error:
            silent += re.search(rf"record \d+ of run {run_id} ", str(error)) is None
        else:
            silent += kind != "cut off"
            silent += f"{whole} records were recorded, and {len(records)} are there" not in str(events[-1])
            silent += [info.problem is None for info in await storage.runs("p")][-1]
            assert len(events) == len(records) + 1
        await storage.close()
    report(f"records swapped, doubled, left out ({kind_of(url)}, signed: {signed})", count, silent)


# -- a damaged log -----------------------------------------------------------------------------


async def _look(path: Path) -> tuple[dict[str, int], list[str]]:
    """How much is stored of each run, which version was saved, and all that is said about damage."""
    storage = open_storage(f"sqlite:///{path}/runs.db")
    counts: dict[str, int] = {}
    messages: list[str] = []
    try:
        for info in await storage.runs("p"):
            messages += [info.problem] if info.problem else []
            with contextlib.suppress(CorruptRecordError):
                counts[info.run_id] = len(await finished(storage, "p", info.run_id))
        counts["saved"] = (await storage.load("p"))["saved"]
    except StorageError as error:
        messages.append(str(error))
    messages += storage.problems
    await storage.close()
    return counts, messages


async def test_a_bit_of_the_write_ahead_log(tmp_path: Path, repetitions: Repetitions) -> None:
    """After SIGKILL, one bit anywhere in the log: all is there, or what is lost is named. A log that is cut
    off within its last transaction, as by the crash itself, is no damage."""
    count, silent, short = repetitions(10, 200), 0, 0
    child = Child("leave", f"sqlite:///{tmp_path}/runs.db")
    assert child.hear() == "go"
    child.kill()
    log = (tmp_path / "runs.db-wal").read_bytes()
    frame = 24 + int.from_bytes(log[8:12], "big")
    whole = {**{f"r{n}": 6 for n in range(4)}, "saved": 1}
    for n in range(count):
        copy = tmp_path / str(n)
        copy.mkdir()
        shutil.copy(tmp_path / "runs.db", copy)
        damaged = bytearray(log)
        # The head of the log, the head of a frame, the last transaction, or anywhere.
        place = (
            random.randrange(32),
            32 + random.randrange(len(log) // frame) * frame + random.randrange(24),
            len(log) - 1 - random.randrange(frame),
            random.randrange(len(log)),
        )[n % 4]
        damaged[place] ^= 1 << random.randrange(8)
        (copy / "runs.db-wal").write_bytes(damaged)
        counts, messages = await _look(copy)
        short += counts != whole
        silent += counts != whole and not messages
        for run_id in whole:
            silent += counts.get(run_id) != whole[run_id] and not any(
                run_id in message for message in messages
            )
    cut = tmp_path / "cut"
    cut.mkdir()
    shutil.copy(tmp_path / "runs.db", cut)
    (cut / "runs.db-wal").write_bytes(log[: -random.randrange(1, frame)])
    counts, messages = await _look(cut)
    assert (counts, messages) == ({**whole, "saved": 0}, [])
    report(f"a bit of the write-ahead log ({short} times something was lost and named)", count, silent)


@pytest.mark.requires("redis-server")
async def test_redis_loses_lists_and_runs(tmp_path: Path, repetitions: Repetitions) -> None:
    """Whatever keys besides a run's records go: no run is missing. Where its records go, that is reported,
    and no older run is taken for the newest."""
    import redis

    count, silent = repetitions(10, 100), 0
    server = RedisServer(tmp_path, "--appendonly", "no")
    with contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        for n in range(count):
            storage = open_storage(server.url, durability="fast")
            ids = [f"2026010{day}T000000-{n}" for day in range(1, 6)]
            pipeline_id = f"p{n}"
            for run_id in ids:
                lease = await storage.acquire(pipeline_id, run_id)
                event = StepFinished(run_id=run_id, at=time_in(run_id), step="s", output=StoredValue.of(1))
                await storage.append(pipeline_id, run_id, [event], token=lease.token)
                await storage.release(lease)
            client = redis.Redis.from_url(server.url)
            start = f"tagent-nb:pipeline:{pipeline_id}:"
            lists = [f"{start}runs", f"{start}order", "tagent-nb:pipelines", f"{start}lease:{ids[0]}"]
            lists.append("tagent-nb:last-runs")
            client.delete(*random.sample(lists, random.randrange(1, 6)))
            lost = random.sample(ids, random.randrange(3))
            for run_id in lost:
                client.delete(f"{start}run:{run_id}")
            if n % 2:
                run_id = "20260109T000000-0"
                event = StepFinished(run_id=run_id, at=time_in(run_id), step="s", output=StoredValue.of(1))
                await open_storage(server.url).append(pipeline_id, event.run_id, [event])
                ids.append(event.run_id)
            again = open_storage(server.url, durability="fast")
            runs = {info.run_id: info.problem for info in await again.runs(pipeline_id)}
            # Of a run that has lost its records and its lease together, only the lists may still know;
            # without them it is counted as missing, by the first look.
            traceless = {run_id for run_id in lost if run_id == ids[0]}.difference(runs)
            messages = str(again.problems)
            counted = "nothing is left" in messages or "the count of runs" in messages
            silent += bool(traceless) and not n % 2 and not counted
            silent += set(ids) - traceless != set(runs)
            silent += sum("state lost" not in (runs[run_id] or "") for run_id in lost if run_id in runs)
            silent += await again.newest_run(pipeline_id) != ids[-1]
            silent += pipeline_id not in await again.list_pipelines()
            client.close()
            await again.close()
            await storage.close()
    report("lists and runs that Redis has lost", count, silent)


# -- disks -------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[], None]]:
    """A folder on a disk of 4 MB if we may mount one, else files of at most 400 kB; yields how to free it."""
    folder.mkdir()
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
        == 0
    )
    if mounted:
        filler = folder / "filler"
        filler.write_bytes(b"x" * 3_500_000)
        try:
            yield filler.unlink
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["file", "sqlite"])
@pytest.mark.parametrize("durability", ["full", "fast"])
async def test_a_full_disk(kind: str, durability: str, tmp_path: Path, repetitions: Repetitions) -> None:
    """A typed error; what was recorded is intact and readable; with space again, recording goes on."""
    count, lost = repetitions(1, 5), 0
    for n in range(count):
        folder = tmp_path / f"disk{n}"
        with small_disk(folder) as free:
            url = f"sqlite:///{folder}/runs.db" if kind == "sqlite" else str(folder / "runs")
            storage = open_storage(url, durability=durability)  # type: ignore[arg-type]
            lease = await storage.acquire("p", "r")
            await storage.save("p", {"important": True})
            recorded = 0
            error = None
            while error is None:
                value = StoredValue.of(random.randbytes(20_000))
                event = StepFinished(run_id="r", step=f"s{recorded}", output=value)
                try:
                    await storage.append("p", "r", [event], token=lease.token)
                    recorded += 1
                except StorageUnavailableError as refused:
                    error = refused
            assert re.search("full|Check the disk", str(error))
            assert recorded > 3
            lost += recorded - len(await finished(storage, "p", "r"))
            assert await storage.load("p") == {"important": True}
            free()
            await storage.append("p", "r", [Warned(run_id="r", message="on")], token=lease.token)
            await storage.save("p", {"important": False})
            await storage.release(lease)
            await storage.close()
            again = open_storage(url)
            lost += recorded - len(await finished(again, "p", "r"))
            assert await again.load("p") == {"important": False}
            await again.close()
    report(f"disk full ({kind}, {durability})", count, lost)


@pytest.mark.parametrize("kind", ["file", "sqlite"])
async def test_a_run_on_a_full_disk_can_be_resumed(kind: str, tmp_path: Path) -> None:
    """The run ends with the storage's error; with space again it goes on where it was."""
    effects = str(tmp_path / "effects")

    def note(name: str, before: object) -> bytes:
        with Path(effects).open("a") as file:
            file.write(name + "\n")
        return random.randbytes(60_000)

    with small_disk(tmp_path / "disk") as free:
        url = f"sqlite:///{tmp_path}/disk/runs.db" if kind == "sqlite" else str(tmp_path / "disk/runs")
        executor = PipelineExecutor(steps(), storage=url, namespace={"note": note})
        with pytest.raises(StorageUnavailableError):
            await executor.execute()
        before = Path(effects).read_text().split()
        recorded = await finished(executor.storage, executor.pipeline.id, executor.memory.run_id)
        assert 1 < len(recorded) < STEPS
        free()
        result = await executor.execute(resume=True)
        await executor.storage.close()
    assert result.success
    again = Path(effects).read_text().split()[len(before) :]
    report(f"run on a full disk ({kind})", 1, len(set(again) & set(recorded)))


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_a_read_only_folder(kind: str) -> None:
    """Every write fails at once with the remedy; a folder can still be read."""
    folder = Path(tempfile.mkdtemp())
    url = f"sqlite:///{folder}/runs.db" if kind == "sqlite" else str(folder / "runs")

    async def prepare() -> None:
        storage = open_storage(url)
        await storage.append("p", "r", [Warned(run_id="r", message="one")])
        await storage.close()

    async def use() -> None:
        storage = open_storage(url)
        for call in (
            storage.append("p", "r", [Warned(run_id="r", message="two")]),
            storage.save("p", {}),
            storage.acquire("p", "r"),
        ):
            with pytest.raises(StorageUnavailableError, match="permissions"):
                await call
        if kind == "file":
            assert len(await storage.read_run("p", "r")) == 1

    asyncio.run(prepare())
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                # Root may write anywhere.
                os.setuid(65534)
            asyncio.run(use())
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for path in paths:
        path.chmod(0o700)
    subprocess.run(["rm", "-r", str(folder)], check=True)
    report(f"read-only folder ({kind})", 3, status)


# -- servers -----------------------------------------------------------------------------------


@pytest.mark.requires("redis-server")
@pytest.mark.parametrize("how", ["killed", "shut down", "stopped"])
async def test_redis_away_in_the_middle_of_a_run(how: str, tmp_path: Path, repetitions: Repetitions) -> None:
    """Away for 0.3 or 3 s, the run goes on; for 30 s, it goes on or fails within its deadline."""
    lost = injected = 0
    for away in (0.3, 3.0, 30.0)[: repetitions(2, 3)]:
        folder = tmp_path / str(away)
        folder.mkdir()
        server = RedisServer(folder, "--appendonly", "yes")
        with contextlib.ExitStack() as stack:
            stack.callback(server.kill)
            effects = folder / "effects"
            effects.touch()

            def note(name: str, before: object, effects: str = str(effects)) -> str:
                with Path(effects).open("a") as file:
                    file.write(name + "\n")
                time.sleep(0.005)
                return name

            executor = PipelineExecutor(steps(), storage=server.url, namespace={"note": note})
            running = asyncio.ensure_future(executor.execute())
            while "s5" not in effects.read_text():
                await asyncio.sleep(0.002)
            if how == "stopped":
                server.signal(signal.SIGSTOP)
            elif how == "killed":
                server.kill()
            else:
                server.signal(signal.SIGTERM)
                assert server.process is not None
                await asyncio.to_thread(server.process.wait)
            await asyncio.wait([running], timeout=away)
            failed = running.done()
            if how == "stopped":
                server.signal(signal.SIGCONT)
            else:
                await asyncio.to_thread(server.start)
            injected += 1
            try:
                result = await running
            except StorageUnavailableError:
                assert away == 30.0
                assert failed
                result = await executor.execute(resume=True)
            assert result.success
            if away < 30.0:
                lost += len(effects.read_text().split()) - STEPS
            recorded: list[Event] = await executor.storage.read_run(executor.pipeline.id, result.run_id)
            lost += STEPS - len({event.step for event in recorded if isinstance(event, StepFinished)})
            await executor.storage.close()
    report(f"Redis {how}", injected, lost)


# -- clocks and claims -------------------------------------------------------------------------


async def claimed(storage: StorageBackend, run_id: str) -> bool:
    """Carry a run on as soon as that is possible; whether what was recorded then is lost."""
    lease = await storage.acquire("p", run_id)
    try:
        await storage.append("p", run_id, [Warned(run_id=run_id, message="mine")], token=lease.token)
        await asyncio.sleep(0)
        events = await storage.read_run("p", run_id)
    finally:
        await storage.release(lease)
    return not any(isinstance(event, Warned) and event.message == "mine" for event in events)


@on_all
async def test_a_claim_and_a_deletion_at_once(url: str, repetitions: Repetitions) -> None:
    """Of two processes, one prunes the run that the other begins to carry on: one of them wins."""
    count, lost = repetitions(10, 160), 0
    mine, other = open_storage(url), open_storage(url)
    for n in range(count):
        for name in ("old", "new"):
            await mine.append("p", f"{name}{n}", [Warned(run_id=f"{name}{n}", message="before")])
        outcome, _ = await asyncio.gather(
            claimed(other, f"old{n}"), mine.prune("p", keep_last=1), return_exceptions=True
        )
        # Deleted first, there is nothing to carry on but what is begun anew.
        lost += outcome is not False
    await mine.close()
    await other.close()
    report(f"claimed while it is pruned ({kind_of(url)})", count, lost)


@on_all
async def test_clocks_that_jump(url: str, repetitions: Repetitions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each run the time of day is another: none is pruned by its end, none taken from its process."""
    count, lost = repetitions(8, 60), 0
    random.seed(20)
    real, skew = time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: real() + skew)
    storage, other = open_storage(url, keep_last=3), open_storage(url)
    names: list[str] = []
    for n in range(count):
        skew = random.uniform(-1e8, 1e8)
        names.append(f"r{n}")
        lease = await storage.acquire("p", names[-1])
        event = StepFinished(run_id=names[-1], step="a", output=StoredValue.of(n))
        await storage.append("p", names[-1], [event], token=lease.token)
        skew = random.uniform(-1e8, 1e8)
        with pytest.raises(LeaseLostError):
            await other.acquire("p", names[-1])
        await other.prune("p", keep_last=3, older_than=1e7)
        await storage.append("p", names[-1], [RunFinished(run_id=names[-1], success=True)], token=lease.token)
        await storage.release(lease)
        runs = [info.run_id for info in await other.runs("p")]
        lost += runs != names[-len(runs) :] or await other.newest_run("p") != names[-1]
    await storage.close()
    await other.close()
    report(f"clock set forth and back ({kind_of(url)})", count, lost)


@pytest.mark.parametrize("crashed", [False, True])
async def test_a_database_on_a_full_disk_is_read(crashed: bool, tmp_path: Path) -> None:
    """Not a byte is free, and its log has no index: a real disk, where one may be mounted."""
    with small_disk(tmp_path / "disk") as free:
        folder = tmp_path / "disk"
        if not (folder / "filler").exists():
            pytest.skip("no disk can be mounted")
        storage = open_storage(f"sqlite:///{folder}/runs.db")
        for n in range(3):
            await storage.append("p", f"r{n}", [Warned(run_id=f"r{n}", message="x")])
        if crashed:
            for suffix in ("", "-wal"):
                (folder / f"copy.db{suffix}").write_bytes((folder / f"runs.db{suffix}").read_bytes())
        await storage.close()
        path = folder / ("copy.db" if crashed else "runs.db")
        with (folder / "rest").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 512)
        again = open_storage(f"sqlite:///{path}")
        runs = [info.run_id for info in await again.runs("p")]
        assert len(await again.read_run("p", "r1")) == 1
        free()
        await again.append("p", "r3", [Warned(run_id="r3", message="x")])
        await again.close()
    report(f"read on a full disk ({'with' if crashed else 'without'} a log)", 1, 3 - len(runs))
