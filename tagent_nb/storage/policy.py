"""What can be said of a store besides where it is, in the call or in its URL: how long it keeps what."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from tagent_nb.errors import DefinitionError, did_you_mean
from tagent_nb.storage.filesystem import user_path
from tagent_nb.storage.run_info import RunInfo

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_AGE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([smhdw]?)")
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)b?", re.IGNORECASE)


def shown(url: str) -> str:
    """A URL for messages: without user and password."""
    return re.sub(r"//[^/?#]*@", "//***@", url)


def split_url(url: str) -> tuple[str, dict[str, str]]:
    """A URL without our settings, and these; what else is in its query stays.

    Raises:
        DefinitionError: One is there twice.
    """
    base, mark, query = url.partition("?")
    if not mark:
        return url, {}
    ours: dict[str, str] = {}
    rest: list[tuple[str, str]] = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in Settings.names():
            rest.append((name, value))
        elif name in ours:
            raise DefinitionError(f"Storage {shown(base)!r}: {name} is given twice. Keep one.")
        else:
            ours[name] = value
    return (f"{base}?{urlencode(rest)}" if rest else base), ours


def refuse_unknown(url: str, kind: str) -> str:
    """A URL that takes no other settings than ours; it has no query any more.

    Raises:
        DefinitionError: Something is left in its query.
    """
    base, mark, query = url.partition("?")
    if mark:
        name = query.partition("=")[0]
        raise DefinitionError(
            f"Storage {base!r}: there is no setting {name!r}.{did_you_mean(name, Settings.names())} "
            f"A {kind} takes: {_listed(Settings.names())}. A '?' in a name is written %3F."
        )
    return base


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _whole(name: str, value: Any) -> Any:
    """A number of a URL; a value of a call is judged where it is used."""
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r"\d{1,15}", value):
        raise DefinitionError(f"{name} must be a whole number, not {value!r}.")
    return int(value)


def age_of(value: Any) -> timedelta | float | None:
    if not isinstance(value, str):
        return value  # type: ignore[no-any-return]
    match = _AGE.fullmatch(value.strip())
    if match is None:
        raise DefinitionError(f"older_than must be seconds, or such as '12h', '30d' or '8w', not {value!r}.")
    return float(match.group(1)) * _SECONDS[match.group(2)]


def size_of(value: Any) -> int | None:
    if not isinstance(value, str):
        return value  # type: ignore[no-any-return]
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise DefinitionError(f"max_bytes must be bytes, or such as '500MB' or '2GB', not {value!r}.")
    return int(float(match.group(1)) * _BYTES[match.group(2).lower()])


@dataclass(frozen=True, slots=True)
class Retention:
    """Rules for the runs of a pipeline. A run goes if any of them says so.

    Attributes:
        keep_last: Newest runs to keep.
        older_than: Age, since its end or else its start, from which a run goes.
        max_bytes: Bytes that the runs of a pipeline may take together; the oldest go first.

    Raises:
        DefinitionError: There is no rule, or a number is not allowed.
    """

    keep_last: int | None = None
    older_than: timedelta | float | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.keep_last is None and self.older_than is None and self.max_bytes is None:
            raise DefinitionError(
                "Say which runs may go: keep_last=10, older_than=timedelta(days=30) or max_bytes=10**9."
            )
        for name in ("keep_last", "max_bytes"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise DefinitionError(f"{name} must be a whole number of at least 0, not {value!r}.")
        age = 0.0 if self.seconds is None else self.seconds
        if not isinstance(age, int | float) or isinstance(age, bool) or not 0 <= age < math.inf:
            raise DefinitionError(
                f"older_than must be a timedelta or seconds, at least 0, not {self.older_than!r}."
            )

    @property
    def seconds(self) -> float | None:
        """``older_than`` in seconds."""
        return self.older_than.total_seconds() if isinstance(self.older_than, timedelta) else self.older_than

    def is_old(self, run: RunInfo, now: float) -> bool:
        """Whether a run goes because of its age."""
        since = run.ended_at if run.ended_at is not None else run.started_at
        return self.seconds is not None and now - since >= self.seconds

    def to_delete(self, runs: Sequence[RunInfo], now: float) -> list[RunInfo]:
        """Which of a pipeline's runs (oldest first) go, oldest first.

        Never one that is carried on at this moment or waits for an approval, never the newest that
        completed, and never one that cannot be read: a backup, a key or a newer version may still open it.
        """
        runs = [run for run in runs if run.status != "damaged"]
        good = [run.run_id for run in runs if run.status == "completed"]
        total = sum(run.size for run in runs)
        to_delete: list[RunInfo] = []
        for place, run in enumerate(runs):
            too_many = self.keep_last is not None and len(runs) - place > self.keep_last
            too_old = self.is_old(run, now)
            too_big = self.max_bytes is not None and total > self.max_bytes
            stays = run.status in _UNFINISHED or run.undecided or run.run_id in good[-1:]
            if (too_many or too_old or too_big) and not stays:
                to_delete.append(run)
                total -= run.size
        return to_delete


_UNFINISHED = ("running", "waiting")


@dataclass(frozen=True, slots=True)
class BackupSchedule:
    """When a backup is made by itself: at the end of a run.

    Attributes:
        every: Ended runs of a pipeline after which a backup is made.
        keep: Verified backups to keep.
        folder: Where; ``None`` is the backend's own place.

    Raises:
        DefinitionError: A number is below 1.
    """

    every: int = 20
    keep: int = 3
    folder: Path | None = None

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DefinitionError(f"{name} must be a whole number of at least 1, not {value!r}.")


@dataclass(frozen=True, slots=True)
class Settings:
    """What :func:`tagent_nb.storage.open_storage` takes; ``None`` is what is not set."""

    durability: Any = None
    keep_last: Any = None
    older_than: Any = None
    max_bytes: Any = None
    backup_every: Any = None
    backup_keep: Any = None
    backup_folder: Any = None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """What there is to be set."""
        return cls.__slots__

    def values(self) -> dict[str, Any]:
        """What is set."""
        return {name: value for name in self.names() if (value := getattr(self, name)) is not None}

    def over(self, others: Mapping[str, str]) -> Settings:
        """These, and what they do not set from others."""
        return Settings(**{**others, **self.values()})

    def retention(self) -> Retention | None:
        """The rules by which runs go, ``None`` if there are none.

        Raises:
            DefinitionError: A value is not allowed.
        """
        if self.keep_last is None and self.older_than is None and self.max_bytes is None:
            return None
        keep_last = _whole("keep_last", self.keep_last)
        return Retention(keep_last, age_of(self.older_than), size_of(self.max_bytes))

    def schedule(self) -> BackupSchedule | None:
        """When backups are made by themselves, ``None`` if never.

        Raises:
            DefinitionError: A value is not allowed, or ``backup_every`` is missing.
        """
        if self.backup_every is None:
            if self.backup_keep is not None or self.backup_folder is not None:
                raise DefinitionError("Say how often a backup is made, too: backup_every=20 (runs).")
            return None
        folder = None if self.backup_folder is None else user_path(self.backup_folder, "backup_folder")
        keep = {} if self.backup_keep is None else {"keep": _whole("backup_keep", self.backup_keep)}
        every = _whole("backup_every", self.backup_every)
        try:
            return BackupSchedule(every, folder=folder, **keep)
        except DefinitionError as error:
            # Its own fields have shorter names: ``every`` and ``keep``.
            raise DefinitionError(f"backup_{error}") from None
