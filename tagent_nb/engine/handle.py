"""A run that goes on in the background, and how to wait for it or stop it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from concurrent import futures
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tagent_nb.engine.memory.memory import PipelineMemory
    from tagent_nb.events import Observer
    from tagent_nb.pipeline import ApprovalRequest
    from tagent_nb.results import PipelineResult

CANCEL_GRACE = 2.0
"""Seconds that an interrupted wait gives the steps of its run to clean up."""


class Controls(Protocol):
    """What a handle needs of the executor whose run it stands for."""

    memory: PipelineMemory | None

    def subscribe(self, observer: Observer) -> None:
        """Call ``observer`` with every event from now on."""

    def pending_approvals(self) -> list[ApprovalRequest]:
        """What waits for a decision."""

    def cancel(self, *, batches: bool = False) -> None:
        """Stop the run, and with ``batches`` those that providers have."""

    def pause(self) -> None:
        """Start nothing further."""

    def resume(self) -> None:
        """Go on after a pause."""


class RunHandle:
    """A run in the background.

    Attributes:
        executor: The :class:`PipelineExecutor` whose run it is.
    """

    def __init__(self, executor: Controls, future: futures.Future[PipelineResult]) -> None:
        self.executor = executor
        self._future = future

    def __repr__(self) -> str:
        memory = self.executor.memory
        state = "done" if self.done() else "running"
        return f"<RunHandle {memory.run_id if memory is not None else 'starting'}: {state}>"

    def done(self) -> bool:
        """Whether the run has ended."""
        return self._future.done()

    def when_done(self, callback: Callable[[PipelineResult | BaseException], None]) -> None:
        """Call ``callback`` once with the result or the error, on the run's loop, or now if it has ended."""

        def call(future: futures.Future[PipelineResult]) -> None:
            callback(future.exception() or future.result())

        self._future.add_done_callback(call)

    def result(self, timeout: float | None = None) -> PipelineResult:
        """Wait for the result, at most ``timeout`` seconds.

        Raises:
            TimeoutError: The run goes on.
            KeyboardInterrupt: The wait was interrupted; the run was cancelled.
            Exception: Whatever :meth:`PipelineExecutor.execute` raised.
        """
        until = None if timeout is None else time.monotonic() + timeout
        try:
            while not self._future.done():
                if until is not None and time.monotonic() >= until:
                    raise TimeoutError(f"The run goes on after {timeout:g} s. cancel() stops it.")
                self._wait(until)
            return self._future.result()
        except KeyboardInterrupt:
            self.cancel(wait=CANCEL_GRACE)
            raise

    def cancel(self, wait: float = 0.0, *, batches: bool = False) -> None:
        """Stop the run, and give it up to ``wait`` seconds to end.

        Args:
            wait: Seconds.
            batches: Whether batches that providers have are cancelled there, too; see
                :meth:`PipelineExecutor.cancel`.
        """
        self.executor.cancel(batches=batches)
        until = time.monotonic() + wait
        while not self._future.done() and time.monotonic() < until:
            self._wait(until)

    def _wait(self, until: float | None) -> None:
        # A short while, since a long wait is not interrupted on every platform.
        left = 0.1 if until is None else min(0.1, until - time.monotonic())
        futures.wait([self._future], max(0.0, left))

    def pause(self) -> None:
        """Start nothing further."""
        self.executor.pause()

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        self.executor.resume()

    def __await__(self) -> Generator[Any, None, PipelineResult]:
        return self._awaited().__await__()

    async def _awaited(self) -> PipelineResult:
        try:
            return await asyncio.shield(asyncio.wrap_future(self._future))
        except asyncio.CancelledError:
            self.cancel()
            raise
