"""Peak memory of 10,000 steps on bare asyncio, in MB."""

from __future__ import annotations

import asyncio

from tests.benchmarks.fresh import peak
from tests.benchmarks.graphs import scattered
from tests.benchmarks.limits import bare


async def nothing(name: str) -> None:
    """Do nothing."""


asyncio.run(bare(scattered(10_000), nothing))
print(peak())
