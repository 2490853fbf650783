"""Who may record a run: leases and their holders, claiming a run, staying alive, giving it back."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from tagent_nb.errors import CorruptRecordError, LeaseLostError, StorageError

_PROC = Path("/proc")
_MACHINE = Path("/etc/machine-id")
_SIGNALS = os.name == "posix"
"""Whether signal 0 only looks. On Windows it would end the other process."""

TTL = 30.0
"""Seconds without a heartbeat after which a lease counts as expired."""

MAX_TOKEN = 1 << 53
"""Above any token for centuries to come, and exact in every language."""

WATCH = 120.0
"""Most seconds for which a claim is watched; one that says it counts for longer is refused at once."""

POLLS_PER_TTL = 8
"""Times to look at a claim while it is watched."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to record a run.

    Attributes:
        pipeline_id: The pipeline.
        run_id: The run.
        token: Fencing token: a later holder of the same run has a higher one.
        host: Name of the holder's machine.
        pid: The holder's process.
        ttl: Seconds after which the lease expires unless it is renewed.
    """

    pipeline_id: str
    run_id: str
    token: int
    host: str
    pid: int
    ttl: float = TTL


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease, as it is stored.

    Attributes:
        machine: Differs between machines, and containers on one machine, even if they share a name.
        started: When the process started, in the words of its system: a pid alone is used again.
        beat: Time of the last heartbeat, seconds since the epoch.
        ttl: Seconds that a heartbeat counts.
        boot: Differs from one start of a machine to the next; ``""`` where the system does not say.
        home: Identifies the machine itself, over its restarts; ``""`` where the system does not say.
        ticks: Time of the last heartbeat by the clock that counts from the start of the machine, which no
            setting of the time changes, and which all processes and containers on it share.
    """

    host: str
    pid: int
    machine: str
    started: str
    beat: float
    ttl: float
    boot: str = ""
    home: str = ""
    ticks: float = 0.0

    @classmethod
    def here(cls, now: float, ttl: float) -> Holder:
        """This process."""
        pid = os.getpid()
        started = process_start(pid) or ""
        machine, ticks = machine_id(), time.monotonic()
        return cls(platform.node(), pid, machine, started, now, ttl, boot_id(), home_id(), ticks)

    @classmethod
    def from_bytes(cls, data: bytes) -> Holder | None:
        """The stored holder; ``None`` if the lease was released, or if the bytes are none."""
        if not data:
            return None
        try:
            stored: Any = json.loads(data)
            holder = cls(
                host=str(stored["host"]),
                pid=int(stored["pid"]),
                machine=str(stored["machine"]),
                started=str(stored["started"]),
                beat=float(stored["beat"]),
                ttl=float(stored["ttl"]),
                # Older versions did not write these.
                boot=str(stored.get("boot", "")),
                home=str(stored.get("home", "")),
                ticks=float(stored.get("ticks", 0.0)),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            # A lease that cannot be read keeps no process out; the token still fences.
            return None
        times = (holder.beat, holder.ttl, holder.ticks)
        return holder if all(map(math.isfinite, times)) else None

    def to_bytes(self) -> bytes:
        """The holder as it is stored."""
        return json.dumps(asdict(self)).encode()

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine and container."""
        return self.machine == machine_id()

    @property
    def is_gone(self) -> bool:
        """Whether its process was seen dead: it is not there, or its machine has been started anew since."""
        if self.is_here:
            started = process_start(self.pid)
            return started is None or started != self.started
        return bool(self.home and self.boot) and self.home == home_id() and self.boot != boot_id()

    def left(self, now: float, *, shared: bool) -> float | None:
        """Seconds that the last heartbeat still counts; 0 if they are over or the process was seen dead.

        ``None`` if no clock can decide it: the one of another machine may go wrong, and so may this one. Then
        only a watch of :attr:`ttl` seconds in which no heartbeat comes shows that the process is gone.

        Args:
            now: The time, in seconds since the epoch.
            shared: Whether ``now`` and the heartbeat are of the same clock.
        """
        if self.is_gone:
            return 0.0
        if self.boot and self.boot == boot_id():
            silence = time.monotonic() - self.ticks
        else:
            silence = now - self.beat
            # Without a clock that is never set, this machine's is the best that there is for its processes.
            if silence > self.ttl and not shared and not self.is_here:
                return None
        # A heartbeat that is still to come was dated by a clock that was set back since.
        return None if silence < 0 else max(0.0, self.ttl - silence)


@cache
def boot_id() -> str:
    """Identifies this start of the machine; ``""`` where the system does not say."""
    return _read(_PROC / "sys/kernel/random/boot_id")


@cache
def home_id() -> str:
    """Identifies this machine, over its restarts; ``""`` where the system does not say."""
    name = _read(_MACHINE)
    return name and hashlib.sha256(f"{platform.node()}\n{name}".encode()).hexdigest()[:16]


def _read(path: Path) -> str:
    # Only Linux has them.
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()
    return ""


@cache
def machine_id() -> str:
    """Identifies this machine, since its last start, and this container."""
    parts = [platform.node()]
    # Not on Linux, the name has to do.
    with contextlib.suppress(OSError):
        parts.append((_PROC / "sys/kernel/random/boot_id").read_text())
        parts.append(str((_PROC / "self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def process_start(pid: int) -> str | None:
    """When a process of this machine started; ``""`` where that is unknown, ``None`` if there is none."""
    if (_PROC / "self/stat").exists():
        try:
            stat = (_PROC / f"{pid}/stat").read_text(errors="replace")
        except OSError:
            return None
        # The name in brackets may hold anything; the fields after it count from the state.
        state, *fields = stat.rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    if _SIGNALS:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            # Another user's, but alive.
            return ""
    return ""


@dataclass
class Claims:
    """What a storage object knows of claims besides what is stored.

    Attributes:
        shared_clock: Whether the time by which heartbeats are judged is of one clock for all machines.
        unreleased: Leases that this object could not give back: they keep no process out here.
        seen: Holders that are watched, and since when.
    """

    shared_clock: bool
    unreleased: set[tuple[str, str, int]] = field(default_factory=set)
    seen: dict[tuple[str, str], tuple[Holder, float]] = field(default_factory=dict)

    def left(self, pipeline_id: str, run_id: str, token: int, holder: Holder, now: float) -> float | None:
        """Seconds that a claim still counts; ``None`` if no clock can decide it. See :meth:`Holder.left`."""
        if (pipeline_id, run_id, token) in self.unreleased:
            return 0.0
        return holder.left(now, shared=self.shared_clock)

    def unwatched(self, pipeline_id: str, run_id: str, holder: Holder) -> float:
        """Seconds for which a claim has yet to be watched until it has ended."""
        now, key = time.monotonic(), (pipeline_id, run_id)
        last, since = self.seen.get(key, (None, now))
        if last != holder:
            self.seen[key], since = (holder, now), now
        return max(0.0, holder.ttl - (now - since))

    def count(self, pipeline_id: str, run_id: str, token: int, stored: bytes, now: float) -> bool:
        """Whether a claim counts, as far as clocks can decide it."""
        holder = Holder.from_bytes(stored)
        return holder is not None and bool(self.left(pipeline_id, run_id, token, holder, now))

    def keeper(self, pipeline_id: str, run_id: str, token: int, stored: bytes, now: float) -> Holder | None:
        """Whose claim keeps a run from being deleted, as far as can be seen without waiting.

        A process of this machine that lives keeps its runs, however long it was silent.
        """
        holder = Holder.from_bytes(stored)
        if holder is None or holder.is_gone or (pipeline_id, run_id, token) in self.unreleased:
            return None
        left = holder.left(now, shared=self.shared_clock)
        if left is None:
            left = self.unwatched(pipeline_id, run_id, holder)
        return holder if left > 0 or holder.is_here else None


class LeaseStore(Protocol):
    """A store that keeps leases. The functions below grant each run to one process at a time."""

    lease_ttl: float
    _claims: Claims

    async def _lease(self, pipeline_id: str, run_id: str, /) -> tuple[int, bytes]:
        """Token and holder of a run's lease; ``(0, b"")`` if there never was one."""

    async def _swap_lease(
        self, pipeline_id: str, run_id: str, expected: int, token: int, holder: bytes, /
    ) -> bool:
        """Set token and holder in one step if the token is still ``expected``; say whether it was."""

    async def _now(self) -> float:
        """The time by which heartbeats are judged, in seconds since the epoch."""


async def acquire(store: LeaseStore, pipeline_id: str, run_id: str) -> Lease:
    """Become the one who records a run, new or interrupted.

    Raises:
        LeaseLostError: Another process carries it on; the message names host and pid.
        CorruptRecordError: The lease is damaged.
    """
    left, token, holder = await _watched(store, pipeline_id, run_id)
    if token > MAX_TOKEN:
        raise CorruptRecordError(
            f"The lease of run {run_id} of pipeline {pipeline_id} is damaged. "
            "Restore a backup, or delete the run."
        )
    if left > 0:
        raise _taken(pipeline_id, run_id, holder, left)
    now = await store._now()
    mine = Holder.here(now, store.lease_ttl)
    # Time makes tokens grow even where the last lease was lost with its file.
    new = max(token + 1, int(now * 1_000_000))
    if not await store._swap_lease(pipeline_id, run_id, token, new, mine.to_bytes()):
        _, stored = await store._lease(pipeline_id, run_id)
        raise _taken(pipeline_id, run_id, Holder.from_bytes(stored), store.lease_ttl)
    store._claims.unreleased.discard((pipeline_id, run_id, token))
    return Lease(pipeline_id, run_id, new, mine.host, mine.pid, store.lease_ttl)


async def renew(store: LeaseStore, lease: Lease) -> None:
    """Say that the holder is alive.

    Raises:
        LeaseLostError: Another process has taken the run over.
    """
    holder = Holder.here(await store._now(), lease.ttl).to_bytes()
    if not await store._swap_lease(lease.pipeline_id, lease.run_id, lease.token, lease.token, holder):
        _, stored = await store._lease(lease.pipeline_id, lease.run_id)
        raise lost(lease.pipeline_id, lease.run_id, stored)


async def release(store: LeaseStore, lease: Lease) -> None:
    """Give the run back; without effect if another process has taken it over."""
    try:
        await store._swap_lease(lease.pipeline_id, lease.run_id, lease.token, lease.token, b"")
    except StorageError:
        store._claims.unreleased.add((lease.pipeline_id, lease.run_id, lease.token))
        raise


async def _watched(store: LeaseStore, pipeline_id: str, run_id: str) -> tuple[float, int, Holder | None]:
    """Seconds that a claim still counts, its token and its holder. It is watched where no clock decides.

    What is watched is whether heartbeats come, by the clock of this process alone: one that is dated
    wrongly counts as well as any other.
    """
    claims = store._claims
    first: Holder | None = None
    while True:
        token, stored = await store._lease(pipeline_id, run_id)
        holder = Holder.from_bytes(stored)
        if holder is None:
            return 0.0, token, None
        left = claims.left(pipeline_id, run_id, token, holder, await store._now())
        if left is not None:
            return left, token, holder
        left = claims.unwatched(pipeline_id, run_id, holder)
        if left <= 0 or left > WATCH or first not in (None, holder):
            return left, token, holder
        first = holder
        await asyncio.sleep(min(left, holder.ttl / POLLS_PER_TTL))


async def refuse_active(
    store: LeaseStore, what: str, pipeline_id: str, run_ids: Iterable[str]
) -> dict[str, int]:
    """Refuse if a process may carry on one of some runs; else the tokens of their leases.

    Args:
        store: Where they are.
        what: What cannot be done then, such as ``"be deleted"``.
        pipeline_id: Their pipeline.
        run_ids: The runs.

    Raises:
        StorageError: So it is.
    """
    tokens: dict[str, int] = {}
    kept: list[str] = []
    now = await store._now()
    for run_id in run_ids:
        token, stored = await store._lease(pipeline_id, run_id)
        tokens[run_id] = token
        # Those that have to be watched are watched at the same time.
        if store._claims.keeper(pipeline_id, run_id, token, stored, now) is not None:
            kept.append(run_id)
    for run_id in kept:
        await _watched(store, pipeline_id, run_id)
        token, stored = await store._lease(pipeline_id, run_id)
        keeper = store._claims.keeper(pipeline_id, run_id, token, stored, await store._now())
        if keeper is not None:
            raise StorageError(
                f"Run {run_id} of pipeline {pipeline_id} cannot {what}: process {keeper.pid} on "
                f"{keeper.host} carries it on. Stop it there first."
            )
        tokens[run_id] = token
    return tokens


def _taken(pipeline_id: str, run_id: str, holder: Holder | None, left: float) -> LeaseLostError:
    process = "another process" if holder is None else f"process {holder.pid} on {holder.host}"
    return LeaseLostError(
        f"Run {run_id} of pipeline {pipeline_id} is being carried on by {process}. Wait until it ends or "
        f"stop it there; if that process is gone, its claim ends in {left:.0f} s."
    )


def lost(pipeline_id: str, run_id: str, stored: bytes) -> LeaseLostError:
    """The error for a writer whose token is no longer good, by the holder that is stored now."""
    holder = Holder.from_bytes(stored)
    process = f"process {holder.pid} on {holder.host}" if holder is not None else "another process"
    return LeaseLostError(
        f"Run {run_id} of pipeline {pipeline_id} was taken over or deleted by {process}. What this process "
        "recorded before is kept unless it was deleted. Follow the run there, or start a new one."
    )
