"""A kernel that runs for long: ``python -m tests.benchmarks.soak [--runs N] [--items N] [--every N]``.

A real kernel runs the same mapped Python step again and again. After each 20 runs it says what lives in it,
and in the end this fails if anything has grown with the runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.kernels import Kernel

ROOM = {"objects": 0.02, "traced_kb": 0.15}
"""Part of what was counted first that may come on top of it: IPython keeps each cell, and a table of Python's
own, such as that of its interned strings, may double once."""
MOMENTARY = 16
"""Descriptors that may be open when they are counted, and are closed a moment later."""

CENSUS = """
def _census():
    import asyncio, gc, json, os, threading, tracemalloc
    from collections import Counter
    from pathlib import Path
    from tagent_nb.engine.background import background_loop, submit

    # The last run's task ends on the loop a moment after its result is there.
    for _ in range(3):
        submit(asyncio.sleep(0)).result()
    gc.collect()
    kinds = Counter(type(thing).__name__ for thing in gc.get_objects())
    descriptors, status = Path("/proc/self/fd"), Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    resident = next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)
    print(json.dumps({
        "results": kinds["PipelineResult"],
        "items": kinds["ItemResult"],
        "panels": kinds["Panel"],
        "objects": kinds.total(),
        "traced_kb": tracemalloc.get_traced_memory()[0] // 1024,
        "resident_kb": resident,
        "descriptors": len(list(descriptors.iterdir())) if descriptors.exists() else 0,
        "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks(background_loop())),
    }))


def _snapshot():
    import gc, tracemalloc

    gc.collect()
    return tracemalloc.take_snapshot()
"""
DEFINED = (
    "%tagent_pipeline soak",
    "%%tagent_step load --python\nlist(range({items}))",
    "%%tagent_step each --python --map-over load\nf'{load:06} ' * 150",
)
HEADS = {
    "results": "results",
    "items": "items",
    "panels": "panels",
    "objects": "objects",
    "traced_kb": "traced KB",
    "resident_kb": "resident KB",
    "descriptors": "descriptors",
    "threads": "threads",
    "tasks": "tasks",
}


class Soak:
    """A kernel with a pipeline in it.

    Args:
        folder: Where it works.
        items: Items of the mapped step, of about 1 KB each.
        panel: Whether the panel is shown before each run.
    """

    def __init__(self, folder: Path, items: int, panel: bool) -> None:
        self.panel = panel
        self.kernel = Kernel(folder, loaded=False)
        self._cell("import tracemalloc; tracemalloc.start()")
        self._cell("%load_ext tagent_nb")
        self._cell(CENSUS)
        for cell in DEFINED:
            self._cell(cell.replace("{items}", str(items)))

    def run(self) -> None:
        """Run the pipeline once."""
        if self.panel:
            self._cell("%tagent_panel")
        text = self._cell("%tagent_run --no-cache")
        if "Traceback" in text or "failed" in text:
            raise RuntimeError(f"The run failed:\n{text[-2000:]}")

    def census(self) -> dict[str, int]:
        """What lives in the kernel."""
        counts: dict[str, int] = json.loads(self._cell("_census()"))
        return counts

    def remember(self) -> None:
        """Keep what is allocated now, in a file, for :meth:`growth`."""
        self._cell("_snapshot().dump('first.snapshot')")

    def growth(self) -> str:
        """The lines of code that hold more than at :meth:`remember`, most first."""
        return self._cell(
            "import tracemalloc\n"
            "_last, _first = _snapshot(), tracemalloc.Snapshot.load('first.snapshot')\n"
            "for _line in _last.compare_to(_first, 'lineno')[:10]:\n"
            "    print(_line)"
        )

    def close(self) -> None:
        """End the kernel."""
        self.kernel.close()

    def _cell(self, code: str) -> str:
        text = self.kernel.run(code)
        # This process is to stay small as well.
        self.kernel.outputs.clear()
        self.kernel.idle.clear()
        self.kernel.replied.clear()
        return text


def grown(first: dict[str, int], last: dict[str, int]) -> list[str]:
    """What is more at the last count than a kernel may hold, each in a line."""
    lines = []
    if last["results"] != 1:
        lines.append(f"The kernel holds {last['results']} results, not one.")
    most = {name: first[name] for name in ("items", "panels", "tasks")}
    most |= {name: first[name] * (1 + room) for name, room in ROOM.items()}
    most["descriptors"] = first["descriptors"] + MOMENTARY
    lines += [
        f"{HEADS[name].capitalize()}: {first[name]} at first, {last[name]} in the end."
        for name in most
        if last[name] > most[name]
    ]
    return lines


def main(words: Sequence[str] | None = None) -> int:
    """Run, printing a line after each ``--every`` runs; 1 if something has grown."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.soak", description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help="how often the pipeline runs (default 200)")
    parser.add_argument("--items", type=int, default=1000, help="items of its mapped step (default 1000)")
    parser.add_argument("--every", type=int, default=20, help="runs between two counts (default 20)")
    parser.add_argument("--panel", action="store_true", help="show the panel anew before each run")
    arguments = parser.parse_args(words)
    if arguments.every < 1 or arguments.items < 1 or arguments.runs < 2 * arguments.every:
        parser.error("--runs must be at least twice --every, and these and --items at least 1")
    counts: list[dict[str, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), arguments.items, arguments.panel)
        try:
            print("  ".join(f"{head:>11}" for head in ("runs", *HEADS.values(), "s per run")))
            began = time.perf_counter()
            for number in range(1, arguments.runs + 1):
                soak.run()
                if number % arguments.every:
                    continue
                seconds = (time.perf_counter() - began) / arguments.every
                counts.append(soak.census())
                if len(counts) == 1:
                    soak.remember()
                cells = [number, *(counts[-1][name] for name in HEADS), f"{seconds:.2f}"]
                print("  ".join(f"{cell:>11}" for cell in cells), flush=True)
                began = time.perf_counter()
            complaints = grown(counts[0], counts[-1])
            if complaints:
                print(soak.growth())
        finally:
            soak.close()
    print("\n".join(complaints or ["Nothing has grown."]))
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
