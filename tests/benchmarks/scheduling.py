"""The scheduler by itself."""

from __future__ import annotations

import time

from tagent_nb import Pipeline, PipelineScheduler
from tagent_nb.pipeline import PipelineStep
from tests.benchmarks.graphs import scattered
from tests.benchmarks.limits import kahn
from tests.benchmarks.measure import Sides, benchmark

SIZE = 100_000


@benchmark(
    "order",
    "build and order 100,000 steps",
    limit="plain Kahn over the same names",
    promised=2,
    reach=1.5,
    dream=1.1,
)
def order() -> Sides:
    graph = scattered(SIZE)
    pipeline = Pipeline("order")
    pipeline.steps = [PipelineStep(name, "goal", depends_on=list(above)) for name, above in graph.items()]

    def ours() -> float:
        began = time.process_time()
        ordered = PipelineScheduler(pipeline).get_execution_order()
        taken = time.process_time() - began
        assert len(ordered) == SIZE
        return taken

    def limit() -> float:
        began = time.process_time()
        ordered = kahn(graph)
        taken = time.process_time() - began
        assert len(ordered) == SIZE
        return taken

    return Sides(ours, limit)
