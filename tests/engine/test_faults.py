"""Faults that a run as a whole must survive: changed definitions, locks, writers beside it, equal questions.

With `make test-faults` in full, as the faults of storage in ``storage/test_storage_faults.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tagent_nb import ExecutionMode, Pipeline, PipelineExecutor, PipelineStep, ResumeConflictError
from tagent_nb.cache import ResultCache
from tagent_nb.engine.recorder import AHEAD
from tagent_nb.errors import RunError
from tagent_nb.events import Event, StepFinished, Warned
from tagent_nb.runners import StepContext
from tagent_nb.storage import RecordStoreBackend, StorageBackend, open_storage
from tests.redis_server import RedisServer
from tests.storage.test_storage_faults import BACKENDS, Child, Repetitions, finished, kind_of, report
from tests.storage_child import ROWS, ROWS_AT_ONCE, STEPS, mapped, steps

pytestmark = pytest.mark.faults


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


# -- a definition that changed -----------------------------------------------------------------


class Verdict(BaseModel):
    """What the agent answers."""

    label: str


class _Wider:
    class Verdict(BaseModel):
        """The same by name, with a field more."""

        label: str
        score: int = 0


def look_up(word: str) -> str:
    """Look a word up."""
    return word


def changed_look_up() -> Callable[..., str]:
    """A tool of the same name with other code."""

    def look_up(word: str) -> str:
        """Look a word up."""
        return word.upper()

    return look_up


class Agent:
    """Answers every agent step the same, and notes which it was."""

    version = "1"

    def __init__(self) -> None:
        self.ran: list[str] = []

    async def run(self, step: PipelineStep, context: StepContext) -> Any:
        self.ran.append(step.name)
        return {"label": "good"}


def judged(
    *,
    first: str = "load",
    load: str = "[1, 2]",
    goal: str = "Judge",
    options: dict[str, Any] | None = None,
    pipeline_options: dict[str, Any] | None = None,
    constraint: str = "",
    order: tuple[int, ...] = (0, 1, 2),
    more: bool = False,
) -> Pipeline:
    """A list, an agent that judges it, and what is made of the answer."""
    pipeline = Pipeline("judged", **{"model": "test", **(pipeline_options or {})})
    if constraint:
        pipeline.constraint(constraint)
    settings: dict[str, Any] = {"output_schema": Verdict, "tools": [look_up], **(options or {})}
    made = [
        PipelineStep.from_cell(first, f"ran({first!r})\n{load}", python=True),
        PipelineStep.from_cell("ask", f"{goal} {{{{ {first} }}}}", **settings),
        PipelineStep.from_cell("end", "ran('end')\nask.label + suffix", python=True),
    ]
    for number in order:
        pipeline.put(made[number])
    if more:
        pipeline.put(PipelineStep.from_cell("more", "ran('more')\nend * 2", python=True))
    return pipeline


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "goal": ({"goal": "Weigh"}, {}, {"ask"}),
    "order": ({"order": (2, 0, 1)}, {}, set()),
    "rename": ({"first": "read"}, {}, {"read", "ask"}),
    "add": ({"more": True}, {}, {"more"}),
    "remove": ({"order": (0, 1)}, {}, set()),
    "schema": ({"options": {"output_schema": _Wider.Verdict}}, {}, {"ask", "end"}),
    "tools": ({"options": {"tools": [look_up, len]}}, {}, {"ask"}),
    "code of a tool": ({"options": {"tools": [changed_look_up()]}}, {}, {"ask"}),
    "model": ({"options": {"model": "openai:gpt-5-mini"}}, {}, {"ask"}),
    "settings": ({"options": {"settings": {"temperature": 0.5}}}, {}, {"ask"}),
    "constraint": ({"constraint": "Be brief."}, {}, {"ask"}),
    "body": ({"load": "[2 - 1, 2]"}, {}, {"load"}),
    "value": ({"load": "[1, 3]"}, {}, {"load", "ask"}),
    "global": ({}, {"suffix": "?"}, {"end"}),
    "comment": ({"load": "# all of them\n[1, 2]"}, {}, set()),
    "time-out": ({"options": {"timeout": 9.0, "max_retries": 7}}, {}, set()),
}
"""What is changed, in definition and namespace, and what runs again. Equal answers cut off what follows."""


@pytest.mark.parametrize("change", CHANGES)
async def test_a_definition_changed_between_two_sessions(change: str, tmp_path: Path) -> None:
    """What is the same is reused, what changed runs again, and nothing else. Without a say it is refused."""
    agent = Agent()

    async def go(pipeline: Pipeline, names: dict[str, Any], **options: Any) -> Any:
        agent.ran.clear()
        executor = PipelineExecutor(
            pipeline,
            storage=f"sqlite:///{tmp_path}/runs.db?durability=fast",
            namespace={"ran": agent.ran.append, "suffix": "!", **names},
            runners={"agent": agent},
            schemas=[Verdict],
        )
        try:
            return await executor.execute(**options)
        finally:
            await executor.storage.close()

    first = await go(judged(), {})
    assert agent.ran == ["load", "ask", "end"]
    definition, names, expected = CHANGES[change]
    if expected and change not in ("add", "rename"):
        with pytest.raises(ResumeConflictError):
            await go(judged(**definition), names, resume=True)
        assert agent.ran == []
    again = await go(judged(**definition), names, resume=True, on_change="rerun")
    assert (again.success, again.run_id) == (True, first.run_id)
    assert len(agent.ran) == len(set(agent.ran))
    report(f"definition changed ({change})", 1, len(set(agent.ran) ^ expected))


# -- equal questions ---------------------------------------------------------------------------


async def test_equal_questions_at_once_make_one_call(tmp_path: Path, repetitions: Repetitions) -> None:
    """Steps and items that ask the same of an empty cache share one answer; if that fails, the next asks."""
    count, wrong = repetitions(3, 50), 0
    for n in range(count):
        calls = 0

        class Slow:
            version = "1"

            async def run(self, step: PipelineStep, context: StepContext) -> Any:
                nonlocal calls
                calls += 1
                mine = calls
                for _ in range(20):
                    await asyncio.sleep(0)
                if mine == 1:
                    raise ValueError("the first fails")
                return "answer"

        pipeline = Pipeline("equal", model="test", default_mode=ExecutionMode.CONCURRENT)
        pipeline.put(PipelineStep.from_cell("rows", "['same'] * 10", python=True))
        pipeline.step("mapped", "Say {{ item }}.", map_over="rows", max_retries=0, min_success=0.5)
        for number in range(10):
            pipeline.step(f"s{number}", "Say it.", max_retries=0)
        cache = ResultCache(tmp_path / str(n))
        result = await PipelineExecutor(pipeline, cache=cache, runners={"agent": Slow()}).execute()
        cache.close()
        answers = [
            *(result.get_step_output("mapped") or []),
            *(result.get_step_output(f"s{i}") for i in range(10)),
        ]
        # The failed call, and one for each of the two questions; no one else asked.
        wrong += calls != 3 or answers.count("answer") != 19
    report("equal questions at once", count, wrong)


# -- killed in the middle of a map -------------------------------------------------------------


@pytest.mark.parametrize("url", BACKENDS, indirect=True)
async def test_killed_in_the_middle_of_a_map(url: str, tmp_path: Path, repetitions: Repetitions) -> None:
    """What is recorded never runs again. Of what had ended, little enough was not recorded."""
    count, injected, lost, most = repetitions(4, 100), 0, 0, 0
    effects, pipeline_id = tmp_path / "effects", mapped().id
    while injected < count:
        effects.write_text("")
        recorded: set[str] = set()
        seen, output, patience = 0, "", 0.15
        while "done" not in output:
            child = Child("run_map", url, str(effects))
            assert child.hear() == "go"
            time.sleep(random.random() * patience)
            # On a busy machine it needs longer to come any further.
            patience *= 1.1
            output = " ".join(child.kill())
            injected += "done" not in output
            ran = effects.read_text().split()
            session, seen = ran[seen:], len(ran)
            lost += len(set(session) & recorded) + len(session) - len(set(session))
            storage = open_storage(url)
            runs = await storage.runs(pipeline_id)
            items = await finished_items(storage, pipeline_id, runs[-1].run_id) if runs else []
            await storage.close()
            lost += len(items) - len(set(items)) + len(recorded - set(items))
            recorded = set(items)
            most = max(most, len(set(session) - recorded))
        assert f"done True {ROWS}" in output
        assert len(recorded) == ROWS
        storage = open_storage(url)
        await storage.delete_run(pipeline_id, runs[-1].run_id)
        await storage.close()
    print(f"\nat most {most} rows had ended without being recorded")
    assert most <= AHEAD + ROWS_AT_ONCE
    report(f"SIGKILL in the middle of a map ({kind_of(url)})", injected, lost)


class Rows:
    """Counts the rows that ran. With a lock it is no part of a fingerprint."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.ran: list[int] = []

    async def note(self, row: int) -> int:
        for _ in range(row % 3):
            await asyncio.sleep(0)
        self.ran.append(row)
        return row


@pytest.mark.parametrize("way", ["run", "task"])
@pytest.mark.parametrize("url", BACKENDS[:2], indirect=True)
async def test_cancelled_at_every_turn_of_a_map(
    url: str, way: str, tmp_path: Path, repetitions: Repetitions
) -> None:
    """What had ended is recorded and never runs again, nothing is left running, and the run goes on."""
    count, lost = repetitions(8, 200), 0
    pipeline = Pipeline("turns")
    pipeline.put(PipelineStep.from_cell("rows", "list(range(100))", python=True))
    pipeline.put(PipelineStep.from_cell("each", "await note(item)", python=True, map_over="rows"))
    storage = open_storage(url, durability="fast")
    cache = ResultCache(tmp_path / "cache")
    for turn in range(0, 400, 400 // count):
        rows = Rows()
        names = {"note": rows.note, "turn": turn}
        executor = PipelineExecutor(
            pipeline, storage=storage, namespace=names, max_concurrency=4, cache=cache
        )
        running = asyncio.ensure_future(executor.execute(use_cache=turn % 2 == 0))
        for _ in range(turn):
            await asyncio.sleep(0)
        if way == "run":
            executor.cancel()
        else:
            running.cancel()
        with contextlib.suppress(asyncio.CancelledError, RunError):
            await running
        lost += executor.running
        ended, rows.ran = rows.ran, []
        runs = await storage.runs(pipeline.id)
        if runs:
            items = await finished_items(storage, pipeline.id, runs[-1].run_id)
            lost += sorted(items, key=int) != [str(row) for row in sorted(ended)]
            again = await executor.execute(resume=True)
            lost += again["each"] != list(range(100)) or bool(set(rows.ran) & set(ended))
            await storage.delete_run(pipeline.id, runs[-1].run_id)
        cache.clear()
    cache.close()
    await storage.close()
    report(f"map cancelled at a turn of the loop ({kind_of(url)}, {way})", count, lost)


async def finished_items(storage: StorageBackend, pipeline_id: str, run_id: str) -> list[str]:
    """The items that a run has recorded, in order."""
    events = await storage.read_run(pipeline_id, run_id)
    return [event.item for event in events if isinstance(event, StepFinished) and event.item is not None]


# -- locks and writers beside it ---------------------------------------------------------------


async def test_a_write_lock_held_elsewhere_for_3_seconds(tmp_path: Path, repetitions: Repetitions) -> None:
    """The run waits and goes on, and its loop does other things meanwhile."""
    seconds, lost = repetitions(1, 3), 0
    path = tmp_path / "runs.db"
    other: list[sqlite3.Connection] = []

    def note(name: str, before: object) -> str:
        if name == "s3":
            other.append(sqlite3.connect(path, isolation_level=None, check_same_thread=False))
            other[0].execute("BEGIN IMMEDIATE")
        return name

    storage = open_storage(f"sqlite:///{path}", durability="fast")
    cache = ResultCache(tmp_path / "cache")
    executor = PipelineExecutor(steps(), storage=storage, cache=cache, namespace={"note": note})
    running = asyncio.ensure_future(executor.execute())
    while not other:
        await asyncio.sleep(0)
    until, turns, longest, last = time.monotonic() + seconds, 0, 0.0, time.monotonic()
    while time.monotonic() < until:
        await asyncio.sleep(0.01)
        turns += 1
        longest = max(longest, time.monotonic() - last)
        last = time.monotonic()
    assert not running.done()
    # Even on a busy machine: a loop that is held up by the lock would not turn at all.
    assert turns > 10
    other[0].execute("ROLLBACK")
    other[0].close()
    result = await running
    lost = STEPS - len(await finished(storage, executor.pipeline.id, result.run_id))
    await storage.close()
    cache.close()
    print(f"\nlongest pause of the loop: {longest * 1000:.0f} ms")
    report(f"write lock held elsewhere for {seconds} s", 1, lost)


@pytest.mark.parametrize("url", BACKENDS, indirect=True)
async def test_retention_and_backup_beside_a_writer(
    url: str, tmp_path: Path, repetitions: Repetitions
) -> None:
    """While another process records run after run: restored copies are intact, and what should stay stays."""
    count, lost = repetitions(15, 150), 0
    storage = open_storage(url, durability="fast")
    assert isinstance(storage, RecordStoreBackend)
    child = Child("churn", url, str(count))
    assert child.hear() == "go"
    child.tell("now")
    heard = asyncio.ensure_future(asyncio.to_thread(child.end))
    made = 0
    while not heard.done():
        await storage.prune("p", keep_last=5)
        await storage.backup(tmp_path / "backups", keep=2)
        made += 1
    await heard
    await storage.backup(tmp_path / "backups", keep=2)
    for info in await storage.backups(tmp_path / "backups"):
        lost += info.problem is not None
        copy = open_storage(tmp_path / f"copy-{info.path.name}")
        assert isinstance(copy, RecordStoreBackend)
        await copy.restore(info.path)
        for run in await copy.runs("p"):
            # A backup has of each run what was recorded by then: its beginning, without a gap.
            outcome = await finished(copy, "p", run.run_id)
            lost += outcome != [f"s{n}" for n in range(len(outcome))]
        await copy.close()
    runs = await storage.runs("p")
    lost += runs[-1].run_id != f"r{count - 1:04}"
    for run in runs[-5:]:
        lost += await finished(storage, "p", run.run_id) != ["s0", "s1", "s2"]
    # Only the rules of the last moment may have left more.
    assert all(run.status == "completed" for run in runs)
    await storage.prune("p", keep_last=5)
    assert len(await storage.runs("p")) == 5
    lost += len(storage.problems)
    await storage.close()
    report(f"retention and backup beside a writer ({kind_of(url)}), {made} times", count, lost)


async def test_a_cache_at_its_limit_keeps_what_the_run_needs(tmp_path: Path) -> None:
    """While it goes on, nothing that it has paid for is removed, however far the limit is passed."""
    cache = ResultCache(tmp_path / "cache", size_limit=200_000)
    seen: list[Event] = []
    missing: list[str] = []

    def check() -> int:
        cache.flush()
        keys = [event.key for event in seen if isinstance(event, StepFinished)]
        missing.extend(key for key in keys if cache.get(key) is None)
        return len(keys)

    pipeline = Pipeline("big")
    for n in range(12):
        above = f"len(s{n - 1})" if n else "0"
        pipeline.put(PipelineStep.from_cell(f"s{n}", f"str({above}) + 'x' * 50_000", python=True))
    pipeline.put(PipelineStep.from_cell("check", "s11\ncheck()", python=True))
    executor = PipelineExecutor(pipeline, cache=cache, observers=[seen.append], namespace={"check": check})
    result = await executor.execute()
    assert result["check"] == 12
    assert cache.stats().size <= 200_000
    assert any("size_limit" in warning for warning in result.warnings)
    cache.close()
    report("cache at its limit in the middle of a run", 12, len(missing))


@pytest.mark.requires("redis-server")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_forked_child_records_in_redis_on_its_own(tmp_path: Path) -> None:
    """It takes over no connection of its parent."""
    server = RedisServer(tmp_path, "--appendonly", "yes")
    with contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        storage = open_storage(server.url)

        async def record(text: str) -> None:
            await storage.append("p", "r", [Warned(run_id="r", message=text)])

        await record("parent")
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(record("child"))
                os._exit(0)
            finally:
                os._exit(1)
        deadline = time.monotonic() + 120
        while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < deadline, "the child hangs"
            await asyncio.sleep(0.01)
        assert os.waitstatus_to_exitcode(done[1]) == 0
        await record("parent again")
        events = await storage.read_run("p", "r")
        await storage.close()
    messages = [event.message for event in events if isinstance(event, Warned)]
    report("fork (redis)", 1, int(messages != ["parent", "child", "parent again"]))
