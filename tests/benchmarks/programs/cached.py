"""CPU seconds that a chain of records takes with the result cache in the folder that is given.

The process has not seen these steps before. What is imported at first use is not counted, on
neither side: imports have benchmarks of their own.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from tagent_nb import Pipeline, PipelineExecutor, ResultCache
from tests.benchmarks.pipelines import RECORDS, record_chain

folder = Path(sys.argv[1])
hits = RECORDS if sys.argv[2] == "again" else 0


async def one() -> dict[str, int]:
    return {"number": 0}


async def run(pipeline: Pipeline, cache: ResultCache) -> dict[str, int]:
    result = await PipelineExecutor(pipeline, cache=cache).execute()
    last: dict[str, int] = result.step_outputs[pipeline.steps[-1].name]
    cache.close()
    return last


async def main() -> float:
    warm = Pipeline("warm")
    warm.task(one)
    await run(warm, ResultCache(folder / "warm"))
    pipeline = record_chain(folder)
    began = time.process_time()
    cache = ResultCache(folder / "cache")
    last = await run(pipeline, cache)
    taken = time.process_time() - began
    assert last["number"] == RECORDS - 1
    assert cache.hits == hits
    return taken


print(asyncio.run(main()))
