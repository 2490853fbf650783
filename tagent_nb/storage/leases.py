"""Who carries a run on: leases, and whether their holder still lives."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_SIGNALS = os.name == "posix"
"""Whether signal 0 only looks. On Windows it would end the other process."""

TTL = 30.0
"""Seconds without a heartbeat after which a lease counts as expired."""


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
        machine: Tells machines, and containers on one machine, apart even if they share a name.
        started: When the process started, in the words of its system: a pid alone is used again.
        beat: Time of the last heartbeat, seconds since the epoch.
        ttl: Seconds that a heartbeat counts.
    """

    host: str
    pid: int
    machine: str
    started: str
    beat: float
    ttl: float

    @classmethod
    def here(cls, now: float, ttl: float) -> Holder:
        """This process."""
        pid = os.getpid()
        return cls(platform.node(), pid, machine_id(), process_start(pid) or "", now, ttl)

    @classmethod
    def from_bytes(cls, data: bytes) -> Holder | None:
        """The stored holder; ``None`` if the lease was released, or if nobody can be made of the bytes."""
        try:
            found: Any = json.loads(data)
            return cls(
                host=str(found["host"]),
                pid=int(found["pid"]),
                machine=str(found["machine"]),
                started=str(found["started"]),
                beat=float(found["beat"]),
                ttl=float(found["ttl"]),
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            # A lease that cannot be read keeps nobody out; the token still fences.
            return None

    def to_bytes(self) -> bytes:
        """The holder as it is stored."""
        return json.dumps(asdict(self)).encode()

    def lives(self, now: float) -> bool:
        """Whether the holder may still be at work: its heartbeat counts and its process was not seen dead."""
        if now - self.beat > self.ttl:
            return False
        if self.machine != machine_id():
            return True
        started = process_start(self.pid)
        return started is not None and started == self.started


@cache
def machine_id() -> str:
    """Tells this machine, since its last start, and this container from others."""
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
            # Somebody else's, but alive.
            return ""
    return ""
