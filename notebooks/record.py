"""Execute the notebooks and store their outputs; record the answers of the local model that some replay.

``python notebooks/record.py [NAME ...]`` executes each notebook (all without names) in a folder of its own,
as its readers do, and stores what it shows. With ``--ask``, notebooks that replay are executed with the local
model first, and its answers go to ``data/NAME.json``. Needs the local model (``tagent-nb model install``).
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
NAMES = [path.stem for path in sorted(HERE.glob("*.ipynb"))]

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


def store(name: str, ask: bool) -> None:
    """Execute one notebook of this folder and store its outputs; ``ask`` records the model's answers anew."""
    path, file = HERE / f"{name}.ipynb", f"data/{name}.json"
    notebook = nbformat.read(path, as_version=4)
    if ask and (HERE / file).exists():
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(HERE / "data", Path(folder) / "data")
            execute(asking(notebook, file), Path(folder))
            shutil.copy(Path(folder) / file, HERE / file)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(HERE / "data", Path(folder) / "data")
        execute(notebook, Path(folder))
    plain(notebook)
    nbformat.write(notebook, path)
    print(path.name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help="without .ipynb")
    parser.add_argument("--ask", action="store_true", help="record the answers of the local model anew")
    said = parser.parse_args()
    for one in said.names:
        store(one, said.ask)
