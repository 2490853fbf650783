"""What the engine adds to steps that do nothing but take what they read, and to steps that wait."""

from __future__ import annotations

import asyncio
import random
import time

from tagent_nb import ExecutionMode, Pipeline, PipelineExecutor, StepContext
from tests.benchmarks.graphs import Graph, chain, fan, layered, no_op_functions, scattered
from tests.benchmarks.limits import bare
from tests.benchmarks.measure import Sides, benchmark
from tests.benchmarks.pipelines import no_ops

BARE = "bare asyncio"


def _against_bare(graph: Graph) -> Sides:
    functions = no_op_functions(graph)
    pipeline = no_ops(graph, functions)

    async def ours() -> float:
        executor = PipelineExecutor(pipeline)
        began = time.process_time()
        result = await executor.execute()
        taken = time.process_time() - began
        assert result.success
        return taken

    async def limit() -> float:
        began = time.process_time()
        values = await bare(graph, functions)
        taken = time.process_time() - began
        assert len(values) == len(graph)
        return taken

    return Sides(lambda: asyncio.run(ours()), lambda: asyncio.run(limit()))


@benchmark("layered", "no-op step, layered 50x20", limit=BARE, promised=6, reach=4.0, dream=2.0, each=1000)
def layers() -> Sides:
    return _against_bare(layered(50, 20))


@benchmark("fan", "no-op step, fan of 1,000", limit=BARE, promised=5, reach=4.0, dream=2.0, each=1000)
def wide() -> Sides:
    return _against_bare(fan(1000))


@benchmark("random", "no-op step, random 10,000", limit=BARE, promised=6, reach=4.0, dream=2.0, each=10_000)
def random_graph() -> Sides:
    return _against_bare(scattered(10_000))


@benchmark("chain", "no-op step, chain of 1,000", limit=BARE, promised=5, reach=2.5, dream=1.0, each=1000)
def short_chain() -> Sides:
    return _against_bare(chain(1000))


@benchmark(
    "chain-100k",
    "no-op step, chain of 100,000",
    limit=BARE,
    promised=6,
    reach=2.5,
    dream=1.0,
    each=100_000,
    large=True,
)
def long_chain() -> Sides:
    return _against_bare(chain(100_000))


@benchmark(
    "critical-path",
    "wall, 20 layers x 10 sleeps of 50 ms",
    limit="critical path",
    promised=1.15,
    reach=1.02,
    dream=1.015,
    large=True,
    clock="wall",
)
def critical_path() -> Sides:
    graph = layered(20, 10)
    choose = random.Random(1)
    spread = 0.8
    # A lognormal has the mean exp(mu + sigma^2 / 2); 0.050 s here.
    seconds = {name: 0.050 * choose.lognormvariate(-(spread**2) / 2, spread) for name in graph}
    ends: dict[str, float] = {}
    for name, above in graph.items():
        ends[name] = seconds[name] + max((ends[dependency] for dependency in above), default=0.0)
    pipeline = Pipeline("sleeps", default_mode=ExecutionMode.CONCURRENT)

    async def sleep(context: StepContext) -> None:
        await asyncio.sleep(seconds[context.step])

    for name, above in graph.items():
        pipeline.task(name=name, depends_on=above)(sleep)

    async def ours() -> float:
        executor = PipelineExecutor(pipeline, max_concurrency=len(graph))
        began = time.perf_counter()
        result = await executor.execute()
        taken = time.perf_counter() - began
        assert result.success
        return taken

    return Sides(lambda: asyncio.run(ours()), lambda: max(ends.values()))
