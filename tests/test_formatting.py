"""Values as short texts: one line, bounded, and never an error."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagent_nb.formatting import kinds_text, one_line, short_text, terminal_text, value_text
from tagent_nb.serde import StoredValue


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("  two\n lines ", "two lines"),
        (None, "None"),
        ({"a": [1]}, "{'a': [1]}"),
        (list(range(21)), "list, 21 items"),
        (dict.fromkeys(range(5000)), "dict, 5,000 items"),
        (pd.DataFrame({"a": [1], "b": [2]}), "DataFrame, 1 row x 2 columns"),
        (pd.Series([1, 2]), "Series, 2 values"),
        (pd.Index([1]), "Index, 1 value"),
        (10**5000, "int (its repr fails: ValueError)"),
        ("x" * 100, "x" * 79 + "…"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_one_short_line(value: Any, text: str) -> None:
    assert short_text(value) == text


@given(st.text() | st.lists(st.text()), st.integers(2, 50))
def test_it_is_never_longer_never_two_lines_and_can_be_written(value: Any, limit: int) -> None:
    text = short_text(value, limit)
    assert len(text) <= max(limit, len("list, 1,000 items"))
    assert text.splitlines() in ([], [text])
    assert text.encode() is not None
    assert len(one_line(str(value), limit)) <= limit


def test_an_output_tells_its_value_or_why_there_is_none() -> None:
    assert value_text(None) == ""
    assert value_text(StoredValue.of(None)) == "None"
    assert value_text(StoredValue.of(len)) == "<built-in function len>"
    assert value_text(StoredValue.unstorable("output.fn: a function cannot be stored")) == (
        "(not stored: output.fn: a function cannot be stored)"
    )
    assert value_text(StoredValue.from_blob(b"{", "d")).startswith("(cannot be read: A stored value")


def test_kinds_of_errors_are_ranked_and_the_rest_is_summed_up() -> None:
    assert kinds_text({"B": 1, "A": 1400}) == "1,400 x A, 1 x B"
    assert kinds_text({"A": 9, "B": 2, "C": 3, "D": 1, "E": 1}) == "9 x A, 3 x C, 2 x B, 2 x other kinds"
    assert kinds_text({}) == ""


def test_a_terminal_gets_escapes_of_what_it_would_obey() -> None:
    """Line ends, tabs and letters of all scripts stay."""
    assert terminal_text("a\tb\nü漢🙂") == "a\tb\nü漢🙂"
    assert terminal_text("\x1b]0;t\x07") == "\\x1b]0;t\\x07"
    assert terminal_text("\x9b1m\r\u202ex\u2066") == "\\x9b1m\\r\\u202ex\\u2066"
