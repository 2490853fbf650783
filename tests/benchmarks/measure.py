"""How two sides are measured, how the result is shown, and when it is worse than promised."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LEAST_NOISE = 0.02
"""Part of a ratio that is noise at least: a few rounds may happen to agree."""

TOO_NOISY = 0.5
"""Part of the promised ratio from which on noise leaves nothing to be said."""

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
        dream: Ratio that would be wonderful.
        unit: ``"s"`` or ``"MB"``.
        each: Pieces of work (steps) in one measurement; times are shown for one of them.
        large: Left out by ``--quick``.
        setup: Makes the two sides.
    """

    name: str
    what: str
    limit: str
    promised: float
    reach: float
    dream: float
    setup: Setup
    unit: str = "s"
    each: int = 1
    large: bool = False


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
    def noise(self) -> float:
        """How far the median of the rounds' ratios may be off: twice its standard error, by their spread.

        The spread is their median absolute deviation, which one disturbed round does not change.
        """
        middle = statistics.median(self.rounds)
        spread = 1.4826 * statistics.median(abs(ratio - middle) for ratio in self.rounds)
        return max(LEAST_NOISE * middle, 2 * 1.2533 * spread / math.sqrt(len(self.rounds)))

    @property
    def check(self) -> str:
        """``"holds"``, ``"worse"`` than promised by more than the noise, or ``"unsure"`` for noise."""
        promised = self.benchmark.promised
        if self.noise > TOO_NOISY * promised:
            return "unsure"
        return "worse" if statistics.median(self.rounds) - self.noise > promised else "holds"


BENCHMARKS: list[Benchmark] = []
"""All benchmarks, in the order of the table."""


def benchmark(
    name: str,
    what: str,
    *,
    limit: str,
    promised: float,
    reach: float,
    dream: float,
    unit: str = "s",
    each: int = 1,
    large: bool = False,
) -> Callable[[Setup], Setup]:
    """Add a row; the decorated function makes its two sides, ours first."""

    def add(setup: Setup) -> Setup:
        BENCHMARKS.append(Benchmark(name, what, limit, promised, reach, dream, setup, unit, each, large))
        return setup

    return add


def measure(one: Benchmark, rounds: int) -> Result:
    """Run both sides alternately, the first to go changing each round, after a round that warms up."""
    sides = one.setup()
    if not one.large:
        sides.limit()
        sides.ours()
    taken: dict[Side, list[float]] = {sides.ours: [], sides.limit: []}
    for number in range(rounds):
        for side in (sides.limit, sides.ours) if number % 2 else (sides.ours, sides.limit):
            gc.collect()
            taken[side].append(side())
    ours, limit = (statistics.median(taken[side]) for side in (sides.ours, sides.limit))
    ratios = tuple(mine / bare for mine, bare in zip(taken[sides.ours], taken[sides.limit], strict=True))
    return Result(one, ours, limit, sides.note(), ratios)


def checked(one: Benchmark, rounds: int) -> Result:
    """A result that is worse than promised only if it is so in twice as many rounds, too."""
    result = measure(one, rounds)
    return result if result.check == "holds" else measure(one, 2 * rounds)


def complaint(result: Result) -> str:
    """What is wrong with a checked result, in a line; empty if nothing is."""
    one = result.benchmark
    seen = f"{one.name}: {statistics.median(result.rounds):.2f}x, give or take {result.noise:.2f}"
    if result.check == "worse":
        return f"{seen}, and {one.promised:g}x is promised: worse than before"
    if result.check == "unsure":
        return f"{seen}: too noisy to tell; measure on a quieter machine"
    return ""


def amount(value: float, unit: str) -> str:
    """A time in seconds, or a size in MB, with three digits."""
    if unit != "s":
        return f"{value:.3g} {unit}"
    for factor, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= factor:
            return f"{value / factor:.3g} {name}"
    return f"{value * 1e6:.3g} us"


def table(results: Sequence[Result]) -> str:
    """The results as aligned text."""
    head = ["what", "limit", "ours", "limit", "ratio", "promised", "reach", "dream", ""]
    rows = []
    for result in results:
        one = result.benchmark
        verdict = "dream" if result.ratio <= one.dream else "reached" if result.ratio <= one.reach else "-"
        rows.append(
            [
                one.what,
                one.limit,
                amount(result.ours / one.each, one.unit),
                amount(result.limit / one.each, one.unit),
                f"{result.ratio:.2f}x" if result.ratio > 0.1 else f"{result.ratio:.3f}x",
                f"{one.promised:g}x",
                f"{one.reach:g}x",
                f"{one.dream:g}x",
                verdict,
            ]
        )
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = []
    for row in [head, ["-" * width for width in widths], *rows]:
        cells = [
            text.ljust(width) if column < 2 or column == 8 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines += [f"{result.benchmark.name}: {result.note}" for result in results if result.note]
    return "\n".join(lines)
