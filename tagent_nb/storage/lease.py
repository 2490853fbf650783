"""Who carries a run on: leases, and whether their holder still lives."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_MACHINE = Path("/etc/machine-id")
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
        boot: Tells one start of a machine from the next; ``""`` where the system does not say.
        home: Tells the machine itself, over its restarts; ``""`` where the system does not say.
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
        """The stored holder; ``None`` if the lease was released, or if nobody can be made of the bytes."""
        if not data:
            return None
        try:
            found: Any = json.loads(data)
            holder = cls(
                host=str(found["host"]),
                pid=int(found["pid"]),
                machine=str(found["machine"]),
                started=str(found["started"]),
                beat=float(found["beat"]),
                ttl=float(found["ttl"]),
                # Older versions did not write these.
                boot=str(found.get("boot", "")),
                home=str(found.get("home", "")),
                ticks=float(found.get("ticks", 0.0)),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            # A lease that cannot be read keeps nobody out; the token still fences.
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

        ``None`` if no clock tells: the one of another machine may go wrong, and so may this one. Then only
        who watches for :attr:`ttl` seconds that no heartbeat comes knows that the process is gone.

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
            # Without a clock that nobody sets, this machine's is the best that there is for its processes.
            if silence > self.ttl and not shared and not self.is_here:
                return None
        # A heartbeat that is still to come was dated by a clock that was set back since.
        return None if silence < 0 else max(0.0, self.ttl - silence)


@cache
def boot_id() -> str:
    """Tells this start of the machine from others; ``""`` where the system does not say."""
    return _read(_PROC / "sys/kernel/random/boot_id")


@cache
def home_id() -> str:
    """Tells this machine from others, over its restarts; ``""`` where the system does not say."""
    name = _read(_MACHINE)
    return name and hashlib.sha256(f"{platform.node()}\n{name}".encode()).hexdigest()[:16]


def _read(path: Path) -> str:
    # Only Linux has them.
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()
    return ""


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
