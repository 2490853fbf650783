"""The pipelines that are run."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from tagent_nb import ExecutionMode, Pipeline
from tagent_nb.pipeline import PipelineStep, PythonBody
from tests.benchmarks.graphs import Graph, no_op_functions

RECORDS = 1000
"""Steps of a chain of records."""


def no_ops(graph: Graph, functions: Mapping[str, Callable[..., Awaitable[object]]] | None = None) -> Pipeline:
    """A pipeline of steps that do nothing, overlapping as they can; each takes the values above it.

    The bodies are put together by hand: to read the source of 100,000 functions is another row.
    """
    pipeline = Pipeline("no-ops", default_mode=ExecutionMode.CONCURRENT)
    pipeline.steps = [
        PipelineStep(
            name,
            "Do nothing.",
            body=PythonBody("", "function", name, params=tuple(graph[name]), function=function),
            execution_mode=pipeline.default_mode,
        )
        for name, function in (functions or no_op_functions(graph)).items()
    ]
    return pipeline


def record_chain(folder: Path) -> Pipeline:
    """A chain of ``RECORDS`` steps, each a function that turns one record of 2 KB into the next.

    Args:
        folder: Where the module with the functions is written.
    """
    lines = [
        "from tests.benchmarks.records import following",
        "",
        "async def s0():",
        "    return following(None)",
    ]
    for n in range(1, RECORDS):
        lines += ["", f"async def s{n}(s{n - 1}):", f"    return following(s{n - 1})"]
    file = folder / "record_steps.py"
    file.write_text("\n".join(lines) + "\n")
    spec = importlib.util.spec_from_file_location("record_steps", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    pipeline = Pipeline("records", default_mode=ExecutionMode.CONCURRENT)
    for n in range(RECORDS):
        pipeline.task(getattr(module, f"s{n}"))
    return pipeline
