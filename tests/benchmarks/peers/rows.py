"""The rows of one environment, measured there: ``python -m tests.benchmarks.peers.rows NAME``."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tests.benchmarks.measure import Benchmark, Setup, measure


@dataclass(frozen=True)
class PeerRow:
    """A row of a peer.

    Attributes:
        peer: The library, and which of its ways.
        row: Name of our row with the same workload and limit.
        setup: Makes both sides, the peer's first.
        rounds: How many are made; fewer than 5 where one takes very long.
    """

    peer: str
    row: str
    setup: Setup
    rounds: int


ROWS: list[PeerRow] = []


def peer_row(peer: str, row: str, *, rounds: int = 5) -> Callable[[Setup], Setup]:
    """Add a row; the decorated function makes its two sides, the peer's first."""

    def add(setup: Setup) -> Setup:
        ROWS.append(PeerRow(peer, row, setup, rounds))
        return setup

    return add


def _measured(row: PeerRow) -> dict[str, object]:
    benchmark = Benchmark(row.row, row.peer, "", 1.0, 1.0, row.setup, large=row.rounds < 5)
    result = measure(benchmark, row.rounds)
    return {"theirs": result.ours, "limit": result.limit, "rounds": list(result.rounds), "note": result.note}


def main(environment: str) -> None:
    """Print a JSON object a row; a row that fails says with what, and the next one is measured."""
    importlib.import_module(f"tests.benchmarks.peers.{environment}")
    # As a program this module exists twice: rows are added to the one that is imported by its name.
    from tests.benchmarks.peers import rows as by_name

    for row in by_name.ROWS:
        shown: dict[str, object] = {"peer": row.peer, "row": row.row}
        try:
            shown |= _measured(row)
        except (Exception, SystemExit) as error:
            shown["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
