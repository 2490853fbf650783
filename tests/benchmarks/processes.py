"""Whole processes: imports, a small pipeline from start to end, and memory."""

from __future__ import annotations

from tests.benchmarks.fresh import printed_by, program
from tests.benchmarks.limits import import_of, three_steps
from tests.benchmarks.measure import Sides, benchmark


@benchmark("import", "import tagent_nb", limit="import pydantic", promised=0.25, reach=0.2)
def bare_import() -> Sides:
    return import_of("import tagent_nb")


@benchmark(
    "import-engine",
    "from tagent_nb import PipelineExecutor",
    limit="import pydantic",
    promised=4,
    reach=1.5,
)
def engine_import() -> Sides:
    return import_of("from tagent_nb import Pipeline, PipelineExecutor")


@benchmark("three-steps", "three-step pipeline, whole process", limit="by hand", promised=5, reach=2.0)
def small_pipeline() -> Sides:
    return three_steps(program("three_steps"))


@benchmark(
    "memory",
    "peak memory, random 10,000",
    limit="bare asyncio",
    promised=3,
    reach=3.0,
    dream=1.5,
    unit="MB",
    large=True,
)
def memory() -> Sides:
    return Sides(lambda: printed_by(program("memory")), lambda: printed_by(program("memory_bare")))
