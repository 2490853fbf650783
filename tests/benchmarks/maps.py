"""A map of an async function over 2,000 rows, 8 at once: kept in memory, cached, and recorded."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

import diskcache
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

from tagent_nb import (
    ExecutionMode,
    FileStorageBackend,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    ResultCache,
    SQLiteStorageBackend,
    StorageBackend,
)
from tagent_nb.notebook.panel.controller import Panel
from tagent_nb.notebook.session import Session
from tests.benchmarks.limits import sqlite_table
from tests.benchmarks.measure import Side, Sides, benchmark

ROWS = 2000
AT_ONCE = 8


async def seen(row: int) -> str:
    await asyncio.sleep(0)
    return f"{row} seen"


def _add_steps(pipeline: Pipeline, count: int = ROWS) -> Pipeline:
    @pipeline.task
    async def rows() -> list[int]:
        return list(range(count))

    @pipeline.task(map_over="rows", name="seen")
    async def each(rows: int) -> str:
        return await seen(rows)

    return pipeline


async def _run(
    pipeline: Pipeline, *, storage: StorageBackend | None = None, cache: ResultCache | None = None
) -> float:
    executor = PipelineExecutor(pipeline, storage=storage, cache=cache or False, max_concurrency=AT_ONCE)
    began = time.process_time()
    result = await executor.execute()
    if storage is not None:
        await storage.close()
    if cache is not None:
        cache.close()
    taken = time.process_time() - began
    assert result.success
    assert result.step_outputs["seen"][-1] == f"{ROWS - 1} seen"
    return taken


def _timed(work: Callable[[], Awaitable[None]]) -> float:
    """CPU seconds of all threads."""

    async def timed() -> float:
        began = time.process_time()
        await work()
        return time.process_time() - began

    return asyncio.run(timed())


def _by_hand(keep: Callable[[int, str], object]) -> Callable[[], Awaitable[None]]:
    """Each row's value under a semaphore, and kept at once."""

    async def gathered() -> None:
        slots = asyncio.Semaphore(AT_ONCE)

        async def limited(row: int) -> str:
            async with slots:
                value = await seen(row)
                keep(row, value)
                return value

        await asyncio.gather(*map(limited, range(ROWS)))

    return gathered


def _key(row: int) -> str:
    return hashlib.sha256(json.dumps(["seen", row]).encode()).hexdigest()


def _in_folder(side: Callable[[Path], float]) -> Side:
    def call() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return side(Path(folder))

    return call


@benchmark(
    "map-memory",
    "map, 2,000 rows, memory",
    limit="gather under a semaphore",
    promised=2.2,
    reach=2.0,
    dream=1.4,
    each=ROWS,
)
def memory() -> Sides:
    pipeline = _add_steps(Pipeline("map"))
    return Sides(lambda: asyncio.run(_run(pipeline)), lambda: _timed(_by_hand(lambda row, value: None)))


@benchmark(
    "map-cache-cold",
    "map, 2,000 rows, none cached",
    limit="diskcache keyed set",
    promised=0.9,
    reach=1.0,
    dream=0.6,
    each=ROWS,
)
def cold() -> Sides:
    pipeline = _add_steps(Pipeline("map"))

    def limit(folder: Path) -> float:
        with diskcache.Cache(str(folder)) as cache:
            return _timed(_by_hand(lambda row, value: cache.set(_key(row), value)))

    return Sides(
        _in_folder(lambda folder: asyncio.run(_run(pipeline, cache=ResultCache(folder / "cache")))),
        _in_folder(limit),
    )


@benchmark(
    "map-cache-warm",
    "map, 2,000 rows, all cached",
    limit="diskcache keyed get",
    promised=2.4,
    reach=2.0,
    dream=1.9,
    each=ROWS,
)
def warm() -> Sides:
    pipeline = _add_steps(Pipeline("map"))
    # It goes when no one refers to it any more.
    home = tempfile.TemporaryDirectory()
    folder = Path(home.name)
    asyncio.run(_run(pipeline, cache=ResultCache(folder / "ours")))
    with diskcache.Cache(str(folder / "raw")) as cache:
        for row in range(ROWS):
            cache.set(_key(row), f"{row} seen")

    def limit() -> float:
        with diskcache.Cache(str(folder / "raw")) as cache:

            async def gathered() -> None:
                slots = asyncio.Semaphore(AT_ONCE)

                async def limited(row: int) -> str:
                    async with slots:
                        return str(cache.get(_key(row)))

                await asyncio.gather(*map(limited, range(ROWS)))

            return _timed(gathered)

    return Sides(lambda: asyncio.run(_run(pipeline, cache=ResultCache(folder / "ours"))), limit)


def _recorded(
    open_storage: Callable[[Path], StorageBackend], by_hand: Callable[[Path], Callable[[int, str], object]]
) -> Sides:
    pipeline = _add_steps(Pipeline("map"))
    return Sides(
        _in_folder(lambda folder: asyncio.run(_run(pipeline, storage=open_storage(folder)))),
        _in_folder(lambda folder: _timed(_by_hand(by_hand(folder)))),
    )


@benchmark(
    "map-file",
    "map, 2,000 rows, file journal, fast",
    limit="appended JSON lines",
    promised=4.5,
    reach=5.0,
    dream=3.0,
    each=ROWS,
)
def file() -> Sides:
    def by_hand(folder: Path) -> Callable[[int, str], object]:
        file = (folder / "rows").open("ab", buffering=0)
        return lambda row, value: file.write(json.dumps({"row": row, "value": value}).encode() + b"\n")

    return _recorded(lambda folder: FileStorageBackend(folder, durability="fast"), by_hand)


def _in_sqlite(durability: Literal["full", "fast"], synchronous: str) -> Sides:
    def by_hand(folder: Path) -> Callable[[int, str], object]:
        base = sqlite_table(folder / "rows.db", synchronous, "items (row INTEGER PRIMARY KEY, value TEXT)")
        return lambda row, value: base.execute("INSERT INTO items VALUES (?, ?)", (row, json.dumps(value)))

    return _recorded(lambda folder: SQLiteStorageBackend(folder / "runs.db", durability=durability), by_hand)


@benchmark(
    "map-sqlite-fast",
    "map, 2,000 rows, SQLite, fast",
    limit="INSERT and commit a row, NORMAL",
    promised=2.6,
    reach=2.5,
    dream=1.5,
    each=ROWS,
)
def sqlite_fast() -> Sides:
    return _in_sqlite("fast", "NORMAL")


@benchmark(
    "map-sqlite-full",
    "map, 2,000 rows, SQLite, full",
    limit="INSERT and commit a row, FULL",
    promised=1,
    reach=1.0,
    dream=0.5,
    each=ROWS,
)
def sqlite_full() -> Sides:
    return _in_sqlite("full", "FULL")


MANY = 5000


@benchmark(
    "map-panel",
    "5,000 cached rows, panel open",
    limit="the same run without",
    promised=1.3,
    reach=1.05,
    dream=1.02,
    each=MANY,
    large=True,
)
def panel() -> Sides:
    """Without a page: what the kernel does for one. ``tests/browser/measure_clicks.py`` has a page."""
    InteractiveShell.instance().display_pub = CapturingDisplayPublisher()
    # It goes when no one refers to it any more.
    home = tempfile.TemporaryDirectory()

    def side(shown: bool) -> float:
        # A new notebook with the answers of an old one: there are no earlier runs to be read.
        session = Session({}, folder=Path(home.name))
        session.use("rows", storage="memory:")
        pipeline = session.workspace.pipeline
        pipeline.default_mode = ExecutionMode.CONCURRENT
        _add_steps(pipeline, MANY)
        view = Panel(session, session.workspace, live=True) if shown else None
        if view is not None:
            view.show()
        start = session.start if view is None else view.start
        began = time.process_time()
        result: PipelineResult = start().result()
        taken = time.process_time() - began
        assert result.success
        if view is not None and view.feed is not None:
            view.feed.drawn.wait()
            view.close()
        session.cache.close()
        return taken

    side(shown=False)
    return Sides(lambda: side(True), lambda: side(False))
