"""Rows in chunks: each row once, in order, within what fits; an edit changes few chunks."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tagent_nb.engine.unit.chunks import chunked

MOST = 1000


def marks_of(rows: Sequence[str]) -> list[bytes]:
    return [hashlib.sha256(row.encode()).digest() for row in rows]


def chunks_of(rows: Sequence[str], most: int = MOST) -> list[tuple[str, ...]]:
    places = chunked([len(row) for row in rows], marks_of(rows), most)
    return [tuple(rows[place] for place in chunk) for chunk in places]


rows_of_any_size = st.lists(st.text("ab", min_size=1, max_size=700), max_size=60)


@given(rows_of_any_size)
def test_each_row_is_in_one_chunk_in_order_and_no_chunk_holds_more_than_fits(rows: list[str]) -> None:
    chunks = chunks_of(rows)
    assert [row for chunk in chunks for row in chunk] == rows
    assert all(chunk for chunk in chunks)
    assert all(sum(map(len, chunk)) <= MOST for chunk in chunks)


@given(rows_of_any_size)
def test_where_two_rows_fit_no_chunk_but_the_last_has_one(rows: list[str]) -> None:
    """So a level of answers that can be combined at all is shorter than the one below it."""
    chunks = chunks_of(rows)
    for chunk, after in pairwise(chunks):
        assert len(chunk) > 1 or len(chunk[0]) + len(after[0]) > MOST


def test_a_row_that_does_not_fit_is_a_chunk_by_itself() -> None:
    assert chunks_of(["a", "b" * 1001, "c", "d"]) == [("a",), ("b" * 1001,), ("c", "d")]


def test_no_rows_are_no_chunks() -> None:
    assert chunks_of([]) == []


def test_chunks_are_two_thirds_full_and_more() -> None:
    chunks = chunks_of(texts(random.Random(1), 5000))
    assert 0.6 < sum(sum(map(len, chunk)) for chunk in chunks) / (MOST * len(chunks)) < 0.8


def test_an_edit_changes_few_chunks_wherever_it_is() -> None:
    """Of some 120 chunks, whether the row is changed, made longer, taken out, or another is put before it."""
    draws = random.Random(2)
    rows = texts(draws, 3000)
    before = set(chunks_of(rows))
    changed = []
    for kind in ("change", "grow", "remove", "insert", "append") * 40:
        edited, place = list(rows), draws.randrange(len(rows))
        if kind == "change":
            edited[place] = text(draws)
        elif kind == "grow":
            edited[place] += "x" * draws.randrange(100)
        elif kind == "remove":
            del edited[place]
        else:
            edited.insert(place if kind == "insert" else len(rows), text(draws))
        changed.append(len(set(chunks_of(edited)) - before))
    assert sum(changed) / len(changed) < 1.6
    assert max(changed) <= 8


def test_what_is_added_at_the_end_leaves_all_chunks_but_the_last_as_they_are() -> None:
    draws = random.Random(3)
    rows = texts(draws, 500)
    before, after = chunks_of(rows), chunks_of([*rows, *texts(draws, 100)])
    assert after[: len(before) - 1] == before[:-1]


def texts(draws: random.Random, count: int) -> list[str]:
    return [text(draws) for _ in range(count)]


def text(draws: random.Random) -> str:
    return f"{draws.random()} " * draws.randint(1, 3)
