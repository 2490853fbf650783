"""How many files of the package one step enters on its way from the executor to its record.

``python -m tests.files_entered`` prints them for a Python step that does nothing and for an agent step, both
recorded in SQLite. What runs when a module is imported does not count: each kind of step runs once before.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import tagent_nb
from tagent_nb import Pipeline, PipelineExecutor

PACKAGE = Path(tagent_nb.__file__).parent


def entered(pipeline: Pipeline, folder: Path) -> list[str]:
    """Files of the package of which any function is called during the second of two runs, in order."""
    PipelineExecutor(pipeline, storage=f"sqlite:///{folder}/warm.db").run()
    executor = PipelineExecutor(pipeline, storage=f"sqlite:///{folder}/runs.db")
    files: dict[str, None] = {}

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        path = frame.f_code.co_filename
        if frame.f_code.co_name != "<module>" and path.startswith(str(PACKAGE)):
            files[str(Path(path).relative_to(PACKAGE))] = None

    threading.settrace_all_threads(trace) if sys.version_info >= (3, 12) else threading.settrace(trace)
    sys.settrace(trace)
    try:
        asyncio.run(executor.execute())
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
    return list(files)


def steps() -> dict[str, Pipeline]:
    """A pipeline of one step of each kind."""
    python = Pipeline("python")
    python.task(lambda: 1, name="step")
    return {"python step": python, "agent step": Pipeline("agent", model="test").step("step", "Say it.")}


def main() -> None:
    """Print the files of each kind of step."""
    for kind, pipeline in steps().items():
        with tempfile.TemporaryDirectory() as folder:
            files = entered(pipeline, Path(folder))
        print(f"{kind}: {len(files)} files", *sorted(files), sep="\n  ")


if __name__ == "__main__":
    main()
