"""Results as a table, as JSON, and beside an earlier run."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import Benchmark, Result

SLOWER = 1.10
"""Times the earlier ratio from which on a row counts as slower, beyond the noise of both."""


def amount(value: float, unit: str) -> str:
    """A time in seconds, or a size in MB, with three digits."""
    if unit != "s":
        return f"{value:.3g} {unit}"
    for factor, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= factor:
            return f"{value / factor:.3g} {name}"
    return f"{value * 1e6:.3g} us"


def times(ratio: float) -> str:
    """A ratio as ``2.40x``, or ``0.035x`` where two digits say little."""
    return f"{ratio:.2f}x" if ratio > 0.1 else f"{ratio:.3f}x"


def verdict(result: Result) -> str:
    """``"dream"``, ``"reached"``, or ``"-"``."""
    row = result.benchmark
    if row.dream is not None and result.ratio <= row.dream:
        return "dream"
    return "reached" if result.ratio <= row.reach else "-"


def table(results: Sequence[Result]) -> str:
    """The results as aligned text."""
    head = ["name", "what", "limit", "", "ours", "limit", "ratio", "+-", "promised", "reach", ""]
    left = {0, 1, 2, 3, 10}
    rows = []
    for result in results:
        row = result.benchmark
        rows.append(
            [
                row.name,
                row.what,
                row.limit,
                row.measures,
                amount(result.ours / row.each, row.unit),
                amount(result.limit / row.each, row.unit),
                times(result.ratio),
                f"{result.noise:.2f}",
                f"{row.promised:g}x",
                f"{row.reach:g}x",
                verdict(result),
            ]
        )
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = []
    for cells in [head, ["-" * width for width in widths], *rows]:
        aligned = [
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(aligned).rstrip())
    lines += [f"{result.benchmark.name}: {result.note}" for result in results if result.note]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """On what a run is made."""
    return {
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def save(path: Path, results: Sequence[Result], made_on: dict[str, Any]) -> None:
    """Write the results as JSON, for ``--against`` and ``--docs``."""
    rows = []
    for result in results:
        row = result.benchmark
        rows.append(
            {
                "name": row.name,
                "what": row.what,
                "limit": row.limit,
                "unit": row.unit,
                "clock": row.clock,
                "each": row.each,
                "large": row.large,
                "promised": row.promised,
                "reach": row.reach,
                "dream": row.dream,
                "ours": result.ours,
                "limit_took": result.limit,
                "rounds": list(result.rounds),
                "note": result.note,
            }
        )
    path.write_text(json.dumps({**made_on, "rows": rows}, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Saved:
    """An earlier run.

    Attributes:
        machine: On what it was made.
        results: Its results by name; their rows cannot be measured again.
    """

    machine: dict[str, Any]
    results: dict[str, Result]

    @classmethod
    def read(cls, path: Path) -> Saved:
        """Read what `save` wrote.

        Raises:
            SystemExit: If the file is not there or was not written by ``--json``.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            results = {row["name"]: cls._result(dict(row)) for row in content.pop("rows")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemExit(
                f"{path} is no run of benchmarks ({error!r}). Make one with --json {path}."
            ) from error
        return cls(content, results)

    @staticmethod
    def _result(row: dict[str, Any]) -> Result:
        ours, limit, note = row.pop("ours"), row.pop("limit_took"), row.pop("note")
        rounds = tuple(row.pop("rounds"))
        return Result(Benchmark(**row, setup=_not_here), ours, limit, note, rounds)

    def slower(self, result: Result) -> bool:
        """Whether a row is slower than it was, by more than a tenth and the noise of both."""
        before = self.comparable(result)
        if before is None:
            return False
        noise = math.hypot(result.noise, SLOWER * before.noise)
        return result.middle - noise > SLOWER * before.middle

    def comparable(self, result: Result) -> Result | None:
        """What the same row was; None if it is new, or was another workload."""
        before = self.results.get(result.benchmark.name)
        if before is None:
            return None
        was, row = before.benchmark, result.benchmark
        same = (was.what, was.limit, was.measures, was.each) == (row.what, row.limit, row.measures, row.each)
        return before if same else None

    def compare(self, results: Sequence[Result]) -> Iterator[str]:
        """A line for each row: its ratio before and now."""
        for result in results:
            before, name = self.comparable(result), result.benchmark.name
            if before is None:
                yield f"{name}: {times(result.middle)}, not measured so before"
                continue
            line = f"{name}: {times(before.middle)} -> {times(result.middle)}"
            yield f"{line}, slower than before" if self.slower(result) else line


def _not_here() -> Any:
    raise NotImplementedError("a row that was read from a file cannot be measured")
