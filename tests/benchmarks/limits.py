"""The limits that several benchmarks share."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from tests.benchmarks.graphs import Graph
from tests.benchmarks.records import Record, following

Functions = Mapping[str, Callable[..., Awaitable[object]]]
"""An async function by the name of each step, which takes the values of the steps above it in their order."""


def _edges(graph: Graph) -> tuple[dict[str, list[str]], dict[str, int]]:
    """The steps below each step, and how many each step waits for."""
    below: dict[str, list[str]] = {name: [] for name in graph}
    left = {}
    for name, above in graph.items():
        left[name] = len(above)
        for dependency in above:
            below[dependency].append(name)
    return below, left


async def accept(*values: object, **named: object) -> None:
    """Do nothing with any values."""


async def bare(graph: Graph, functions: Functions) -> dict[str, object]:
    """Plain asyncio: a task for each step, a counter of what it still waits for, and the values by name.

    In a group, so that an error is raised and no task is lost to the garbage collector.
    """
    below, left = _edges(graph)
    values: dict[str, object] = {}

    async def run(name: str) -> None:
        values[name] = await functions[name](*[values[above] for above in graph[name]])
        for dependent in below[name]:
            left[dependent] -= 1
            if not left[dependent]:
                group.create_task(run(dependent))

    async with asyncio.TaskGroup() as group:
        for name in [name for name, count in left.items() if not count]:
            group.create_task(run(name))
    return values


def kahn(graph: Graph) -> list[str]:
    """The topological order by counting what each name still waits for."""
    below, left = _edges(graph)
    order = [name for name, count in left.items() if not count]
    for name in order:
        for dependent in below[name]:
            left[dependent] -= 1
            if not left[dependent]:
                order.append(dependent)
    return order


def insert_records(folder: Path, count: int) -> None:
    """A chain of records, each inserted and committed in SQLite before the next is made."""
    record: Record | None = None
    base = sqlite3.connect(folder / "runs.db", isolation_level=None)
    base.execute("PRAGMA journal_mode = WAL")
    base.execute("PRAGMA synchronous = NORMAL")
    base.execute("CREATE TABLE records (step TEXT PRIMARY KEY, output TEXT)")
    for n in range(count):
        record = following(record)
        base.execute("INSERT INTO records VALUES (?, ?)", (f"s{n}", json.dumps(record)))
    base.close()
