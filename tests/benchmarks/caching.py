"""The result cache, each time in a new process."""

from __future__ import annotations

import tempfile

from tests.benchmarks.fresh import printed_by, program
from tests.benchmarks.measure import Side, Sides, benchmark
from tests.benchmarks.pipelines import RECORDS


def _first(name: str) -> Side:
    def side() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return printed_by(program(name), folder, "first")

    return side


@benchmark(
    "cache-first",
    "first run of 1,000 steps of 2 KB",
    limit="diskcache keyed get + set",
    promised=3.4,
    reach=1.5,
    dream=1.0,
    each=RECORDS,
)
def first_run() -> Sides:
    return Sides(_first("cached"), _first("cached_by_hand"))


@benchmark(
    "cache-again",
    "fully cached re-run of the same",
    limit="diskcache keyed get",
    promised=14,
    reach=4,
    dream=2,
    each=RECORDS,
)
def cached_again() -> Sides:
    # Kept until the process ends: both sides read what they wrote here.
    folders = {name: tempfile.TemporaryDirectory() for name in ("cached", "cached_by_hand")}
    for name, folder in folders.items():
        printed_by(program(name), folder.name, "first")

    def again(name: str) -> Side:
        return lambda: printed_by(program(name), folders[name].name, "again")

    return Sides(again("cached"), again("cached_by_hand"))
