"""Hamilton: its async driver for steps that do nothing, its cache, and a whole process."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from hamilton import ad_hoc_utils, async_driver

from tests.benchmarks.graphs import Graph, chain, fan, layered, scattered
from tests.benchmarks.limits import first_run, import_of, run_again, three_steps
from tests.benchmarks.measure import Sides
from tests.benchmarks.peers.limits import bare_side
from tests.benchmarks.peers.rows import peer_row

ASYNC = "Hamilton, async driver"
HERE = Path(__file__).parent / "programs"


def _driven(graph: Graph) -> Sides:
    names: dict[str, Any] = {}
    lines = (
        f"async def {name}({', '.join(f'{other}: int' for other in above)}) -> int: return {number}"
        for number, (name, above) in enumerate(graph.items())
    )
    exec("\n".join(lines), names)
    functions = [names[name] for name in graph]
    module = ad_hoc_utils.create_temporary_module(*functions, module_name=f"no_ops_{id(graph)}")

    async def theirs() -> float:
        driver = await async_driver.Builder().with_modules(module).build()
        began = time.process_time()
        values = await driver.execute(list(graph))
        taken = time.process_time() - began
        assert len(values) == len(graph)
        return taken

    return Sides(lambda: asyncio.run(theirs()), bare_side(graph))


@peer_row(ASYNC, "chain")
def hamilton_chain() -> Sides:
    return _driven(chain(1000))


@peer_row(ASYNC, "layered")
def hamilton_layered() -> Sides:
    return _driven(layered(50, 20))


@peer_row(ASYNC, "fan")
def hamilton_fan() -> Sides:
    return _driven(fan(1000))


@peer_row(ASYNC, "random")
def hamilton_random() -> Sides:
    return _driven(scattered(10_000))


CACHED = str(HERE / "cached_by_hamilton.py")


@peer_row("Hamilton, cache", "cache-first")
def cache_first() -> Sides:
    return first_run(CACHED)


@peer_row("Hamilton, cache", "cache-again")
def cache_again() -> Sides:
    return run_again(CACHED)


@peer_row("Hamilton", "import")
def whole_import() -> Sides:
    return import_of("from hamilton import driver")


@peer_row("Hamilton", "three-steps")
def small_pipeline() -> Sides:
    return three_steps(str(HERE / "three_steps_by_hamilton.py"))
