"""How two sides are measured, how the result is shown, and when it is worse than promised."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

LEAST_NOISE = 0.02
"""Part of a ratio that is noise at least: a few rounds may happen to agree."""

TOO_NOISY = 0.5
"""Part of the promised ratio from which on noise leaves nothing to be said."""

LEAST_ROUNDS = 5
"""Rounds that every row gets, whatever its time budget."""

MOST_ROUNDS = 15
"""Rounds of a row that is quick."""

SECONDS = 8.0
"""Wall time after which a row gets no more rounds than it must have."""

Clock = Literal["cpu", "wall"]

Side = Callable[[], float]
"""Does its work once and returns what it took, in the benchmark's unit; set-up is not in it."""


@dataclass(frozen=True)
class Sides:
    """The two sides of a benchmark.

    Attributes:
        ours: Our side.
        limit: The limit's.
        note: Says in a few words what else was seen; asked after the last round.
    """

    ours: Side
    limit: Side
    note: Callable[[], str] = str


Setup = Callable[[], Sides]
"""Makes the sides of a benchmark."""


@dataclass(frozen=True)
class Benchmark:
    """A row of the table.

    Attributes:
        name: Short name for ``--only``.
        what: What is measured.
        limit: What it is measured against.
        promised: Ratio that holds today; a larger one is a step back.
        reach: Ratio that should be reached.
        setup: Makes the two sides.
        dream: Ratio that would be wonderful; None: as far as `reach`.
        unit: ``"s"`` or ``"MB"``.
        each: Pieces of work (steps) in one measurement; times are shown for one of them.
        large: Left out by ``--quick``, and measured without a round that warms up.
        clock: Whether times are those of the processor (all threads) or of the wall. Sides that wait
            for something on purpose need the wall; everything else is disturbed less by other programs
            when it is measured by the processor.
    """

    name: str
    what: str
    limit: str
    promised: float
    reach: float
    setup: Setup
    dream: float | None = None
    unit: str = "s"
    each: int = 1
    large: bool = False
    clock: Clock = "cpu"

    @property
    def measures(self) -> str:
        """``"cpu"``, ``"wall"`` or, where no time is measured, the unit."""
        return self.clock if self.unit == "s" else self.unit


@dataclass(frozen=True)
class Result:
    """Medians of both sides of a benchmark, and the ratio of each round."""

    benchmark: Benchmark
    ours: float
    limit: float
    note: str = ""
    rounds: tuple[float, ...] = ()

    @property
    def ratio(self) -> float:
        """Ours for one of the limit."""
        return self.ours / self.limit

    @property
    def middle(self) -> float:
        """The median of the rounds' ratios, which is what is compared."""
        return statistics.median(self.rounds)

    @property
    def noise(self) -> float:
        """How far `middle` may be off: twice its standard error, by the spread of the rounds.

        The spread is their median absolute deviation, which one disturbed round does not change.
        """
        spread = 1.4826 * statistics.median(abs(ratio - self.middle) for ratio in self.rounds)
        return max(LEAST_NOISE * self.middle, 2 * 1.2533 * spread / math.sqrt(len(self.rounds)))

    @property
    def check(self) -> str:
        """``"holds"``, ``"worse"`` than promised by more than the noise, or ``"unsure"`` for noise."""
        promised = self.benchmark.promised
        if self.noise > TOO_NOISY * promised:
            return "unsure"
        return "worse" if self.middle - self.noise > promised else "holds"


BENCHMARKS: list[Benchmark] = []
"""All benchmarks, in the order in which they were defined."""


def benchmark(
    name: str,
    what: str,
    *,
    limit: str,
    promised: float,
    reach: float,
    dream: float | None = None,
    unit: str = "s",
    each: int = 1,
    large: bool = False,
    clock: Clock = "cpu",
) -> Callable[[Setup], Setup]:
    """Add a row; the decorated function makes its two sides, ours first."""

    def add(setup: Setup) -> Setup:
        BENCHMARKS.append(
            Benchmark(name, what, limit, promised, reach, setup, dream, unit, each, large, clock)
        )
        return setup

    return add


def measure(row: Benchmark, rounds: int, most: int = 0, *, seconds: float = SECONDS) -> Result:
    """Run both sides alternately, the first to go changing each round, after a round that warms up.

    Args:
        row: What is measured.
        rounds: How many rounds are made in any case.
        most: How many are made while `seconds` last; fewer than `rounds`: no more than these.
        seconds: Wall time of the row, its set-up included.
    """
    began = time.perf_counter()
    sides = row.setup()
    if not row.large:
        sides.limit()
        sides.ours()
    ours: list[float] = []
    limits: list[float] = []
    while len(ours) < rounds or (len(ours) < most and time.perf_counter() - began < seconds):
        turns = [(sides.ours, ours), (sides.limit, limits)]
        for side, taken in reversed(turns) if len(ours) % 2 else turns:
            gc.collect()
            taken.append(side())
    ratios = tuple(mine / bare for mine, bare in zip(ours, limits, strict=True))
    return Result(row, statistics.median(ours), statistics.median(limits), sides.note(), ratios)


def checked(
    row: Benchmark, rounds: int, most: int = 0, *, holds: Callable[[Result], bool] | None = None
) -> Result:
    """A result that is bad only if it is so in twice as many rounds, too.

    Args:
        row: What is measured.
        rounds: How many rounds are made in any case.
        most: How many are made while there is time.
        holds: Whether a result is good; by default, whether it is what the row promises.
    """
    result = measure(row, rounds, most)
    good = result.check == "holds" if holds is None else holds(result)
    return result if good else measure(row, 2 * rounds, 2 * most)


def complaint(result: Result) -> str:
    """What is wrong with a checked result, in a line; empty if nothing is."""
    row = result.benchmark
    seen = f"{row.name}: {result.middle:.2f}x, give or take {result.noise:.2f}"
    if result.check == "worse":
        return f"{seen}, and {row.promised:g}x is promised: worse than before"
    if result.check == "unsure":
        return f"{seen}: too noisy to tell; measure on a quieter machine"
    return ""
