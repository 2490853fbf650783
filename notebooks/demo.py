"""`make demo`: execute the first notebook on the local model; leave its table, graph and page in a folder."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter

HERE = Path(__file__).parent
NAME = "01_first_pipeline"


def outputs(notebook: Any, kind: str) -> list[str]:
    """The outputs of a kind (a MIME type), in order."""
    return [
        "".join(output["data"][kind])
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if kind in output.get("data", {})
    ]


def main(target: Path) -> None:
    """Execute a copy in ``target``, so that each demo starts fresh and the repository stays clean."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(HERE / "data", target / "data")
    notebook = nbformat.read(HERE / f"{NAME}.ipynb", as_version=4)
    began = time.monotonic()
    NotebookClient(
        notebook,
        timeout=200,
        resources={"metadata": {"path": str(target)}},
        extra_arguments=["--IPKernelApp.log_level=40"],  # no warnings about its connection
    ).execute()
    page, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook)
    files = {f"{NAME}.html": page, "graph.svg": outputs(notebook, "image/svg+xml")[-1]}
    for name, text in files.items():
        (target / name).write_text(text, encoding="utf-8")
    print(f"\n{outputs(notebook, 'text/plain')[-1]}\n")
    print(f"Ran in {time.monotonic() - began:.0f} s, for 0 USD, without a key. Look at:")
    for name in files:
        print(f"  {(target / name).resolve()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
