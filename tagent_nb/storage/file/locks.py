"""Locks on open files, which Windows lacks: there nothing of this package can be imported."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from tagent_nb.errors import StorageUnavailableError

LOCK_WAIT = 10.0
"""Seconds to wait for another process that writes to the same run."""


@contextlib.contextmanager
def locked(descriptor: int, path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of an open file; processes, threads and descriptors exclude each other.

    Raises:
        StorageUnavailableError: Another process held it for :data:`LOCK_WAIT` seconds.
    """
    how = fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    deadline = time.monotonic() + LOCK_WAIT
    while True:
        try:
            fcntl.flock(descriptor, how)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StorageUnavailableError(
                    f"Another process holds {path} since {LOCK_WAIT:.0f} s. Find it with `fuser` and end it."
                ) from None
            time.sleep(0.005)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
