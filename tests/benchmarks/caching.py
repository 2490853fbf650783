"""The result cache, each time in a new process."""

from __future__ import annotations

from tests.benchmarks import limits
from tests.benchmarks.fresh import program
from tests.benchmarks.measure import Sides, benchmark
from tests.benchmarks.pipelines import RECORDS


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
    return limits.first_run(program("cached"))


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
    return limits.run_again(program("cached"))
