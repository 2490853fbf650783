"""The command line: ``python -m tests.benchmarks.peers [--only NAME] [--json FILE] [--ours FILE]``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import page
from tests.benchmarks.fresh import ROOT
from tests.benchmarks.report import Saved, machine, times

HERE = Path(__file__).parent
HOME = ROOT / ".venv-peers"
"""Where the environments are made."""

ROWS = ("-m", "tests.benchmarks.peers.rows")
"""Prints the rows of the environment that is named after it."""


def install(name: str) -> Path:
    """The Python of an environment, which is made where it is not there or its requirements have changed.

    Raises:
        RuntimeError: If it cannot be installed, with the last line that pip said.
    """
    home, requirements = HOME / name, HERE / f"{name}.txt"
    python, stamp = home / "bin" / "python", home / "requirements.txt"
    if stamp.exists() and stamp.read_text() == requirements.read_text():
        return python
    shutil.rmtree(home, ignore_errors=True)
    run_quietly(sys.executable, "-m", "venv", str(home))
    run_quietly(
        str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", "-r", str(requirements)
    )
    shutil.copy(requirements, stamp)
    return python


def run_quietly(*command: str) -> None:
    """Run it behind everything else on the machine."""
    done = subprocess.run(
        command, text=True, capture_output=True, check=False, preexec_fn=lambda: os.nice(19)
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it says nothing"])[-1])


def measured(name: str) -> Iterator[dict[str, Any]]:
    """The rows of an environment as they come; an error is a row, too."""
    try:
        python = install(name)
    except RuntimeError as error:
        yield {"peer": name, "row": "-", "error": f"cannot be installed: {error}"}
        return
    process = subprocess.Popen(
        [str(python), *ROWS, name],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    for line in process.stdout:
        # What a library prints of its own is passed over.
        if line.startswith('{"peer": '):
            yield json.loads(line)
    if process.wait():
        yield {"peer": name, "row": "-", "error": f"ended with code {process.returncode}"}


def shown(row: dict[str, Any], ours: Saved | None = None) -> list[str]:
    """The cells of a row: whose, which row of ours, ratio, our ratio, and what else there is to say."""
    if "error" in row:
        return [row["peer"], row["row"], "-", "", row["error"]]
    mine = ours.results.get(row["row"]) if ours else None
    ratio = times(statistics.median(row["rounds"]))
    return [row["peer"], row["row"], ratio, times(mine.middle) if mine else "", row["note"]]


def main(words: Sequence[str] | None = None) -> int:
    """Measure every peer, one environment after the other, and print the table."""
    names = sorted(path.stem for path in HERE.glob("*.txt"))
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.peers", description="Measure other libraries against our limits."
    )
    parser.add_argument("--only", metavar="NAME", action="append", choices=names, help="one of them only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    parser.add_argument(
        "--ours", type=Path, metavar="FILE", help="show our ratios beside, of a run with --json"
    )
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="FILE",
        help="measure nothing: rewrite the table in docs/reference/benchmarks.md from FILE, made with --json",
    )
    arguments = parser.parse_args(words)
    ours = Saved.read(arguments.ours) if arguments.ours else None
    if arguments.docs:
        page.rewrite(page.PAGE, "peers", page.peer_rows(arguments.docs, ours))
        return 0
    made_on = machine()
    rows: list[dict[str, Any]] = []
    for name in arguments.only or names:
        print(f"{name} ...", flush=True)
        rows += measured(name)
    cells = [["peer", "row", "ratio", "ours", ""], *(shown(row, ours) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    if arguments.json:
        content = {**made_on, "versions": versions(arguments.only or names), "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def versions(names: Sequence[str]) -> list[str]:
    """The requirements of these environments."""
    lines = [line for name in names for line in (HERE / f"{name}.txt").read_text().splitlines()]
    return sorted(set(lines))


if __name__ == "__main__":
    sys.exit(main())
