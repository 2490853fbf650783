"""The graphs that are run: names of the steps that each step waits for, in definition order."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

Graph = dict[str, list[str]]


def layered(layers: int, width: int, dependencies: int = 3, *, seed: int = 1) -> Graph:
    """Layers of equal width; each step waits for some of the layer before."""
    choose = random.Random(seed)
    graph: Graph = {}
    above: list[str] = []
    for layer in range(layers):
        names = [f"s{layer}_{n}" for n in range(width)]
        for name in names:
            graph[name] = choose.sample(above, min(dependencies, len(above)))
        above = names
    return graph


def scattered(size: int, dependencies: int = 3, *, seed: int = 1) -> Graph:
    """Each step waits for up to ``dependencies`` of the 100 before it."""
    choose = random.Random(seed)
    names = [f"s{n}" for n in range(size)]
    graph: Graph = {}
    for index, name in enumerate(names):
        near = names[max(0, index - 100) : index]
        graph[name] = choose.sample(near, min(choose.randint(1, dependencies), len(near)))
    return graph


def chain(size: int) -> Graph:
    """Each step waits for the one before it."""
    return {f"s{n}": [f"s{n - 1}"] if n else [] for n in range(size)}


def fan(size: int) -> Graph:
    """One step, and all others wait for it."""
    return {f"s{n}": ["s0"] if n else [] for n in range(size)}


def no_op_functions(graph: Graph) -> dict[str, Callable[..., Awaitable[object]]]:
    """An async function for each step: it takes the values of the steps above it and gives its number."""
    names: dict[str, Callable[..., Awaitable[object]]] = {}
    lines = (
        f"async def {name}({', '.join(above)}): return {number}"
        for number, (name, above) in enumerate(graph.items())
    )
    exec("\n".join(lines), names)
    return {name: names[name] for name in graph}
