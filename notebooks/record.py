"""Record the answers of the local model that notebooks 03 and 04 replay, and store their outputs.

``python notebooks/record.py [NAME ...]`` executes each notebook twice in a folder of its own: first with the
local model, whose answers go to ``data/NAME.json``, then with this recording, as its readers do. What the
second pass shows is stored in the notebook. Needs the local model (``tagent-nb model install``).
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
NAMES = ("03_agents_tools_and_budget", "04_approval_and_replay")

REPLAYS = re.compile(r'^(%tagent_pipeline .*?) --recording \S+$|^(RECORDING = )".*"$', re.MULTILINE)
"""How a notebook says that it replays: an option of the magic, or a variable."""

REPLAY_ONLY = "replay-only"
"""Tag of cells that are not executed when the answers are recorded."""


def asking(notebook: Any, file: str) -> Any:
    """A copy of a notebook that asks the model, and writes its answers to ``file``."""
    copy = nbformat.from_dict(notebook)
    cells = []
    export = f"%tagent_export --recording {file}"
    for cell in copy.cells:
        if REPLAY_ONLY in cell.metadata.get("tags", []):
            continue
        if cell.cell_type == "code":
            if "RECORDING = " in cell.source:
                export = f'await executor.export_recording("{file}")'
            cell.source = REPLAYS.sub(lambda found: found[1] or f"{found[2]}None", cell.source)
        cells.append(cell)
    copy.cells = [*cells, nbformat.v4.new_code_cell(export)]
    return copy


def execute(notebook: Any, folder: Path) -> None:
    """Execute all cells of a notebook in place."""
    NotebookClient(
        notebook,
        timeout=600,
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--IPKernelApp.log_level=40"],  # no warnings about its connection
    ).execute()


def plain(notebook: Any) -> None:
    """Leave out what only a kernel can show, and the times of the cells."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            widget = "application/vnd.jupyter.widget-view+json"
            cell.outputs = [output for output in cell.outputs if widget not in output.get("data", {})]
    notebook.metadata.pop("widgets", None)


def record(name: str) -> None:
    """Record and execute one notebook of this folder."""
    path, file = HERE / f"{name}.ipynb", f"data/{name}.json"
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        for folder in (Path(first), Path(second)):
            shutil.copytree(HERE / "data", folder / "data")
        execute(asking(notebook, file), Path(first))
        shutil.copy(Path(first) / file, Path(second) / file)
        execute(notebook, Path(second))
        shutil.copy(Path(second) / file, HERE / file)
    plain(notebook)
    nbformat.write(notebook, path)
    print(f"{path.name}: replays {file}")


if __name__ == "__main__":
    for one in sys.argv[1:] or NAMES:
        record(one)
