"""The command line: ``python -m tests.benchmarks [--only NAME] [--quick] [--check] [--rounds N] ...``."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import tests.benchmarks
from tests.benchmarks import page
from tests.benchmarks.measure import (
    BENCHMARKS,
    LEAST_ROUNDS,
    MOST_ROUNDS,
    SECONDS,
    Benchmark,
    Result,
    checked,
    complaint,
    measure,
)
from tests.benchmarks.report import Saved, machine, save, table

FEWEST = 3
"""Rounds that have a spread."""


def find_rows() -> list[Benchmark]:
    """Every row of this package: its modules by the alphabet, and in each the rows as it defines them."""
    names = sorted(
        module.name for module in pkgutil.iter_modules(tests.benchmarks.__path__) if not module.ispkg
    )
    modules = [f"tests.benchmarks.{name}" for name in names if name != "__main__"]
    for module in modules:
        importlib.import_module(module)
    return sorted(BENCHMARKS, key=lambda row: modules.index(row.setup.__module__))


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description="Measure tagent-nb against its limits."
    )
    parser.add_argument(
        "--only", metavar="NAME", action="append", default=[], help="run those whose name has NAME in it"
    )
    parser.add_argument("--quick", action="store_true", help="one round of each, large ones left out")
    parser.add_argument(
        "--rounds",
        type=int,
        help=f"rounds of each side (default: {LEAST_ROUNDS}, and up to {MOST_ROUNDS} in {SECONDS:g} s)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="fail where a ratio is worse than promised by more than its noise",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="fail where a row is slower than in FILE, made with --json, by more than 10 %% and the noise",
    )
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="FILE",
        help="measure nothing: rewrite the table in docs/reference/benchmarks.md from FILE, made with --json",
    )
    parser.add_argument("--list", action="store_true", help="list the names and stop")
    arguments = parser.parse_args(words)
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    few = arguments.quick or (arguments.rounds or LEAST_ROUNDS) < FEWEST
    if few and (arguments.check or arguments.against):
        option = "--check" if arguments.check else "--against"
        parser.error(f"{option} needs at least {FEWEST} rounds: fewer have no spread")
    return arguments


def _choose(arguments: argparse.Namespace) -> list[Benchmark]:
    rows = find_rows()
    chosen = [row for row in rows if not arguments.only or any(part in row.name for part in arguments.only)]
    if not chosen:
        raise SystemExit(f"No benchmark is named so. Names: {', '.join(row.name for row in rows)}.")
    return [row for row in chosen if not (arguments.quick and row.large and not arguments.only)]


def main(words: Sequence[str] | None = None) -> int:
    """Measure, showing each result as it comes, and print the table; 1 if a check failed."""
    arguments = _arguments(words)
    if arguments.docs:
        page.rewrite(page.PAGE, "rows", page.own_rows(Saved.read(arguments.docs)))
        return 0
    before = Saved.read(arguments.against) if arguments.against else None
    chosen = _choose(arguments)
    if arguments.list:
        print("\n".join(f"{row.name:20} {row.what}" for row in chosen))
        return 0
    made_on = machine()
    rounds, most = (LEAST_ROUNDS, MOST_ROUNDS) if arguments.rounds is None else (arguments.rounds, 0)
    if arguments.quick:
        rounds, most = 1, 0

    def holds(result: Result) -> bool:
        return (not arguments.check or result.check == "holds") and not (before and before.slower(result))

    began = time.perf_counter()
    results: list[Result] = []
    for row in chosen:
        print(f"{row.name} ...", end=" ", flush=True)
        started = time.perf_counter()
        if arguments.check or before:
            results.append(checked(row, rounds, most, holds=holds))
        else:
            results.append(measure(row, rounds, most))
        seconds = time.perf_counter() - started
        print(f"{results[-1].ratio:.2f}x ({seconds:.0f} s)", flush=True)
    print(f"\n{table(results)}")
    print(
        f"\nMedians of {'-'.join(map(str, sorted({rounds, most or rounds})))} alternating rounds on "
        f"{made_on['cores']} cores (load {made_on['load']} at the start), Python {made_on['python']}, "
        f"in {time.perf_counter() - began:.0f} s."
    )
    if arguments.json:
        save(arguments.json, results, made_on)
    failed = 0
    if before:
        print("\n".join(["", f"Against {arguments.against} of {before.machine['made']}:"]))
        print("\n".join(before.compare(results)))
        failed += sum(map(before.slower, results))
    if arguments.check:
        complaints = [line for line in map(complaint, results) if line]
        worse = sum(result.check == "worse" for result in results)
        print("\n".join(["", *complaints, f"{worse} of {len(results)} ratios are worse than promised."]))
        failed += worse
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
