"""The limits that several benchmarks share."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from tests.benchmarks.fresh import cpu_of, printed_by, program
from tests.benchmarks.graphs import Graph
from tests.benchmarks.measure import Sides
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
    base = sqlite_table(folder / "runs.db", "NORMAL", "records (step TEXT PRIMARY KEY, output TEXT)")
    for n in range(count):
        record = following(record)
        base.execute("INSERT INTO records VALUES (?, ?)", (f"s{n}", json.dumps(record)))
    base.close()


def sqlite_table(file: Path, synchronous: str, table: str) -> sqlite3.Connection:
    """A new database in WAL mode with one table, which commits each statement."""
    base = sqlite3.connect(file, isolation_level=None)
    base.execute("PRAGMA journal_mode = WAL")
    base.execute(f"PRAGMA synchronous = {synchronous}")
    base.execute(f"CREATE TABLE {table}")
    return base


# -- whole programs: the path of one, against what does the same by hand ---------------------------


def import_of(statement: str) -> Sides:
    """An import in a new process, against that of pydantic."""
    timed = "import time; began = time.process_time(); {}; print(time.process_time() - began)"
    ours, pydantic = timed.format(statement), timed.format("import pydantic; pydantic.BaseModel")
    return Sides(lambda: printed_by("-c", ours), lambda: printed_by("-c", pydantic))


def three_steps(path: str) -> Sides:
    """A pipeline of three steps, from the start of its process to the end."""
    return Sides(lambda: cpu_of(path), lambda: cpu_of(program("three_steps_by_hand")))


def first_run(path: str) -> Sides:
    """A run with an empty cache."""

    def side(path: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            return printed_by(path, folder, "first")

    return Sides(lambda: side(path), lambda: side(program("cached_by_hand")))


def run_again(path: str) -> Sides:
    """A run whose cache has all that it needs."""
    by_hand = program("cached_by_hand")
    # Kept until the process ends: both sides read what they wrote here.
    folders = {name: tempfile.TemporaryDirectory() for name in (path, by_hand)}
    for name, folder in folders.items():
        printed_by(name, folder.name, "first")

    def side(path: str) -> float:
        return printed_by(path, folders[path].name, "again")

    return Sides(lambda: side(path), lambda: side(by_hand))
