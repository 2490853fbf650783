"""A kernel that runs for a week: nothing of a run stays when it is over, however it ended."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any

import pytest
from kernels import Kernel

from tagent_nb import Pipeline, PipelineExecutor, ResultCache, StepContext
from tagent_nb.engine import submit
from tagent_nb.engine.background import background_loop

OURS = (
    "RunLoop",
    "RunContext",
    "Recorder",
    "RunHandle",
    "PipelineExecutor",
    "PipelineMemory",
    "PipelineResult",
    "StepContext",
    "StoredValue",
)
"""Classes of which each run makes objects."""
SHARED = ("asyncio_", "tagent-nb-storage", "tagent-nb loop watch")
"""How the names of threads begin that all runs share: two pools, which may grow, and one watch."""


def census(others: Container[threading.Thread] = ()) -> Counter[str]:
    """How many objects of each of our classes live, and how many tasks, threads (besides ``others``) and
    descriptors."""
    # The last run's task ends on the loop a moment after its result is there.
    for _ in range(3):
        submit(asyncio.sleep(0)).result()
    gc.collect()
    kinds = Counter(type(thing).__name__ for thing in gc.get_objects())
    counts = Counter({name: kinds[name] for name in OURS})
    counts["tasks"] = len(asyncio.all_tasks(background_loop()))
    # Other tests leave threads that end some time.
    counts.update(
        f"thread {thread.name}"
        for thread in threading.enumerate()
        if thread not in others and not thread.name.startswith(SHARED)
    )
    descriptors = Path("/proc/self/fd")
    counts["descriptors"] = len(list(descriptors.iterdir())) if descriptors.exists() else 0
    return counts


def flow(rows: int = 5) -> Pipeline:
    pipeline = Pipeline("flow", model="test")
    pipeline.task(lambda: list(range(rows)), name="load")
    pipeline.task(lambda item: item + 1, name="each", map_over="load")
    pipeline.step("say", "Say {{ each }}.")
    return pipeline


def settled(others: Container[threading.Thread], expected: Counter[str] | None = None) -> Counter[str]:
    """The census once no run is left, or once nothing is more than expected.

    A thread that watches a run may hold it a moment longer than it lasts: what stays for good is asked.
    """
    deadline = time.monotonic() + 30
    while True:
        counts = census(others)
        idle = not (counts["RunLoop"] or counts["StepContext"] or counts["tasks"])
        if (counts <= expected if expected else idle) or time.monotonic() > deadline:
            return counts


def after(repetitions: int, act: Any) -> tuple[Counter[str], Counter[str]]:
    """The census after three repetitions, and after many."""
    others = frozenset(threading.enumerate())
    for _ in range(3):
        act()
    before = settled(others)
    for _ in range(repetitions):
        act()
    return before, settled(others, before)


class TestRunsLeaveNothing:
    """After dozens of runs nothing is more than after three, which may have left a little that goes later."""

    def test_runs_of_one_executor(self, tmp_path: Path) -> None:
        executor = PipelineExecutor(flow(), storage=tmp_path / "runs", cache=ResultCache(tmp_path / "cache"))
        before, later = after(40, executor.run)
        assert later <= before

    def test_runs_of_many_executors(self) -> None:
        before, later = after(40, lambda: PipelineExecutor(flow()).run())
        assert later <= before

    def test_cancelled_runs(self) -> None:
        def cancelled() -> None:
            pipeline = Pipeline("stop")
            running = threading.Event()

            @pipeline.task
            async def wait() -> None:
                running.set()
                await asyncio.Event().wait()

            handle = PipelineExecutor(pipeline).start()
            assert running.wait(60)
            handle.cancel()
            assert handle.result().cancelled

        before, later = after(30, cancelled)
        assert later <= before

    def test_streams_that_are_left_early(self) -> None:
        async def first_event() -> None:
            async for _ in PipelineExecutor(flow()).stream():
                break

        before, later = after(30, lambda: asyncio.run(first_event()))
        assert later <= before

    def test_executors_that_are_dropped_in_mid_run(self) -> None:
        """No one holds the executor or its handle while it runs; when it has ended, it goes."""
        ended = threading.Semaphore(0)

        def dropped() -> None:
            pipeline = Pipeline("drop")

            @pipeline.task
            def last(context: StepContext) -> None:
                context.write("x")

            PipelineExecutor(pipeline).start().when_done(lambda outcome: ended.release())
            assert ended.acquire(timeout=60)

        before, later = after(30, dropped)
        assert later <= before

    def test_runs_that_fail(self) -> None:
        pipeline = Pipeline("fail")
        pipeline.task(lambda: 1 / 0, name="broken", max_retries=0)
        before, later = after(40, lambda: PipelineExecutor(pipeline).run())
        assert later <= before


CENSUS = """
import gc
from collections import Counter
gc.collect()
kinds = Counter(type(one).__name__ for one in gc.get_objects())
print({name: kinds[name] for name in (
    "Panel", "PanelView", "GraphWidget", "StepTable", "PipelineResult", "PipelineMemory", "ItemResult",
    "Comm", "Layout", "Button", "HTML", "VBox",
)})
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Any:
    kernel = Kernel(tmp_path)
    yield kernel
    kernel.close()


@pytest.mark.parametrize("panel", [False, True], ids=["without panel", "beside an open panel"])
def test_a_kernel_holds_one_result_and_one_panel_however_often_it_runs(kernel: Any, panel: bool) -> None:
    """anywidget once kept each panel by watching the files of its widgets, and each panel its result."""
    kernel.run("%tagent_pipeline leak")
    kernel.run("%%tagent_step load --python\nlist(range(30))")
    kernel.run("%%tagent_step each --python --map-over load\n'x' * 1000")
    counts = []
    for repetitions in (2, 6):
        for _ in range(repetitions):
            if panel:
                kernel.run("%tagent_panel")
            kernel.run("%tagent_run --no-cache")
        counts.append(kernel.run(CENSUS))
    assert counts[0] == counts[1]
    assert "'PipelineResult': 1, 'PipelineMemory': 1, 'ItemResult': 30" in counts[1]
