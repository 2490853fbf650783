"""Peak memory of 10,000 steps on the engine, in MB."""

from __future__ import annotations

import asyncio

from tagent_nb import PipelineExecutor
from tests.benchmarks.fresh import peak
from tests.benchmarks.graphs import scattered
from tests.benchmarks.pipelines import no_ops

result = asyncio.run(PipelineExecutor(no_ops(scattered(10_000))).execute())
assert result.success
print(peak())
