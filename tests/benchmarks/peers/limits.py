"""The limit of steps that do nothing, as a side: the same as that of our rows."""

from __future__ import annotations

import asyncio
import time

from tests.benchmarks.graphs import Graph, no_op_functions
from tests.benchmarks.limits import bare
from tests.benchmarks.measure import Side


def bare_side(graph: Graph) -> Side:
    """Bare asyncio over a graph of steps that do nothing."""
    functions = no_op_functions(graph)

    async def limit() -> float:
        began = time.process_time()
        values = await bare(graph, functions)
        taken = time.process_time() - began
        assert len(values) == len(graph)
        return taken

    return lambda: asyncio.run(limit())
