"""Daft: a column of 300 rows by its function ``prompt``, each time in a new process.

A second column of that many rows in one process stood still. What is warmed up is taken off instead.
"""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.fresh import printed_by
from tests.benchmarks.measure import Sides
from tests.benchmarks.peers.calls import AT_ONCE, ROWS, raw_side
from tests.benchmarks.peers.rows import peer_row
from tests.benchmarks.raw_client import environment, server

PROGRAM = str(Path(__file__).parent / "programs" / "prompted_by_daft.py")


@peer_row("Daft, prompt", "agent-map")
def prompted() -> Sides:
    def theirs() -> float:
        with environment(server(0.05)):
            warm = printed_by(PROGRAM, str(AT_ONCE))
            return printed_by(PROGRAM, str(AT_ONCE + ROWS)) - warm

    return Sides(theirs, raw_side())
