"""What it costs to show a pipeline: the panel with its live graph, and the static graph."""

from __future__ import annotations

import asyncio
import time

import graphviz
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

from tagent_nb import ExecutionMode
from tagent_nb.graph import to_svg
from tagent_nb.graph.drawing import Drawing
from tagent_nb.graph.drawing import source as dot_source
from tagent_nb.graph.grouping import Group
from tagent_nb.notebook.panel.controller import Panel
from tagent_nb.notebook.session import Session
from tests.benchmarks.fresh import cpu_with_children
from tests.benchmarks.graphs import layered, scattered
from tests.benchmarks.measure import Sides, benchmark
from tests.benchmarks.pipelines import no_ops


async def _pause() -> int:
    await asyncio.sleep(0.02)
    return 1


@benchmark(
    "panel",
    "1,000 steps of 20 ms with panel and live graph",
    limit="the same run without",
    promised=1.4,
    reach=1.1,
    dream=1.03,
    large=True,
    clock="wall",
)
def panel() -> Sides:
    """Without a page: what the kernel does for one. ``tests/browser/measure_clicks.py`` has a page."""
    InteractiveShell.instance().display_pub = CapturingDisplayPublisher()
    session = Session({})
    session.use("many", storage="memory:", cached=False)
    pipeline = session.workspace.pipeline
    pipeline.default_mode = ExecutionMode.CONCURRENT
    for name, above in layered(50, 20).items():
        pipeline.task(name=name, depends_on=above)(_pause)

    def side(shown: bool) -> float:
        view = Panel(session, session.workspace, live=True) if shown else None
        if view is not None:
            view.show()
        start = session.start if view is None else view.start
        began = time.perf_counter()
        assert start(max_concurrency=16).result().success
        taken = time.perf_counter() - began
        if view is not None and view.feed is not None:
            view.feed.drawn.wait()
            view.close()
        return taken

    return Sides(lambda: side(True), lambda: side(False))


def _picture(size: int) -> Sides:
    pipeline = no_ops(scattered(size))

    def ours() -> float:
        began = cpu_with_children()
        assert to_svg(pipeline)
        return cpu_with_children() - began

    class Ungrouped(Drawing):
        def _groups(self) -> list[Group]:
            return []

    def limit() -> float:
        source = graphviz.Source(dot_source(Ungrouped(pipeline, None, "auto")).source)
        began = cpu_with_children()
        assert source.pipe(format="svg")
        return cpu_with_children() - began

    return Sides(ours, limit)


@benchmark(
    "graph-1000",
    "static graph, 1,000 steps (in groups)",
    limit="dot with one node a step",
    promised=0.4,
    reach=1.2,
    dream=0.4,
    large=True,
)
def graph_1000() -> Sides:
    return _picture(1000)


@benchmark(
    "graph-2000",
    "static graph, 2,000 steps (in groups)",
    limit="dot with one node a step",
    promised=0.4,
    reach=1.2,
    dream=0.4,
    large=True,
)
def graph_2000() -> Sides:
    return _picture(2000)
