"""Peak memory of 10,000 steps on the engine, in MB."""

from __future__ import annotations

import asyncio

from tagent_nb import PipelineExecutor
from tests.benchmarks.fresh import peak
from tests.benchmarks.graphs import scattered
from tests.benchmarks.limits import accept
from tests.benchmarks.pipelines import no_ops

graph = scattered(10_000)
# One function for all: to compile 10,000 takes more memory than to run them.
result = asyncio.run(PipelineExecutor(no_ops(graph, dict.fromkeys(graph, accept))).execute())
assert result.success
print(peak())
