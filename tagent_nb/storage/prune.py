"""Deleting the runs of a pipeline that a policy lets go."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Protocol

from tagent_nb.errors import CorruptRecordError, NotStoredError, StorageError
from tagent_nb.events import Event
from tagent_nb.storage.lease import Claims
from tagent_nb.storage.policy import Retention
from tagent_nb.storage.run_info import RunInfo

LOOK = 200
"""Runs that are looked at together."""

LIMIT = 5.0
"""Seconds after which pruning stops; the next one goes on."""

TOGETHER_BYTES = 4_000_000
"""Bytes of runs that are deleted at once: who records meanwhile waits no longer than for these."""


class Prunable(Protocol):
    """What pruning needs of a storage."""

    _removed_at_once: int
    _claims: Claims

    async def read_run(self, pipeline_id: str, run_id: str, /) -> list[Event]:
        """What happened in a run."""

    async def delete_run(self, pipeline_id: str, run_id: str, /) -> None:
        """Delete a run, once it was seen that no process carries it on."""

    async def _stored_id(self, pipeline_id: str, /) -> str:
        """The id under which there are runs."""

    async def _run_ids(self, pipeline_id: str, /) -> list[str]:
        """All runs in their order."""

    async def _runs(self, pipeline_id: str, /) -> list[tuple[str, int]]:
        """All runs in their order, with their bytes."""

    async def _described(
        self, pipeline_id: str, run_ids: Sequence[str], /
    ) -> list[tuple[RunInfo, int, bytes]]:
        """Some runs, with token and holder of their leases."""

    async def _now(self) -> float:
        """The time by which heartbeats are judged."""

    async def _remove_unclaimed_runs(self, pipeline_id: str, tokens: Mapping[str, int], /) -> list[str]:
        """Remove runs that no process has claimed since their leases had these tokens; which were."""

    def _report(self, message: str, /) -> None:
        """Note a problem that stops nothing."""


async def prune(
    storage: Prunable, pipeline_id: str, rules: Retention, limit: float, ended: str | None = None
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

    storage: Prunable
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
            to_delete = await self._due(sizes)
            # Oldest first: those behind one that has not been looked at have time.
            seen = list(takewhile(lambda run: run.run_id in self.seen, to_delete))
            for place, batch in _batches(seen, self.storage._removed_at_once):
                if time.monotonic() > self.deadline:
                    self._stopped(len(to_delete) - place)
                    return
                deleted = await self._delete([run.run_id for run in batch])
                self.deleted += [run for run in batch if run.run_id in deleted]
                for run_id in deleted:
                    del sizes[run_id]
            if len(seen) == len(to_delete) and not self._old_ones_may_follow(part):
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

    async def _due(self, sizes: Mapping[str, int]) -> list[RunInfo]:
        """As the rules say. The newest good run, because of which others go, is read to its end before."""
        now = time.time()
        runs = [
            self.seen[run_id][0]
            if run_id in self.seen
            else RunInfo(run_id, self.pipeline_id, started_at=math.inf, size=size)
            for run_id, size in sizes.items()
        ]
        while to_delete := [run for run in self.rules.to_delete(runs, now) if run.run_id != self.ended]:
            newest = next((run for run in reversed(runs) if run.status == "completed"), None)
            if newest is None or newest.run_id == self.sound:
                return to_delete
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
                return to_delete
        return []

    async def _delete(self, run_ids: Sequence[str]) -> set[str]:
        """Delete those runs to which nothing has happened since they were looked at; their ids."""
        storage, now = self.storage, await self.storage._now()
        unclaimed: dict[str, int] = {}
        deleted: set[str] = set()
        for run_id in run_ids:
            _, token, holder = self.seen[run_id]
            if storage._claims.keeper(self.pipeline_id, run_id, token, holder, now) is None:
                unclaimed[run_id] = token
            elif math.isinf(self.limit):
                # It takes the time that it takes to see that its process sends no heartbeat.
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
