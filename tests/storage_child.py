"""What the processes do that tests of storage start and kill.

``python storage_child.py DESCRIPTOR`` starts a nursery: a process that has imported everything, and becomes
such a process by a fork whenever a test asks for one. To start interpreters would take most of the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from tagent_nb import Pipeline, PipelineExecutor, PipelineStep
from tagent_nb.errors import LeaseLostError
from tagent_nb.events import Event, RunFinished, RunStarted, StepFinished, Warned
from tagent_nb.serde import StoredValue
from tagent_nb.storage import RecordStoreBackend, StorageBackend, open_storage

STEPS = 12
ROWS = 400
ROWS_AT_ONCE = 8


def say(*words: object) -> None:
    """Tell the test."""
    print(*words, flush=True)


async def record(storage: StorageBackend) -> None:
    """Carry on run ``r``, and name each step once it is recorded, until this process is ended."""
    lease = await storage.acquire("p", "r")
    done = 0
    if await storage.runs("p"):
        done = sum(isinstance(event, StepFinished) for event in await storage.read_run("p", "r"))
    else:
        await storage.append("p", "r", [RunStarted(run_id="r", pipeline="p", steps=())], token=lease.token)
    say("go")
    while True:
        event = StepFinished(
            run_id="r", step=f"s{done}", output=StoredValue.of({"n": done, "text": "x" * 500})
        )
        await storage.append("p", "r", [event], token=lease.token)
        say(done)
        done += 1


async def many(storage: StorageBackend, run_id: str, count: str) -> None:
    """Record ``count`` steps into a run of its own, as soon as the test says so."""
    say("go")
    sys.stdin.readline()
    lease = await storage.acquire("p", run_id)
    for n in range(int(count)):
        event = StepFinished(run_id=run_id, step=f"s{n}", output=StoredValue.of("x" * 500))
        await storage.append("p", run_id, [event], token=lease.token)
    await storage.release(lease)
    say("done")


async def churn(storage: StorageBackend, count: str) -> None:
    """Record ``count`` short runs one after the other, as soon as the test says so."""
    say("go")
    sys.stdin.readline()
    for n in range(int(count)):
        run_id = f"r{n:04}"
        lease = await storage.acquire("p", run_id)
        events: list[Event] = [RunStarted(run_id=run_id, pipeline="p", steps=("s0", "s1", "s2"))]
        for step in ("s0", "s1", "s2"):
            events.append(StepFinished(run_id=run_id, step=step, output=StoredValue.of("x" * 500)))
            await storage.append("p", run_id, events, token=lease.token)
            events = []
        await storage.append("p", run_id, [RunFinished(run_id=run_id, success=True)], token=lease.token)
        await storage.release(lease)


async def turnover(storage: StorageBackend, name: str) -> None:
    """Begin runs, name each once it is recorded, and delete every fourth, until this process is ended."""
    say("go")
    sys.stdin.readline()
    for n in itertools.count():
        run_id = f"{name}{n}"
        lease = await storage.acquire("p", run_id)
        await storage.append("p", run_id, [Warned(run_id=run_id, message="x")], token=lease.token)
        await storage.release(lease)
        say(run_id)
        assert await storage.newest_run("p") is not None
        if n % 4 == 3:
            await storage.delete_run("p", run_id)


async def leave(storage: StorageBackend) -> None:
    """Record a few runs that none of them ends, save something, and wait to be killed."""
    await storage.save("p", {"saved": 0})
    leases = [await storage.acquire("p", f"r{n}") for n in range(4)]
    for n in range(24):
        event = StepFinished(run_id=f"r{n % 4}", step=f"s{n // 4}", output=StoredValue.of("x" * (n * 97)))
        await storage.append("p", event.run_id, [event], token=leases[n % 4].token)
    await storage.save("p", {"saved": 1})
    say("go")
    sys.stdin.readline()


async def claim(storage: StorageBackend) -> None:
    """Claim each run that the test names, and say whether it was granted."""
    say("go")
    while run_id := (await asyncio.to_thread(sys.stdin.readline)).strip():
        try:
            lease = await storage.acquire("p", run_id)
        except LeaseLostError as error:
            say("lost", error)
        else:
            await storage.append("p", run_id, [Warned(run_id=run_id, message="mine")], token=lease.token)
            say("won", os.getpid())


async def hang(storage: StorageBackend) -> None:
    """Record once; and once more when the test says so, which must fail."""
    storage.lease_ttl = 0.2
    lease = await storage.acquire("p", "r")
    await storage.append("p", "r", [Warned(run_id="r", message="before")], token=lease.token)
    say("go")
    sys.stdin.readline()
    try:
        await storage.append("p", "r", [Warned(run_id="r", message="late")], token=lease.token)
    except LeaseLostError as error:
        say("lost", error)
    else:
        say("recorded")


async def restore(storage: StorageBackend, folder: str) -> None:
    """Take everything back from the backup in a folder, as soon as the test says so."""
    assert isinstance(storage, RecordStoreBackend)
    await storage.list_pipelines()
    say("go")
    sys.stdin.readline()
    await storage.restore(folder=folder, replace=True)
    say("done")


def steps() -> Pipeline:
    """Twelve steps, one after the other, each of which notes that it ran."""
    pipeline = Pipeline("kill me")
    for n in range(STEPS):
        cell = f"note('s{n}', {f's{n - 1}' if n else None})"
        pipeline.put(PipelineStep.from_cell(f"s{n}", cell, python=True))
    return pipeline


async def run(storage: StorageBackend, effects: str) -> None:
    """Run the pipeline, or carry on where the last process was ended."""

    def note(name: str, before: object) -> str:
        with Path(effects).open("a") as file:
            file.write(name + "\n")
        time.sleep(0.003)
        return name + "x" * 2000

    pipeline = steps()
    executor = PipelineExecutor(pipeline, storage=storage, namespace={"note": note})
    resume = bool(await storage.runs(pipeline.id))
    say("go")
    result = await executor.execute(resume=resume)
    say("done", result.success, len(result.step_outputs))


def mapped() -> Pipeline:
    """A step over many rows, each of which notes that it ran."""
    pipeline = Pipeline("kill my map")
    pipeline.put(PipelineStep.from_cell("rows", f"list(range({ROWS}))", python=True))
    pipeline.put(PipelineStep.from_cell("each", "await note(item)", python=True, map_over="rows"))
    pipeline.put(PipelineStep.from_cell("count", "len(each)", python=True))
    return pipeline


async def run_map(storage: StorageBackend, effects: str) -> None:
    """Run the map, or carry on where the last process was ended."""
    file = os.open(effects, os.O_APPEND | os.O_WRONLY)

    async def note(row: int) -> str:
        await asyncio.sleep(0.0005 * (row % 7))
        os.write(file, b"%d\n" % row)
        return f"{row} " + "x" * 200

    pipeline = mapped()
    executor = PipelineExecutor(
        pipeline, storage=storage, namespace={"note": note}, max_concurrency=ROWS_AT_ONCE
    )
    resume = bool(await storage.runs(pipeline.id))
    say("go")
    result = await executor.execute(resume=resume)
    say("done", result.success, result["count"])


def nursery(descriptor: int) -> list[str]:
    """Start processes, and wait for their end, as a test asks through a socket.

    Returns:
        In such a process, what it is to do; in the nursery nothing, when the test has ended.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("redis.asyncio")
    with socket.socket(fileno=descriptor) as test:
        while True:
            message, descriptors, _, _ = socket.recv_fds(test, 65_536, 2)
            if not message:
                return []
            wish, *words = json.loads(message)
            if wish == "wait":
                answer = os.waitstatus_to_exitcode(os.waitpid(int(words[0]), 0)[1])
            else:
                answer = os.fork()
                if answer == 0:
                    for place, end in enumerate(descriptors):
                        os.dup2(end, place)
                        os.close(end)
                    return list(words)
            for end in descriptors:
                os.close(end)
            test.send(str(answer).encode())


def main() -> None:
    """Be a nursery, and each process that it starts."""
    words = nursery(int(sys.argv[1]))
    if not words:
        return
    what, url, *rest = words
    storage = open_storage(url, durability=os.environ.get("DURABILITY", "fast"))  # type: ignore[arg-type]
    verbs: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
        "record": record, "many": many, "churn": churn, "claim": claim, "hang": hang, "restore": restore,
        "run": run, "run_map": run_map, "leave": leave, "turnover": turnover,
    }  # fmt: skip
    asyncio.run(verbs[what](storage, *rest))


if __name__ == "__main__":
    main()
