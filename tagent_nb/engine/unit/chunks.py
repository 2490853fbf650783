"""Rows in chunks that fit into one call each, cut so that an edit of some rows changes few of the chunks."""

from __future__ import annotations

from collections.abc import Sequence

LEAST_FILL = 1 / 3
"""Part of what fits into a chunk from which on it may end."""


def chunked(sizes: Sequence[int], marks: Sequence[bytes], most: int) -> list[range]:
    """Cut rows into chunks, in their order, each row in one of them.

    A chunk ends after the row whose mark is least, of all rows after which it is full enough and not too
    full. So most chunks end after the same rows whatever stands before them, and where rows are edited, added
    or taken out, the chunks behind them are soon the old ones again. A chunk has two rows at least, where two
    fit.

    Args:
        sizes: Of the rows, in one unit.
        marks: Digests of the rows: equal rows have equal ones.
        most: Most that a chunk may hold. A row that is larger is a chunk by itself.

    Returns:
        The places of the rows of each chunk.
    """
    chunks = []
    start, count = 0, len(sizes)
    while start < count:
        end, size, cut = start, 0, 0
        while end < count and (size + sizes[end] <= most or end == start):
            size += sizes[end]
            end += 1
            full_enough = size > most * LEAST_FILL and end - start > 1
            if full_enough and (not cut or marks[end - 1] <= marks[cut - 1]):
                cut = end
        if end == count or not cut:
            cut = end
        chunks.append(range(start, cut))
        start = cut
    return chunks
