"""Defaults from the environment: ``TAGENT_NB_MODEL`` and the like, also in a ``.env`` of the working folder.

They are the weakest say: whatever is written in Python, in a cell or on the command line comes before them,
and the environment before the file. Of the file only these names are read, and nothing is put into the
environment: keys of providers and all else in it belong to other programs.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

from tagent_nb.errors import DefinitionError, did_you_mean
from tagent_nb.pipeline.budget import Budget
from tagent_nb.pipeline.step_checks import checked_timeout

__all__ = ["PREFIX", "Defaults", "defaults"]

PREFIX = "TAGENT_NB_"
FILE = ".env"
LONGEST = 1 << 20
"""Bytes of a ``.env`` that is read; a longer one is no list of settings."""

_LINE = re.compile(rf"\s*(?:export\s+)?({PREFIX}\w*)\s*=\s*(.*?)\s*$")
_warned: set[str] = set()


@dataclass(frozen=True)
class Defaults:
    """What is taken where nothing else is set.

    Attributes:
        model: Model of agent steps for which neither step nor pipeline nor executor names one.
        storage: Folder or URL where runs are recorded.
        cache: Folder of cached answers.
        budget: Most that a run may spend.
        timeout: Most seconds of a run.
    """

    model: str | None = None
    storage: str | None = None
    cache: str | None = None
    budget: Budget | None = None
    timeout: float | None = None


def defaults() -> Defaults:
    """The defaults as they are now.

    Warns once of each name that begins with ``TAGENT_NB_`` and means nothing.

    Raises:
        DefinitionError: A value cannot be read; the message names it and where it stands.
    """
    values = {**_of_file(), **_of_environment()}
    names = [PREFIX + field.name.upper() for field in fields(Defaults)]
    for name in sorted(values.keys() - {*names, *_warned}):
        _warned.add(name)
        warnings.warn(
            f"{name} ({values[name][1]}) means nothing.{did_you_mean(name, names)} "
            f"Known: {', '.join(names)}.",
            stacklevel=3,
        )
    values = {name: values[name] for name in names if name in values and values[name][0]}
    plain = {name.removeprefix(PREFIX).lower(): value for name, (value, _) in values.items()}
    budget, timeout = values.get(f"{PREFIX}BUDGET"), values.get(f"{PREFIX}TIMEOUT")
    return Defaults(
        model=plain.get("model"),
        storage=plain.get("storage"),
        cache=plain.get("cache"),
        budget=None if budget is None else _budget(*budget),
        timeout=None if timeout is None else _timeout(*timeout),
    )


def _budget(value: str, where: str) -> Budget:
    try:
        return Budget.of(value)
    except DefinitionError as error:
        raise DefinitionError(f"{PREFIX}BUDGET ({where}): {error}") from None


def _timeout(value: str, where: str) -> float | None:
    try:
        seconds: object = float(value)
    except ValueError:
        seconds = value
    return checked_timeout(f"{PREFIX}TIMEOUT ({where})", seconds)


def _of_environment() -> dict[str, tuple[str, str]]:
    """Values by name, each with where it stands."""
    values = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    return {name: (value.strip(), "environment") for name, value in values.items()}


def _of_file() -> dict[str, tuple[str, str]]:
    path = Path(FILE)
    try:
        if not path.is_file() or path.stat().st_size > LONGEST:
            return {}
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        if FILE not in _warned:
            _warned.add(FILE)
            warnings.warn(
                f"{FILE} cannot be read ({error.strerror}): its settings do not count.", stacklevel=4
            )
        return {}
    values = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.match(line)
        if match:
            values[match[1]] = (_unquoted(match[2]), f"{FILE}, line {number}")
    return values


def _unquoted(text: str) -> str:
    """A value without its quotes, or without the comment behind it."""
    quoted = re.match(r"""(["'])(.*?)\1\s*(?:#.*)?$""", text)
    return quoted[2] if quoted else re.sub(r"(^|\s)#.*$", "", text).strip()
