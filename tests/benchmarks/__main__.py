"""The command line: ``python -m tests.benchmarks [--only NAME] [--quick] [--check] [--rounds N]``."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Sequence

from tests.benchmarks import (
    agents,
    build,
    caching,
    growth,
    maps,
    overhead,
    processes,
    recording,
    scheduling,
    showing,
)
from tests.benchmarks.measure import BENCHMARKS, Result, checked, complaint, measure, table

MODULES = (scheduling, build, overhead, caching, recording, maps, growth, processes, showing, agents)
"""Importing them fills ``BENCHMARKS``; the table is in this order."""


FEWEST = 3
"""Rounds that have a spread."""


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description="Measure tagent-nb against its limits."
    )
    parser.add_argument(
        "--only", metavar="NAME", action="append", default=[], help="run those whose name has NAME in it"
    )
    parser.add_argument("--quick", action="store_true", help="one round of each, large ones left out")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each side (default 5)")
    parser.add_argument(
        "--check",
        action="store_true",
        help="fail where a ratio is worse than promised by more than its noise",
    )
    parser.add_argument("--list", action="store_true", help="list the names and stop")
    arguments = parser.parse_args(words)
    if arguments.check and (arguments.quick or arguments.rounds < FEWEST):
        parser.error(f"--check needs at least {FEWEST} rounds: fewer have no spread")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Measure, showing each result as it comes, and print the table; 1 if a check failed."""
    arguments = _arguments(words)
    modules = [module.__name__ for module in MODULES]
    chosen = [
        one
        for one in sorted(BENCHMARKS, key=lambda one: modules.index(one.setup.__module__))
        if not arguments.only or any(part in one.name for part in arguments.only)
    ]
    if not chosen:
        raise SystemExit(f"No benchmark is named so. Names: {', '.join(one.name for one in BENCHMARKS)}.")
    if arguments.list:
        print("\n".join(f"{one.name:20} {one.what}" for one in chosen))
        return 0
    began = time.perf_counter()
    rounds = 1 if arguments.quick else max(1, arguments.rounds)
    results: list[Result] = []
    for one in chosen:
        if arguments.quick and one.large and not arguments.only:
            continue
        print(f"{one.name} ...", end=" ", flush=True)
        results.append(checked(one, rounds) if arguments.check else measure(one, rounds))
        print(f"{results[-1].ratio:.2f}x", flush=True)
    print(f"\n{table(results)}")
    print(
        f"\nMedians of {rounds} alternating round{'s' if rounds > 1 else ''} on {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, in {time.perf_counter() - began:.0f} s."
    )
    if not arguments.check:
        return 0
    complaints = [line for line in map(complaint, results) if line]
    worse = sum(result.check == "worse" for result in results)
    print("\n".join(["", *complaints, f"{worse} of {len(results)} ratios are worse than promised."]))
    return int(worse > 0)


if __name__ == "__main__":
    raise SystemExit(main())
