"""LangGraph: steps that do nothing, a checkpoint after each step in SQLite, and a whole process."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph

from tests.benchmarks.fresh import written
from tests.benchmarks.graphs import Graph, chain, fan, layered
from tests.benchmarks.limits import import_of, insert_records, three_steps
from tests.benchmarks.measure import Sides
from tests.benchmarks.peers.limits import bare_side
from tests.benchmarks.peers.rows import peer_row
from tests.benchmarks.records import following

LANGGRAPH = "LangGraph"
HERE = Path(__file__).parent / "programs"
LIMIT = {"recursion_limit": 1_000_000}
RECORDS = 1000
MB = 1e6


class State(TypedDict):
    """The values of all steps by name. With a key of the state for each step it takes twice as long."""

    values: Annotated[dict[str, Any], lambda before, more: {**before, **more}]


def _built(graph: Graph, node: Callable[[int, str, list[str]], Any]) -> Any:
    builder: Any = StateGraph(State)
    read: set[str] = set()
    for number, (name, above) in enumerate(graph.items()):
        builder.add_node(name, node(number, name, above))
        read.update(above)
    for name, above in graph.items():
        builder.add_edge(above or START, name)
        if name not in read:
            builder.add_edge(name, END)
    return builder


def _no_op(number: int, name: str, above: list[str]) -> Any:
    async def node(state: State) -> dict[str, Any]:
        for other in above:
            state["values"][other]
        return {"values": {name: number}}

    return node


def _invoked(graph: Graph) -> Sides:
    app = _built(graph, _no_op).compile()

    async def theirs() -> float:
        began = time.process_time()
        state = await app.ainvoke({"values": {}}, LIMIT)
        taken = time.process_time() - began
        assert len(state["values"]) == len(graph)
        return taken

    return Sides(lambda: asyncio.run(theirs()), bare_side(graph))


@peer_row(LANGGRAPH, "chain")
def langgraph_chain() -> Sides:
    return _invoked(chain(1000))


@peer_row(LANGGRAPH, "layered")
def langgraph_layered() -> Sides:
    return _invoked(layered(50, 20))


@peer_row(LANGGRAPH, "fan")
def langgraph_fan() -> Sides:
    return _invoked(fan(1000))


def _record(number: int, name: str, above: list[str]) -> Any:
    def node(state: State) -> dict[str, Any]:
        return {"values": {name: following(state["values"][above[0]] if above else None)}}

    return node


@peer_row("LangGraph, SqliteSaver", "sqlite", rounds=3)
def langgraph_sqlite() -> Sides:
    builder = _built(chain(RECORDS), _record)
    sizes: list[int] = []

    def theirs() -> float:
        with tempfile.TemporaryDirectory() as folder:
            with SqliteSaver.from_conn_string(str(Path(folder) / "runs.db")) as saver:
                app = builder.compile(checkpointer=saver)
                config = {**LIMIT, "configurable": {"thread_id": "1"}}
                began, before = time.process_time(), written()
                state = app.invoke({"values": {}}, config, durability="sync")
                taken = time.process_time() - began
                sizes.append(written() - before)
            assert state["values"][f"s{RECORDS - 1}"]["number"] == RECORDS - 1
            return taken

    def limit() -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            insert_records(Path(folder), RECORDS)
            return time.process_time() - began

    return Sides(theirs, limit, lambda: f"{statistics.median(sizes) / MB:.0f} MB written for 2 MB of values")


@peer_row(LANGGRAPH, "import")
def whole_import() -> Sides:
    return import_of("from langgraph.graph import StateGraph")


@peer_row(LANGGRAPH, "three-steps")
def small_pipeline() -> Sides:
    return three_steps(str(HERE / "three_steps_by_langgraph.py"))
