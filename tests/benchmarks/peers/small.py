"""dask, networkx and joblib: each is small, so they share an environment."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import networkx
from dask.threaded import get

from tests.benchmarks.graphs import Graph, chain, fan, layered, scattered
from tests.benchmarks.limits import first_run, kahn, run_again
from tests.benchmarks.measure import Sides
from tests.benchmarks.peers.limits import bare_side
from tests.benchmarks.peers.rows import peer_row

DASK = "dask, threads"
NETWORKX = "networkx"
SIZE = 100_000


def _number(number: int) -> Callable[..., int]:
    return lambda *above: number


def _threads(graph: Graph) -> Sides:
    tasks = {name: (_number(number), *above) for number, (name, above) in enumerate(graph.items())}
    names = list(graph)

    def theirs() -> float:
        began = time.process_time()
        values = get(tasks, names, num_workers=8)
        taken = time.process_time() - began
        assert len(values) == len(graph)
        return taken

    return Sides(theirs, bare_side(graph))


@peer_row(DASK, "chain")
def dask_chain() -> Sides:
    return _threads(chain(1000))


@peer_row(DASK, "layered")
def dask_layered() -> Sides:
    return _threads(layered(50, 20))


@peer_row(DASK, "fan")
def dask_fan() -> Sides:
    return _threads(fan(1000))


@peer_row(DASK, "random")
def dask_random() -> Sides:
    return _threads(scattered(10_000))


def _built(graph: Graph) -> Sides:
    def theirs() -> float:
        began = time.process_time()
        made: networkx.DiGraph[str] = networkx.DiGraph()
        for name, above in graph.items():
            made.add_node(name)
            made.add_edges_from((dependency, name) for dependency in above)
        order = list(networkx.topological_sort(made))
        taken = time.process_time() - began
        assert len(order) == SIZE
        return taken

    def limit() -> float:
        began = time.process_time()
        order = kahn(graph)
        taken = time.process_time() - began
        assert len(order) == SIZE
        return taken

    return Sides(theirs, limit)


@peer_row(NETWORKX, "build-random")
def networkx_random() -> Sides:
    return _built(scattered(SIZE))


@peer_row(NETWORKX, "build-chain")
def networkx_chain() -> Sides:
    return _built(chain(SIZE))


PROGRAM = str(Path(__file__).parent / "programs" / "cached_by_joblib.py")


@peer_row("joblib", "cache-first")
def joblib_first() -> Sides:
    return first_run(PROGRAM)


@peer_row("joblib", "cache-again")
def joblib_again() -> Sides:
    return run_again(PROGRAM)
