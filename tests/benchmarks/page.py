"""The tables of docs/reference/benchmarks.md, made from files that ``--json`` wrote."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.fresh import ROOT
from tests.benchmarks.report import Saved, amount, times

PAGE = ROOT / "docs" / "reference" / "benchmarks.md"


def rewrite(page: Path, table: str, lines: Sequence[str]) -> None:
    """Put the lines between the two comments that a page has for a table.

    Args:
        page: The file of the page.
        table: Name in the comments.
        lines: What stands between them from now on.

    Raises:
        SystemExit: If the page has no such comments.
    """
    first, last = f"<!-- {table} -->", f"<!-- end of {table} -->"
    text = page.read_text(encoding="utf-8")
    if first not in text or last not in text:
        raise SystemExit(f"{page} has no table {table}: it needs the lines {first} and {last}.")
    before, after = text.split(first)[0], text.split(last)[1]
    page.write_text("\n".join([before + first, "", *lines, "", last + after]), encoding="utf-8")


def _made(machine: dict[str, Any]) -> str:
    return (
        f"Measured on {machine['made'][:10]} on {machine['cores']} cores ({machine['system']}, "
        f"load {machine['load']} at the start), Python {machine['python']}."
    )


def own_rows(saved: Saved) -> list[str]:
    """The table of our rows."""
    lines = [
        _made(saved.machine),
        "",
        "| `--only` | what | limit | time | ours | limit takes | ratio | promised | to reach |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in saved.results.values():
        row = result.benchmark
        ours, limit = (amount(value / row.each, row.unit) for value in (result.ours, result.limit))
        cells = [
            f"`{row.name}`",
            row.what,
            row.limit,
            row.measures,
            ours,
            limit,
            f"**{times(result.middle)}**",
        ]
        lines.append(f"| {' | '.join([*cells, f'{row.promised:g}x', f'{row.reach:g}x'])} |")
    return lines


def peer_rows(path: Path, ours: Saved | None = None) -> list[str]:
    """The table of peers, and beside each ratio ours; where a peer is ahead it says so."""
    run = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        f"{_made(run)} {', '.join(f'`{version}`' for version in run['versions'])}.",
        "",
        "| peer | row | its ratio | ours | |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(run["rows"], key=lambda row: str(row["row"])):
        mine = ours.results.get(row["row"]) if ours else None
        if "error" in row:
            lines.append(f"| {row['peer']} | `{row['row']}` | - | {_ratio(mine)} | {row['error']} |")
            continue
        theirs = statistics.median(row["rounds"])
        behind = mine is not None and mine.middle - mine.noise > theirs
        notes = [row["note"], "we are behind" if behind else ""]
        cells = [row["peer"], f"`{row['row']}`", times(theirs), _ratio(mine), "; ".join(filter(None, notes))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _ratio(result: Any) -> str:
    return times(result.middle) if result is not None else ""
