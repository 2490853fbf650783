"""Reading the line of a magic: words, options and their mistakes, each reported in one sentence."""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from IPython.core.error import UsageError
from IPython.core.magic import no_var_expand
from IPython.core.magic_arguments import argument, magic_arguments
from IPython.utils.text import DollarFormatter

from tagent_nb.errors import RunFailedError, TagentError, did_you_mean
from tagent_nb.foreign_words import option_advice
from tagent_nb.pipeline import OPTIONAL_KINDS
from tagent_nb.redaction import redact

F = TypeVar("F", bound=Callable[..., Any])

DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
"""Characters that look like ``-``; word processors put them into copied commands."""
QUOTES = "\u2018\u2019\u201c\u201d\u00ab\u00bb"
BACKSLASH = "\\"
_parsers: dict[str, argparse.ArgumentParser] = {}
"""What reads the line of each magic, by the magic as it is written."""

_WORD = re.compile(r"""(?:\\.|"(?:\\.|[^"\\])*(?:"|$)|'[^']*(?:'|$)|[^\s"'\\])+""", re.DOTALL)
"""A word of a line as it is typed, quotes included."""
_KEPT = re.compile("\0([0-9]+)\0")

SHELL = ("|", ">", ">>", "<", "&", "&&", "||", ";")


def option(*names: str, **settings: Any) -> Callable[[F], F]:
    """One argument of a magic, as for ``argparse``."""
    return argument(*names, **settings)  # type: ignore[no-untyped-call]


def number(text: str) -> float:
    """A number as it is written: ``20`` is a whole one, ``0.1`` is not."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def agent_options(method: F) -> F:
    """One option for each kind of agent that has one, such as ``--plan``."""
    for kind in reversed(OPTIONAL_KINDS):
        method = option(kind.option, action="store_true", help=kind.help)(method)
    return method


ROLES_HELP = " ".join(
    f"With {kind.option}: {', '.join(kind.roles)}." for kind in OPTIONAL_KINDS if kind.roles
)
"""Help of the option for models by role."""


def arguments(
    *, cell: bool = False, expand: bool = True, as_written: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a method the function of a magic that reads options (see :func:`option`).

    The method is called with the options in place of the line, a cell magic's with the cell as well.
    ``--help`` is added, and prints the method's docstring and its options. The user's mistakes are shown as
    one message without a traceback.

    Args:
        cell: Whether it is a cell magic. Its line may go on in the next one after a backslash.
        expand: Whether IPython puts values of variables into the line, for ``$name`` and ``{name}``. In a
            goal braces mean something else.
        as_written: Options in whose values nothing is put, such as ``--combine``: they are templates,
            conditions, or text for a model. Elsewhere in the line values still are.
    """

    def add(method: Callable[..., Any]) -> Callable[..., Any]:
        add_parser = magic_arguments(f"%{method.__name__}" if cell else None)  # type: ignore[no-untyped-call]
        method = add_parser(method)
        parser: argparse.ArgumentParser = method.parser  # type: ignore[attr-defined]
        parser.add_argument("--help", action="store_true", help="Show this text.")
        method.__doc__ = parser.format_help()  # IPython shows it for a question mark
        _parsers[written(method)] = parser

        @functools.wraps(method)
        def magic(self: Any, line: str, body: str = "") -> Any:
            with clear_messages():
                if cell:
                    line, body = continued(line, body)
                if expand and as_written:
                    # The caller's variables, as IPython itself takes them: a frame of its own is between.
                    variables = {**self.shell.user_ns, **sys._getframe(2).f_locals}
                    line = _filled(line.replace("\0", ""), variables, as_written)
                args = parse(method, line)
                if args is None:
                    return None
                return method(self, args, body) if cell else method(self, args)

        return magic if expand and not as_written else no_var_expand(magic)

    return add


def _filled(line: str, variables: dict[str, Any], as_written: Sequence[str]) -> str:
    """A line with values of variables in it, except in those of some options."""
    kept: list[str] = []
    before = ""

    def shielded(word: re.Match[str]) -> str:
        nonlocal before
        is_kept = before in as_written or word[0].startswith(tuple(f"{name}=" for name in as_written))
        before = word[0]
        if not is_kept:
            return word[0]
        kept.append(word[0])
        return f"\0{len(kept) - 1}\0"

    line = _WORD.sub(shielded, line)
    with suppress(Exception):  # as IPython does: what names no variable stays as it is
        line = DollarFormatter().vformat(line, args=[], kwargs=variables)
    return _KEPT.sub(lambda mark: kept[int(mark[1])], line)


@contextmanager
def clear_messages() -> Iterator[None]:
    """Let the user's mistakes be one message without a traceback.

    Raises:
        UsageError: In place of an error of the library.
        RunFailedError: As it is: a program that runs notebooks must see it, and it shows itself as one
            message.
    """
    try:
        yield
    except RunFailedError:
        raise
    except TagentError as error:
        raise UsageError(redact(str(error))) from None


@contextmanager
def writing(magic: str, path: str) -> Iterator[None]:
    """Write the file that an option of a magic names.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"{magic}: {path} cannot be written: {error.strerror or error}.") from None


def written(function: Any) -> str:
    """How a magic is written: with one percent sign, or two for a whole cell."""
    return f"%{function.parser.prog}"


def split(line: str, magic: str) -> list[str]:
    r"""The words of a line, without a trailing ``# comment``. Quotes keep blanks in a word.

    A backslash stays as it was typed, as in ``out\graph.svg``. Only one before a quote makes that quote a
    part of the text; two of them there are one backslash.

    Raises:
        UsageError: A quote is not closed.
    """
    words: list[str] = []
    word: str | None = None
    quote = ""
    place = 0
    while place < len(line):
        letter = line[place]
        if letter == BACKSLASH and quote != "'":
            slashes = len(line) - place - len(line[place:].lstrip(BACKSLASH))
            place += slashes
            before_quote = line[place : place + 1] in (('"',) if quote else ('"', "'"))
            word = (word or "") + BACKSLASH * (slashes // 2 if before_quote else slashes)
            if before_quote and slashes % 2:
                word += line[place]
                place += 1
            continue
        place += 1
        if quote:
            if letter == quote:
                quote = ""
            else:
                word = (word or "") + letter
        elif letter in "'\"":
            quote, word = letter, word or ""
        elif letter == "#" and word is None:
            break
        elif letter.isspace():
            words += [] if word is None else [word]
            word = None
        else:
            word = (word or "") + letter
    if quote:
        slash = (
            f"\nA backslash before {quote} makes it a part of the text: write two."
            if "\\" + quote in line
            else ""
        )
        raise UsageError(
            f"{magic}: a quote is not closed in: {line.strip()}\n"
            f"Close it, or put text that has an apostrophe into double quotes.{slash}"
        )
    return words if word is None else [*words, word]


def continued(line: str, cell: str) -> tuple[str, str]:
    r"""The line of a cell magic with those that it goes on in, and the rest of the cell.

    IPython joins lines that end in ``\`` for line magics only.
    """
    while line.rstrip().endswith("\\"):
        following, _, cell = cell.partition("\n")
        line = f"{line.rstrip()[:-1]} {following}"
    return line, cell


def parse(function: Any, line: str) -> argparse.Namespace | None:
    """Read the line of a magic that was made with :func:`arguments`.

    Returns ``None`` after ``--help``, which prints the help text.

    Raises:
        UsageError: The line cannot be read; the message says how to write it.
    """
    parser: argparse.ArgumentParser = function.parser
    magic = written(function)
    words = split(line, magic)
    _check_letters(words, magic)
    if "--help" in words:
        print(parser.format_help())
        return None
    parser.allow_abbrev = False
    _check_repeated(parser, words, magic)
    try:
        args, rest = parser.parse_known_args(words)
    except UsageError as error:
        raise UsageError(f"{magic}: {error}. {_hint(magic)}") from None
    if rest:
        raise UsageError(f"{magic}: {_unknown(parser, rest[0])} {_hint(magic)}")
    return args


def _hint(magic: str) -> str:
    return f"See {magic} --help"


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings]


def _check_letters(words: list[str], magic: str) -> None:
    for word in words:
        if word.startswith(tuple(DASHES)):
            plain = re.sub(f"^[{DASHES}]+", "--", word)
            raise UsageError(f"{magic}: {word!r} begins with a dash that is not ASCII. Write {plain!r}.")
        if word.startswith(tuple(QUOTES)):
            raise UsageError(f"{magic}: {word!r} begins with a curly quote. Write \" or ' instead.")


def _check_repeated(parser: argparse.ArgumentParser, words: list[str], magic: str) -> None:
    options = [word.partition("=")[0] for word in words]
    for action in parser._actions:
        if not isinstance(action, argparse._AppendAction):
            count = sum(options.count(option) for option in action.option_strings)
            if count > 1:
                raise UsageError(
                    f"{magic}: option {action.option_strings[0]} is given {count} times. Keep one."
                )


def _unknown(parser: argparse.ArgumentParser, word: str) -> str:
    if word in SHELL:
        return f"{word!r} means nothing here: a magic is no shell command."
    options = _options(parser)
    if not word.startswith("-"):
        what = f"there is nothing to do with {word!r}."
        if "--until" in options:
            return (
                f"{what} For one step and what it needs write --until {word}, to run it again --force {word}."
            )
        return f"{what} Text of several words needs quotes."
    option = word.partition("=")[0]
    own = [name for name in options if name != "--help"]
    hint = option_advice(option, options)
    elsewhere = [magic for magic, other in _parsers.items() if option in _options(other)]
    if elsewhere and not hint:
        hint = f" It is an option of {', '.join(elsewhere)}."
    hint = hint or did_you_mean(option, own) or did_you_mean(f"--{option.lstrip('-')}", own)
    return f"there is no option {option}.{hint} Options: {', '.join(options)}."


def names(text: str | None) -> list[str]:
    """``"a, b:weak"`` as ``["a", "b:weak"]``."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def no_leftovers(magic: str, **values: str | None) -> None:
    """Refuse ``$name`` and ``{name}`` that IPython could not fill in.

    Raises:
        UsageError: One of the values still holds such a name.
    """
    for option, value in values.items():
        reference = re.search(r"\$\{?([^\W\d]\w*)|^\{(.+)\}$", value or "")
        if reference:
            name = reference.group(1) or reference.group(2)
            raise UsageError(f"{magic}: {option} is {value!r}, but there is no variable {name!r}.")
