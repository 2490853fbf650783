"""A run of two steps and its resume, among 5,000 stored runs and among one."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tagent_nb import FileStorageBackend, Pipeline, PipelineExecutor, SQLiteStorageBackend, StorageBackend
from tests.benchmarks.measure import Side, Sides, benchmark

RUNS = 5000


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
    # It goes when nobody refers to it any more.
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
    promised=1.5,
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
