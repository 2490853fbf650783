"""Streamed text comes in pieces that a screen can follow."""

from __future__ import annotations

from tagent_nb.runners.models.gateway import Coalesced


def test_pieces_are_collected_until_the_interval_has_passed() -> None:
    now = 0.0
    seen: list[str] = []
    pieces = Coalesced(seen.append, interval=1.0, clock=lambda: now)
    pieces.write("a")
    pieces.write("b")
    now = 0.5
    pieces.write("c")
    assert seen == ["a"]
    now = 1.0
    pieces.write("d")
    assert seen == ["a", "bcd"]
    pieces.write("e")
    pieces.flush()
    pieces.flush()
    assert seen == ["a", "bcd", "e"]
