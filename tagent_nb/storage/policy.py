"""What can be said of a store besides where it is, in the call or in its URL: how long it keeps what."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import takewhile
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from tagent_nb.errors import CorruptRecordError, DefinitionError, NotStoredError, StorageError, did_you_mean
from tagent_nb.storage.filesystem import user_path
from tagent_nb.storage.format.events import RunInfo

if TYPE_CHECKING:
    from tagent_nb.storage.backup.create import BackupSchedule
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
        from tagent_nb.storage.backup.create import BackupSchedule

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


LOOK = 200
"""Runs that are looked at together."""

LIMIT = 5.0
"""Seconds after which pruning stops; the next one goes on."""


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
        doomed: list[RunInfo] = []
        for place, run in enumerate(runs):
            too_many = self.keep_last is not None and len(runs) - place > self.keep_last
            too_old = self.is_old(run, now)
            too_big = self.max_bytes is not None and total > self.max_bytes
            stays = run.status in _UNFINISHED or run.undecided or run.run_id in good[-1:]
            if (too_many or too_old or too_big) and not stays:
                doomed.append(run)
                total -= run.size
        return doomed


_UNFINISHED = ("running", "waiting")

TOGETHER_BYTES = 4_000_000
"""Bytes of runs that are deleted at once: who records meanwhile waits no longer than for these."""


def _batches(runs: Sequence[RunInfo], most: int) -> Iterator[tuple[int, list[RunInfo]]]:
    """Runs that are deleted at once, at most so many, and the place of the first of them."""
    place = 0
    while place < len(runs):
        end, size = place + 1, runs[place].size
        while end < min(len(runs), place + most) and size + runs[end].size <= TOGETHER_BYTES:
            size += runs[end].size
            end += 1
        yield place, list(runs[place:end])
        place = end


async def prune(
    storage: RunStorage, pipeline_id: str, rules: Retention, limit: float, ended: str | None = None
) -> list[RunInfo]:
    """Delete the runs of a pipeline that may go, for at most ``limit`` seconds; the deleted ones.

    However many there are, the newest are looked at and, part by part, the others from the oldest on, until
    there is nothing to delete. Those between count by their number and size.

    Args:
        storage: Where they are.
        pipeline_id: The pipeline, or its name.
        rules: Which runs go.
        limit: Without an end, runs that processes on other machines may carry on are watched.
        ended: A run that stays, whatever the rules say: the one whose end is the reason to prune.
    """
    deadline = time.monotonic() + limit
    pruning = _Pruning(storage, await storage._stored_id(pipeline_id), rules, limit, deadline, ended)
    await pruning.prune()
    return pruning.deleted


@dataclass
class _Pruning:
    """One go at the runs of a pipeline."""

    storage: RunStorage
    pipeline_id: str
    rules: Retention
    limit: float
    deadline: float
    ended: str | None
    deleted: list[RunInfo] = field(default_factory=list)
    seen: dict[str, tuple[RunInfo, int, bytes]] = field(default_factory=dict)
    sound: str = ""

    async def prune(self) -> None:
        rules = self.rules
        sizes = await self._sizes()
        few = rules.keep_last is None or len(sizes) <= rules.keep_last
        small = rules.max_bytes is None or sum(sizes.values()) <= rules.max_bytes
        if few and small and rules.seconds is None:
            return
        run_ids = list(sizes)
        first_new = max(0, len(run_ids) - max(LOOK, rules.keep_last or 0))
        await self._look_at(run_ids[first_new:])
        for start in range(0, max(1, first_new), LOOK):
            part = run_ids[start : min(first_new, start + LOOK)]
            await self._look_at(part)
            doomed = await self._doomed(sizes)
            # Oldest first: those behind one that has not been looked at have time.
            seen = list(takewhile(lambda run: run.run_id in self.seen, doomed))
            for place, batch in _batches(seen, self.storage._removed_at_once):
                if time.monotonic() > self.deadline:
                    self._stopped(len(doomed) - place)
                    return
                deleted = await self._delete([run.run_id for run in batch])
                self.deleted += [run for run in batch if run.run_id in deleted]
                for run_id in deleted:
                    del sizes[run_id]
            if len(seen) == len(doomed) and not self._old_ones_may_follow(part):
                return

    async def _sizes(self) -> dict[str, int]:
        """All runs in their order, with their sizes if a rule asks for them."""
        if self.rules.max_bytes is None:
            return dict.fromkeys(await self.storage._run_ids(self.pipeline_id), 0)
        safe = set(await self.storage._run_ids(self.pipeline_id))
        return {run_id: size for run_id, size in await self.storage._runs(self.pipeline_id) if run_id in safe}

    async def _look_at(self, run_ids: Sequence[str]) -> None:
        for start in range(0, len(run_ids), LOOK):
            part = run_ids[start : start + LOOK]
            for described in await self.storage._described(self.pipeline_id, part):
                self.seen[described[0].run_id] = described

    async def _doomed(self, sizes: Mapping[str, int]) -> list[RunInfo]:
        """As the rules say. The newest good run, because of which others go, is read to its end before."""
        now = time.time()
        runs = [
            self.seen[run_id][0]
            if run_id in self.seen
            else RunInfo(run_id, self.pipeline_id, started_at=math.inf, size=size)
            for run_id, size in sizes.items()
        ]
        while doomed := [run for run in self.rules.to_delete(runs, now) if run.run_id != self.ended]:
            newest = next((run for run in reversed(runs) if run.status == "completed"), None)
            if newest is None or newest.run_id == self.sound:
                return doomed
            try:
                await self.storage.read_run(newest.pipeline_id, newest.run_id)
            except NotStoredError:
                runs.remove(newest)
            except CorruptRecordError as error:
                self.storage._report(str(error))
                runs[runs.index(newest)] = bad = replace(newest, status="damaged")
                self.seen[newest.run_id] = (bad, *self.seen[newest.run_id][1:])
            else:
                self.sound = newest.run_id
                return doomed
        return []

    async def _delete(self, run_ids: Sequence[str]) -> set[str]:
        """Delete those runs to which nothing has happened since they were looked at; their ids."""
        storage, now = self.storage, await self.storage._now()
        unclaimed: dict[str, int] = {}
        deleted: set[str] = set()
        for run_id in run_ids:
            _, token, held = self.seen[run_id]
            if storage._keeper(self.pipeline_id, run_id, token, held, now) is None:
                unclaimed[run_id] = token
            elif math.isinf(self.limit):
                # It takes the time that it takes to see that nothing is heard of its process.
                try:
                    await storage.delete_run(self.pipeline_id, run_id)
                    deleted.add(run_id)
                except NotStoredError:
                    # Another process prunes as well.
                    pass
                except StorageError as error:
                    # It is carried on, or it cannot be deleted: the others still can.
                    storage._report(str(error))
        return deleted.union(await storage._remove_unclaimed_runs(self.pipeline_id, unclaimed))

    def _old_ones_may_follow(self, part: Sequence[str]) -> bool:
        """Whether runs behind a part may be too old, too: its last one is, or time is no matter."""
        if self.rules.seconds is None:
            return False
        last = self.seen.get(part[-1]) if part else None
        return math.isinf(self.limit) or (last is not None and self.rules.is_old(last[0], time.time()))

    def _stopped(self, left: int) -> None:
        self.storage._report(
            f"Pruning pipeline {self.pipeline_id} stopped after {self.limit:g} s: {len(self.deleted):,} runs "
            f"were deleted, and about {left:,} more may go. The end of the next run goes on with them; to "
            f"delete them now: await storage.prune({self.pipeline_id!r}, ...)."
        )
