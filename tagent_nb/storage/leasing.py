"""Who may record a run: claiming it, staying alive, giving it back."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from tagent_nb.errors import CorruptRecordError, LeaseLostError, StorageError
from tagent_nb.pipeline.names import safe_id
from tagent_nb.storage.leases import TTL, Holder, Lease
from tagent_nb.storage.problems import Reporting

MAX_TOKEN = 1 << 53
"""Above any token for centuries to come, and exact in every language."""


class Leasing(Reporting, ABC):
    """Grants each run to one process at a time.

    Attributes:
        lease_ttl: Seconds without a heartbeat after which a lease expires.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lease_ttl = TTL
        self._unreleased: set[tuple[str, str, int]] = set()

    # -- primitives -------------------------------------------------------------------------

    @abstractmethod
    async def _lease(self, pipeline_id: str, run_id: str) -> tuple[int, bytes]:
        """Token and holder of a run's lease; ``(0, b"")`` if there never was one."""

    @abstractmethod
    async def _swap_lease(
        self, pipeline_id: str, run_id: str, expected: int, token: int, holder: bytes
    ) -> bool:
        """Set token and holder in one step if the token is still ``expected``; say whether it was."""

    async def _now(self) -> float:
        """The time by which heartbeats are judged, in seconds since the epoch."""
        return time.time()

    @abstractmethod
    def _forget(self, pipeline_id: str, run_id: str) -> None:
        """Drop what this object remembers about a run: others may have changed it."""

    # -- leases -----------------------------------------------------------------------------

    async def acquire(self, pipeline_id: str, run_id: str) -> Lease:
        """Become the one who records a run, new or interrupted.

        Raises:
            LeaseLostError: Another process carries it on; the message names host and pid.
        """
        self._check(pipeline_id, run_id)
        token, held = await self._lease(pipeline_id, run_id)
        if token > MAX_TOKEN:
            raise CorruptRecordError(
                f"The lease of run {run_id} of pipeline {pipeline_id} is damaged. "
                "Restore a backup, or delete the run."
            )
        now = await self._now()
        holder = Holder.from_bytes(held)
        # A lease that this object could not give back keeps nobody out here.
        given_up = (pipeline_id, run_id, token) in self._unreleased
        if holder is not None and holder.lives(now) and not given_up:
            raise self._taken(pipeline_id, run_id, holder, now)
        mine = Holder.here(now, self.lease_ttl)
        # Time makes tokens grow even where the last lease was lost with its file.
        new = max(token + 1, int(now * 1_000_000))
        if not await self._swap_lease(pipeline_id, run_id, token, new, mine.to_bytes()):
            _, held = await self._lease(pipeline_id, run_id)
            raise self._taken(pipeline_id, run_id, Holder.from_bytes(held), now)
        self._unreleased.discard((pipeline_id, run_id, token))
        self._forget(pipeline_id, run_id)
        return Lease(pipeline_id, run_id, new, mine.host, mine.pid, self.lease_ttl)

    async def renew(self, lease: Lease) -> None:
        """Say that the holder is alive.

        Raises:
            LeaseLostError: Another process has taken the run over.
        """
        holder = Holder.here(await self._now(), lease.ttl).to_bytes()
        if not await self._swap_lease(lease.pipeline_id, lease.run_id, lease.token, lease.token, holder):
            _, held = await self._lease(lease.pipeline_id, lease.run_id)
            raise self._lost(lease.pipeline_id, lease.run_id, held)

    async def release(self, lease: Lease) -> None:
        """Give the run back; without effect if another process has taken it over."""
        try:
            await self._swap_lease(lease.pipeline_id, lease.run_id, lease.token, lease.token, b"")
        except StorageError:
            self._unreleased.add((lease.pipeline_id, lease.run_id, lease.token))
            raise
        await self._tidy_after(lease)

    @abstractmethod
    async def _tidy_after(self, lease: Lease) -> None:
        """Do what is to be done once a run was given back."""

    # -- inside -----------------------------------------------------------------------------

    def _check(self, pipeline_id: str, run_id: str) -> None:
        safe_id(pipeline_id, "pipeline id")
        safe_id(run_id, "run id")

    async def _alive(self, pipeline_id: str, run_id: str) -> Holder | None:
        """Who carries a run on at this moment."""
        _, held = await self._lease(pipeline_id, run_id)
        holder = Holder.from_bytes(held)
        return holder if holder is not None and holder.lives(await self._now()) else None

    async def _refuse_active(self, pipeline_id: str, run_id: str, what: str) -> None:
        holder = await self._alive(pipeline_id, run_id)
        if holder is not None:
            raise StorageError(
                f"Run {run_id} of pipeline {pipeline_id} cannot {what}: process {holder.pid} on "
                f"{holder.host} carries it on. Stop it there first."
            )

    def _taken(self, pipeline_id: str, run_id: str, holder: Holder | None, now: float) -> LeaseLostError:
        who, wait = "another process", self.lease_ttl
        if holder is not None:
            who = f"process {holder.pid} on {holder.host}"
            wait = max(0.0, holder.beat + holder.ttl - now)
        return LeaseLostError(
            f"Run {run_id} of pipeline {pipeline_id} is being carried on by {who}. Wait until it ends or "
            f"stop it there; if that process is gone, its claim ends in {wait:.0f} s."
        )

    def _lost(self, pipeline_id: str, run_id: str, held: bytes) -> LeaseLostError:
        """The error for a writer whose token is no longer good."""
        holder = Holder.from_bytes(held)
        who = f"process {holder.pid} on {holder.host}" if holder is not None else "another process"
        return LeaseLostError(
            f"Run {run_id} of pipeline {pipeline_id} was taken over or deleted by {who}. What this process "
            "recorded before is kept unless it was deleted. Follow the run there, or start a new one."
        )
