"""A record after each of 1,000 chained steps of 2 KB, in time of the processor."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tagent_nb import FileStorageBackend, PipelineExecutor, SQLiteStorageBackend, StorageBackend
from tests.benchmarks.fresh import written
from tests.benchmarks.limits import insert_records
from tests.benchmarks.measure import Side, Sides, benchmark
from tests.benchmarks.pipelines import RECORDS, record_chain
from tests.benchmarks.records import Record, following

MB = 1e6


def _recorded(
    open_storage: Callable[[Path], StorageBackend], by_hand: Callable[[Path], None], most: float
) -> Sides:
    home = tempfile.TemporaryDirectory()
    pipeline = record_chain(Path(home.name))
    sizes: list[int] = []

    async def ours(folder: Path) -> float:
        storage = open_storage(folder)
        began, before = time.process_time(), written()
        result = await PipelineExecutor(pipeline, storage=storage).execute()
        await storage.close()
        taken = time.process_time() - began
        sizes.append(written() - before)
        assert result.success
        return taken

    def limit(folder: Path) -> float:
        began = time.process_time()
        by_hand(folder)
        return time.process_time() - began

    def in_folder(side: Callable[[Path], float]) -> Side:
        def call() -> float:
            with tempfile.TemporaryDirectory(dir=home.name) as folder:
                return side(Path(folder))

        return call

    def note() -> str:
        return (
            f"{statistics.median(sizes) / MB:.1f} MB written for 2 MB of values (reach: at most {most:g} MB)"
        )

    return Sides(in_folder(lambda folder: asyncio.run(ours(folder))), in_folder(limit), note)


@benchmark(
    "journal",
    "checkpoint a step, file journal, fast",
    limit="appended JSON lines",
    promised=40,
    reach=10,
    dream=5,
    each=RECORDS,
)
def journal() -> Sides:
    def by_hand(folder: Path) -> None:
        record: Record | None = None
        with (folder / "journal").open("ab", buffering=0) as file:
            for n in range(RECORDS):
                record = following(record)
                file.write(json.dumps({"step": f"s{n}", "output": record}).encode() + b"\n")

    return _recorded(lambda folder: FileStorageBackend(folder, durability="fast"), by_hand, most=3.5)


@benchmark(
    "sqlite",
    "checkpoint a step, SQLite, fast",
    limit="INSERT and commit a step",
    promised=11,
    reach=4,
    dream=2,
    each=RECORDS,
)
def sqlite() -> Sides:
    return _recorded(
        lambda folder: SQLiteStorageBackend(folder / "runs.db", durability="fast"),
        lambda folder: insert_records(folder, RECORDS),
        most=8,
    )
