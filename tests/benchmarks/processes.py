"""Whole processes: imports, a small pipeline from start to end, and memory."""

from __future__ import annotations

from tests.benchmarks.fresh import lasted, program, told
from tests.benchmarks.measure import Sides, benchmark

_IMPORT = "import time; began = time.perf_counter(); {}; print(time.perf_counter() - began)"
PYDANTIC = _IMPORT.format("import pydantic; pydantic.BaseModel")


def _imports(statement: str) -> Sides:
    ours = _IMPORT.format(statement)
    return Sides(lambda: told("-c", ours), lambda: told("-c", PYDANTIC))


@benchmark("import", "import tagent_nb", limit="import pydantic", promised=0.25, reach=1.5, dream=1.1)
def bare_import() -> Sides:
    return _imports("import tagent_nb")


@benchmark(
    "import-engine",
    "from tagent_nb import PipelineExecutor",
    limit="import pydantic",
    promised=4,
    reach=1.5,
    dream=1.1,
)
def engine_import() -> Sides:
    return _imports("from tagent_nb import Pipeline, PipelineExecutor")


@benchmark(
    "three-steps", "three-step pipeline, whole process", limit="by hand", promised=5, reach=2.5, dream=1.3
)
def three_steps() -> Sides:
    return Sides(lambda: lasted(program("three_steps")), lambda: lasted(program("three_steps_by_hand")))


@benchmark(
    "memory",
    "peak memory, random 10,000",
    limit="bare asyncio",
    promised=3.6,
    reach=3.0,
    dream=1.5,
    unit="MB",
    large=True,
)
def memory() -> Sides:
    return Sides(lambda: told(program("memory")), lambda: told(program("memory_bare")))
