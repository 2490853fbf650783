"""Values as short texts, for tables."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from tagent_nb.errors import TagentError
from tagent_nb.events import NO_USAGE, Output, TokenUsage
from tagent_nb.redaction import redact
from tagent_nb.user_objects import class_name, ends_program, raising_method

__all__ = [
    "cost_text",
    "count",
    "failures_text",
    "is_lost",
    "kinds_text",
    "model_label",
    "one_line",
    "seconds_text",
    "short_text",
    "terminal_text",
    "tokens_text",
    "total_tokens_text",
    "value_text",
    "whole_text",
]


def is_lost(output: Output) -> bool:
    """Whether the value could not be stored, and this is not the process that made it.

    ``None`` stands for it then; ``None`` itself can be stored.

    Raises:
        CorruptRecordError: Its bytes are damaged.
    """
    return output.value is None and not output.storable


def value_text(output: Output | None, limit: int = 80) -> str:
    """What a step's output is, on one line, without secrets; an output that was not stored says so.

    Args:
        output: The step's output, or ``None``.
        limit: Most characters.
    """
    if output is None:
        return ""
    try:
        value = output.value
    except TagentError as error:
        return one_line(f"(cannot be read: {error})", limit)
    if is_lost(output):
        return one_line(f"(not stored: {output.problem})", limit)
    # Before the text is cut: half of a secret is not found any more.
    return one_line(redact(short_text(value, _CUT_LATER * limit)), limit)


_CUT_LATER = 4


def short_text(value: Any, limit: int = 80) -> str:
    """A value on one line: tables by their size, texts as they are, all else by its ``repr``."""
    try:
        return _short(value, limit)
    except BaseException as error:  # the value's methods are the user's code
        if ends_program(error):
            raise
        return f"{class_name(value)} (its {_asked_of(error)} fails: {class_name(error)})"


def _asked_of(error: BaseException) -> str:
    """``repr``, ``len`` and the like: the special method that raised."""
    return raising_method(error).rpartition(".")[2].strip("_") or "repr"


def _short(value: Any, limit: int) -> str:
    if isinstance(value, str):
        return one_line(str.__str__(value), limit)
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(value, pandas.DataFrame):
        rows, columns = value.shape
        return f"DataFrame, {count(rows, 'row')} x {count(columns, 'column')}"
    if pandas is not None and isinstance(value, pandas.Series | pandas.Index):
        return f"{type(value).__name__}, {count(len(value), 'value')}"
    if isinstance(value, list | tuple | set | frozenset | dict) and len(value) > 20:
        return f"{type(value).__name__}, {count(len(value), 'item')}"
    return one_line(repr(value), limit)


def terminal_text(text: str) -> str:
    """Text that a terminal shows and does not obey.

    Control characters (colours, titles, links, moves of the cursor, bells) and marks that turn the direction
    of writing are written as escapes, as in ``ascii()``; line ends and tabs stay.
    """
    return _OBEYED.sub(lambda match: ascii(match[0])[1:-1], text)


_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def one_line(text: str, limit: int) -> str:
    """The text on one line of at most ``limit`` characters, with nothing in it that cannot be written."""
    line = " ".join(text[: 4 * limit].split()).encode("utf-8", "replace").decode()
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def count(number: int, word: str) -> str:
    """``1 item``, ``1,200 items``."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def failures_text(most: float) -> str:
    """``20 failed items``, ``10% failed items``: a number of items or a share of them."""
    return count(most, "failed item") if isinstance(most, int) else f"{100 * most:g}% failed items"


def kinds_text(kinds: Mapping[str, int], most: int = 3) -> str:
    """``14 x ValidationError, 2 x TimeoutError``: how often each kind of error came, the most frequent first.

    Args:
        kinds: How often, by kind.
        most: Kinds that are named; all others together are the last.
    """
    ranked = sorted(kinds.items(), key=lambda kind: -kind[1])
    texts = [f"{number:,} x {name}" for name, number in ranked[:most]]
    others = sum(number for _, number in ranked[most:])
    return ", ".join([*texts, *([f"{others:,} x other kinds"] if others else [])])


def whole_text(value: Any) -> Any:
    """``value`` without halves of surrogate pairs, which neither a request nor storage can carry.

    Two halves that belong together become their letter, any other one becomes U+FFFD.

    Args:
        value: A text; or lists, tuples and dicts with texts in them. All else comes back as it is.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return value
    kind = type(value)
    if kind is dict:
        return {whole_text(key): whole_text(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return kind(whole_text(item) for item in value)
    return value


def seconds_text(seconds: float) -> str:
    """``"0.4 s"``, ``"12 s"``, ``"3 min 20 s"``, ``"2 h 05 min"``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def cost_text(cost: float | None) -> str:
    """USD with as many digits as matter; ``"$?"`` when the price is unknown, never 0 for that."""
    if cost is None:
        return "$?"
    if cost == 0:
        return "$0"
    if cost < 0.0001:
        return "<$0.0001"
    return f"${cost:.4f}" if cost < 0.1 else f"${cost:.2f}"


def tokens_text(tokens: int | None) -> str:
    """``"950"``, ``"12.3k"``, ``"4.5M"``; ``"?"`` when they are unknown."""
    if tokens is None:
        return "?"
    if tokens < 1000:
        return str(tokens)
    return f"{tokens / 1000:.1f}k" if tokens < 999_950 else f"{tokens / 1_000_000:.1f}M"


def total_tokens_text(usages: Iterable[TokenUsage]) -> str:
    """Tokens of several steps; ``"12.3k + ?"`` where some of them are unknown. Empty for none at all."""
    total = sum(usages, NO_USAGE)
    if not total.unmeasured:
        return tokens_text(total.total_tokens) if total.total_tokens else ""
    return f"{tokens_text(total.total_tokens)} + ?" if total.total_tokens else "?"


def model_label(model: object) -> str:
    """A model's name for people: the string itself, or the name that a model object goes by."""
    return model if isinstance(model, str) else str(getattr(model, "model_name", type(model).__name__))
