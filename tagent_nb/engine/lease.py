"""The lease of a run: one process records it, and no other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from tagent_nb.engine.background import run_shielded
from tagent_nb.errors import LeaseLostError, StorageError

if TYPE_CHECKING:
    from tagent_nb.storage import Lease, StorageBackend


@contextlib.asynccontextmanager
async def lease_held(
    storage: StorageBackend, pipeline_id: str, run_id: str, lost: Callable[[LeaseLostError], None]
) -> AsyncIterator[Lease]:
    """Have the lease of a run, and renew it until the block ends.

    Args:
        storage: Where the run is recorded.
        pipeline_id: The pipeline.
        run_id: The run, new or interrupted.
        lost: Called on the loop, once, when another process has taken the run over.

    Raises:
        LeaseLostError: Another process carries the run on; the block is not entered.
    """
    lease = await _acquired(storage, pipeline_id, run_id)
    heartbeat = asyncio.ensure_future(_beat(storage, lease, lost))
    try:
        yield lease
    finally:
        heartbeat.cancel()
        await run_shielded(_give_back(storage, lease, heartbeat))


async def _give_back(storage: StorageBackend, lease: Lease, heartbeat: asyncio.Future[None]) -> None:
    await asyncio.wait([heartbeat])
    # A lease that cannot be given back ends by itself; the run's result or error is what counts.
    with contextlib.suppress(StorageError):
        await storage.release(lease)


async def _acquired(storage: StorageBackend, pipeline_id: str, run_id: str) -> Lease:
    acquiring = asyncio.ensure_future(storage.acquire(pipeline_id, run_id))
    try:
        return await asyncio.shield(acquiring)
    except asyncio.CancelledError:
        # Half-way through it cannot be stopped, and what is not given back keeps the run from all processes.
        await asyncio.wait([acquiring])
        if acquiring.exception() is None:
            await storage.release(acquiring.result())
        raise


async def _beat(storage: StorageBackend, lease: Lease, lost: Callable[[LeaseLostError], None]) -> None:
    while True:
        await asyncio.sleep(lease.ttl / 3)
        try:
            await storage.renew(lease)
        except LeaseLostError as error:
            lost(error)
            return
        except StorageError:
            # The next beat may succeed. If it comes too late, the token keeps us from recording.
            continue
