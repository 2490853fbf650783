"""Which runs may go, and which must stay."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from tagent_nb.errors import CorruptRecordError, DefinitionError, NotStoredError, StorageError
from tagent_nb.storage.records import RunInfo

if TYPE_CHECKING:
    from tagent_nb.storage.base import StorageBackend

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

    def to_delete(self, runs: Sequence[RunInfo], now: float) -> list[RunInfo]:
        """Which of a pipeline's runs (oldest first) go, oldest first.

        Never one that is carried on at this moment, never the newest that completed, and never one that
        cannot be read: a backup, a key or a newer version may still open it.
        """
        runs = [run for run in runs if run.status != "damaged"]
        good = [run.run_id for run in runs if run.status == "completed"]
        total = sum(run.size for run in runs)
        doomed: list[RunInfo] = []
        for place, run in enumerate(runs):
            too_many = self.keep_last is not None and len(runs) - place > self.keep_last
            since = run.ended_at if run.ended_at is not None else run.started_at
            too_old = self.seconds is not None and now - since >= self.seconds
            too_big = self.max_bytes is not None and total > self.max_bytes
            if (too_many or too_old or too_big) and run.status != "running" and run.run_id not in good[-1:]:
                doomed.append(run)
                total -= run.size
        return doomed


async def prune(storage: StorageBackend, pipeline_id: str, rules: Retention, limit: float) -> list[RunInfo]:
    """Delete the runs of a pipeline that may go, for at most ``limit`` seconds; the deleted ones."""
    deadline = time.monotonic() + limit
    deleted: list[RunInfo] = []
    for run in await _to_delete(storage, pipeline_id, rules):
        if time.monotonic() > deadline:
            break
        try:
            await storage.delete_run(run.pipeline_id, run.run_id)
        except NotStoredError:
            # Another process prunes as well.
            continue
        except StorageError as error:
            # Somebody has begun to carry it on, or it cannot be deleted: the others still can.
            storage._report(str(error))
            continue
        deleted.append(run)
    return deleted


async def _to_delete(storage: StorageBackend, pipeline_id: str, rules: Retention) -> list[RunInfo]:
    """As the rules say; the run that stays because it is the newest good one is read to its end before."""
    runs = await storage.runs(pipeline_id)
    while doomed := rules.to_delete(runs, time.time()):
        newest = next((run for run in reversed(runs) if run.status == "completed"), None)
        if newest is None:
            return doomed
        try:
            await storage.read_run(newest.pipeline_id, newest.run_id)
        except NotStoredError:
            runs.remove(newest)
        except CorruptRecordError as error:
            storage._report(str(error))
            runs[runs.index(newest)] = replace(newest, status="damaged")
        else:
            return doomed
    return []
