"""Definitions: pipelines that are built and ordered, and functions that become steps."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tagent_nb import Pipeline, PipelineScheduler
from tagent_nb.pipeline import PipelineStep
from tests.benchmarks.graphs import Graph, chain, scattered
from tests.benchmarks.limits import kahn
from tests.benchmarks.measure import Sides, benchmark

SIZE = 100_000
FUNCTIONS = 1000


def _build(graph: Graph) -> Sides:
    def ours() -> float:
        began = time.process_time()
        pipeline = Pipeline("build")
        for name, above in graph.items():
            pipeline.put(PipelineStep(name, "goal", depends_on=above))
        order = PipelineScheduler(pipeline).get_execution_order()
        taken = time.process_time() - began
        assert len(order) == SIZE
        return taken

    def limit() -> float:
        began = time.process_time()
        order = kahn(graph)
        taken = time.process_time() - began
        assert len(order) == SIZE
        return taken

    return Sides(ours, limit)


@benchmark(
    "build-random",
    "build and order by name 100,000 random steps",
    limit="Kahn over the same names",
    promised=9,
    reach=12,
    dream=5,
    each=SIZE,
)
def build_random() -> Sides:
    return _build(scattered(SIZE))


@benchmark(
    "build-chain",
    "build and order by name a chain of 100,000",
    limit="Kahn over the same names",
    promised=13,
    reach=12,
    dream=5,
    each=SIZE,
)
def build_chain() -> Sides:
    return _build(chain(SIZE))


def _functions(folder: str) -> tuple[str, list[Callable[..., Any]]]:
    """A file of functions, each of which reads the one before; its text, and the functions."""
    lines = ["async def f0():", "    return following(None)", ""]
    for n in range(1, FUNCTIONS):
        lines += [f"async def f{n}(f{n - 1}):", f"    return following(f{n - 1})", ""]
    text = "\n".join(lines)
    file = Path(folder) / "functions.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location("functions", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return text, [getattr(module, f"f{n}") for n in range(FUNCTIONS)]


@benchmark(
    "tasks",
    "1,000 functions of one file become steps",
    limit="one ast.parse of the file",
    promised=5,
    reach=6,
    dream=4,
    each=FUNCTIONS,
)
def tasks() -> Sides:
    numbers = itertools.count()

    def ours() -> float:
        # A file of its own: what is remembered of another file is of no use.
        with tempfile.TemporaryDirectory(prefix=f"functions{next(numbers)}-") as folder:
            _, functions = _functions(folder)
            pipeline = Pipeline("tasks")
            began = time.process_time()
            for function in functions:
                pipeline.task(function)
            taken = time.process_time() - began
        assert len(pipeline) == FUNCTIONS
        return taken

    def limit() -> float:
        with tempfile.TemporaryDirectory() as folder:
            text, _ = _functions(folder)
        began = time.process_time()
        ast.parse(text)
        return time.process_time() - began

    return Sides(ours, limit)
