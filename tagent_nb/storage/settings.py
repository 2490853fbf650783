"""What can be said of a store besides where it is, in the call or in its URL: how long it keeps what."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from tagent_nb.errors import DefinitionError, did_you_mean
from tagent_nb.storage.disk import user_path

if TYPE_CHECKING:
    from tagent_nb.storage.backup import BackupSchedule
    from tagent_nb.storage.base import RunStorage

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_AGE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([smhdw]?)")
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)b?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Settings:
    """What :func:`tagent_nb.storage.open_storage` takes; ``None`` is what nobody said."""

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

    def given(self) -> dict[str, Any]:
        """What somebody said."""
        return {name: value for name in self.names() if (value := getattr(self, name)) is not None}

    def over(self, others: Mapping[str, str]) -> Settings:
        """These, and where they say nothing, others."""
        return Settings(**{**others, **self.given()})

    def apply(self, storage: RunStorage) -> RunStorage:
        """Let a backend keep to the rules; what is not said stays as it is there.

        Raises:
            DefinitionError: A value is not allowed, or the backend cannot do that.
        """
        from tagent_nb.storage.retention import Retention

        rules = (self.keep_last, self.older_than, self.max_bytes)
        if any(rule is not None for rule in rules):
            storage.retention = Retention(_whole("keep_last", self.keep_last), age_of(self.older_than),
                                          size_of(self.max_bytes))  # fmt: skip
        schedule = self._schedule()
        if schedule is not None:
            storage._refuse_schedule(schedule)
            storage.backup_schedule = schedule
        return storage

    def _schedule(self) -> BackupSchedule | None:
        from tagent_nb.storage.backup import BackupSchedule

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
    found = _AGE.fullmatch(value.strip())
    if found is None:
        raise DefinitionError(f"older_than must be seconds, or such as '12h', '30d' or '8w', not {value!r}.")
    return float(found.group(1)) * _SECONDS[found.group(2)]


def size_of(value: Any) -> int | None:
    if not isinstance(value, str):
        return value  # type: ignore[no-any-return]
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise DefinitionError(f"max_bytes must be bytes, or such as '500MB' or '2GB', not {value!r}.")
    return int(float(found.group(1)) * _BYTES[found.group(2).lower()])
