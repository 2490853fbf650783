"""What grows: runs among many stored ones, the time of a unit among many, and the memory of a mapped row."""

from __future__ import annotations

import asyncio
import gc
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tagent_nb import (
    ExecutionMode,
    FileStorageBackend,
    MemoryStorageBackend,
    Pipeline,
    PipelineExecutor,
    SQLiteStorageBackend,
    StorageBackend,
)
from tests.benchmarks.graphs import chain
from tests.benchmarks.measure import Side, Sides, benchmark
from tests.benchmarks.pipelines import no_ops

RUNS = 5000
ROWS = 2000
MANY, FEW = 100_000, 1000


def _pipeline() -> Pipeline:
    pipeline = Pipeline("growth")

    @pipeline.task
    async def one() -> int:
        return 1

    @pipeline.task
    async def two(one: int) -> int:
        return one + 1

    return pipeline


async def _fill(storage: StorageBackend, pipeline: Pipeline, count: int) -> None:
    """Store a run so many times, under other names."""
    made = await PipelineExecutor(pipeline, storage=storage).execute()
    events = await storage.read_run(pipeline.id, made.run_id)
    for number in range(count - 1):
        run_id = f"run-{number}"
        await storage.append(pipeline.id, run_id, [replace(event, run_id=run_id) for event in events])
    await storage.close()


def _grown(open_storage: Callable[[Path], StorageBackend]) -> Sides:
    # It goes when no one refers to it any more.
    home = tempfile.TemporaryDirectory()
    pipeline = _pipeline()
    listing: list[float] = []

    def side(count: int) -> Side:
        asyncio.run(_fill(open_storage(Path(home.name) / str(count)), pipeline, count))

        async def run() -> float:
            storage = open_storage(Path(home.name) / str(count))
            executor = PipelineExecutor(pipeline, storage=storage)
            began = time.process_time()
            made = await executor.execute()
            await executor.execute(resume=True)
            taken = time.process_time() - began
            assert made.success
            began = time.process_time()
            listed = len(await storage.runs(pipeline.id))
            assert listed == count + 1
            if count > 1:
                listing.append((time.process_time() - began) / listed)
            await storage.delete_run(pipeline.id, made.run_id)
            await storage.close()
            return taken

        return lambda: asyncio.run(run())

    def note() -> str:
        return f"listed at {statistics.median(listing) * 1e3:.3f} ms a run (reach: at most 0.15 ms)"

    return Sides(side(RUNS), side(1), note)


@benchmark(
    "runs-growth-file",
    "run and resume among 5,000 runs, file",
    limit="among one",
    reach=1.5,
    promised=1.7,
    dream=1.1,
    large=True,
)
def file() -> Sides:
    return _grown(lambda folder: FileStorageBackend(folder, durability="fast"))


@benchmark(
    "runs-growth-sqlite",
    "run and resume among 5,000 runs, SQLite",
    limit="among one",
    reach=1.5,
    promised=1.5,
    dream=1.1,
    large=True,
)
def sqlite() -> Sides:
    return _grown(lambda folder: SQLiteStorageBackend(folder / "runs.db", durability="fast"))


def _mapped(count: int, value: Callable[[int], object]) -> Pipeline:
    """A pipeline that maps a function over so many rows."""
    pipeline = Pipeline("rows", default_mode=ExecutionMode.CONCURRENT)

    @pipeline.task
    async def numbers() -> list[int]:
        return list(range(count))

    @pipeline.task(map_over="numbers")
    async def each(numbers: int) -> object:
        return value(numbers)

    return pipeline


def _time_of_a_unit(make: Callable[[int], Pipeline]) -> Sides:
    """Seconds for one unit of a pipeline of ``MANY``, and for one of ``FEW``."""

    def side(count: int) -> Side:
        pipeline = make(count)

        async def run() -> float:
            executor = PipelineExecutor(pipeline)
            began = time.process_time()
            result = await executor.execute()
            taken = time.process_time() - began
            assert result.success
            return taken / count

        return lambda: asyncio.run(run())

    return Sides(side(MANY), side(FEW))


@benchmark(
    "growth-steps",
    "a step of a chain of 100,000",
    limit="of 1,000",
    reach=1.3,
    promised=1.7,
    dream=1.1,
    large=True,
)
def steps() -> Sides:
    return _time_of_a_unit(lambda count: no_ops(chain(count)))


@benchmark(
    "growth-rows",
    "a row of a map of 100,000",
    limit="of 1,000",
    reach=1.3,
    promised=1.7,
    dream=1.1,
    large=True,
)
def rows() -> Sides:
    return _time_of_a_unit(lambda count: _mapped(count, lambda number: number))


def _text(number: int) -> str:
    return f"{number:06} ".ljust(100, "x")


def _kept(open_storage: Callable[[Path], StorageBackend]) -> Sides:
    """kB that the result of a map keeps, and kB of its values alone."""

    def traced(before: int) -> float:
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / 1e3

    async def run(folder: Path) -> float:
        storage = open_storage(folder)
        executor = PipelineExecutor(_mapped(ROWS, _text), storage=storage)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        result = await executor.execute()
        await storage.close()
        taken = traced(before)
        assert result.success
        return taken

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            tracemalloc.start()
            try:
                return asyncio.run(run(Path(folder)))
            finally:
                tracemalloc.stop()

    def limit() -> float:
        tracemalloc.start()
        try:
            values = list(map(_text, range(ROWS)))
            return traced(0) if values else 0.0
        finally:
            tracemalloc.stop()

    return Sides(ours, limit)


def _at_most(count: int) -> Side:
    """kB of a row at the moment when a map of so many needs the most, recorded in SQLite."""

    async def run(folder: Path) -> float:
        storage = SQLiteStorageBackend(folder / "runs.db", durability="fast")
        executor = PipelineExecutor(_mapped(count, _text), storage=storage)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        result = await executor.execute()
        taken = tracemalloc.get_traced_memory()[1] - before
        await storage.close()
        assert result.success
        return taken / 1e3 / count

    def side() -> float:
        with tempfile.TemporaryDirectory() as folder:
            tracemalloc.start()
            try:
                return asyncio.run(run(Path(folder)))
            finally:
                tracemalloc.stop()

    return side


@benchmark(
    "growth-memory",
    "most memory of a mapped row of 50,000, SQLite",
    limit="of 2,000",
    reach=1.05,
    promised=1.2,
    dream=1.0,
    unit="kB",
    large=True,
)
def most_memory() -> Sides:
    return Sides(_at_most(50_000), _at_most(ROWS))


@benchmark(
    "kept-memory",
    "kept a mapped row of 100 characters, memory",
    limit="the text alone",
    reach=5.1,
    promised=5.5,
    dream=3,
    unit="kB",
    each=ROWS,
)
def kept_in_memory() -> Sides:
    return _kept(lambda folder: MemoryStorageBackend())


@benchmark(
    "kept-sqlite",
    "kept a mapped row of 100 characters, SQLite",
    limit="the text alone",
    reach=8.3,
    promised=8.5,
    dream=5,
    unit="kB",
    each=ROWS,
)
def kept_with_sqlite() -> Sides:
    return _kept(lambda folder: SQLiteStorageBackend(folder / "runs.db", durability="fast"))
