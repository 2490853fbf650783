"""The limits that several benchmarks share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.benchmarks.graphs import Graph


def _edges(graph: Graph) -> tuple[dict[str, list[str]], dict[str, int]]:
    """The steps below each step, and how many each step waits for."""
    below: dict[str, list[str]] = {name: [] for name in graph}
    left = {}
    for name, above in graph.items():
        left[name] = len(above)
        for one in above:
            below[one].append(name)
    return below, left


async def bare(graph: Graph, work: Callable[[str], Awaitable[object]]) -> None:
    """Plain asyncio: a task for each step, and a counter of what it still waits for.

    In a group, so that an error is raised and no task is lost to the garbage collector.
    """
    below, left = _edges(graph)

    async def run(name: str) -> None:
        await work(name)
        for one in below[name]:
            left[one] -= 1
            if not left[one]:
                group.create_task(run(one))

    async with asyncio.TaskGroup() as group:
        for name in [name for name, count in left.items() if not count]:
            group.create_task(run(name))


def kahn(graph: Graph) -> list[str]:
    """The topological order by counting what each name still waits for."""
    below, left = _edges(graph)
    order = [name for name, count in left.items() if not count]
    for name in order:
        for one in below[name]:
            left[one] -= 1
            if not left[one]:
                order.append(one)
    return order
