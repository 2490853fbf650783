"""Whole processes: imports, a small pipeline from start to end, and memory."""

from __future__ import annotations

from tests.benchmarks.fresh import cpu_of, printed_by, program
from tests.benchmarks.measure import Sides, benchmark

_IMPORT = "import time; began = time.process_time(); {}; print(time.process_time() - began)"
PYDANTIC = _IMPORT.format("import pydantic; pydantic.BaseModel")


def _imports(statement: str) -> Sides:
    ours = _IMPORT.format(statement)
    return Sides(lambda: printed_by("-c", ours), lambda: printed_by("-c", PYDANTIC))


@benchmark("import", "import tagent_nb", limit="import pydantic", promised=0.25, reach=0.2)
def bare_import() -> Sides:
    return _imports("import tagent_nb")


@benchmark(
    "import-engine",
    "from tagent_nb import PipelineExecutor",
    limit="import pydantic",
    promised=4,
    reach=1.5,
)
def engine_import() -> Sides:
    return _imports("from tagent_nb import Pipeline, PipelineExecutor")


@benchmark("three-steps", "three-step pipeline, whole process", limit="by hand", promised=5, reach=2.0)
def three_steps() -> Sides:
    return Sides(lambda: cpu_of(program("three_steps")), lambda: cpu_of(program("three_steps_by_hand")))


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
