"""Peak memory of 10,000 steps on bare asyncio, in MB."""

from __future__ import annotations

import asyncio

from tests.benchmarks.fresh import peak
from tests.benchmarks.graphs import scattered
from tests.benchmarks.limits import accept, bare

graph = scattered(10_000)
values = asyncio.run(bare(graph, dict.fromkeys(graph, accept)))
assert len(values) == len(graph)
print(peak())
