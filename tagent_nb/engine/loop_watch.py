"""Notices when a step that is async blocks the loop that all runs of the kernel share."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from inspect import iscoroutinefunction
from types import FrameType
from typing import TYPE_CHECKING, Any

from tagent_nb.pipeline import PipelineStep
from tagent_nb.runners import USER_CODE

if TYPE_CHECKING:
    from tagent_nb.engine.recorder import Recorder
    from tagent_nb.runners import StepContext

BLOCKED = 1.0
"""Seconds for which the loop may be blocked before its user is warned."""

PERIOD = 0.25
"""Seconds from one look to the next."""


def may_block(step: PipelineStep) -> bool:
    """Whether code of a user runs on the loop: async Python, async checks, async tools of an agent."""
    return step.body is None or step.body.is_async or any(map(iscoroutinefunction, step.checks or ()))


class LoopWatch:
    """Asks a run's loop for a sign of life now and then, and looks at its stack if none comes.

    One thread does so for all runs; what runs on the loop pays nothing for it. Made on the loop; :meth:`end`
    ends it.

    Args:
        recorder: Of the run that is warned, once for each of its steps that blocks the loop.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._loop_thread = threading.get_ident()
        self._reported: set[tuple[str, str]] = set()
        self._sign: threading.Event | None = None
        self._asked_at = 0.0
        _watcher.add(self)

    def end(self) -> None:
        """Watch no longer."""
        _watcher.remove(self)

    def tick(self, now: float) -> None:
        """Ask, or see whether there was a sign. ``now`` is that of a monotonic clock, in seconds.

        Raises:
            RuntimeError: The loop is closed.
        """
        if self._sign is None or self._sign.is_set():
            self._sign, self._asked_at = threading.Event(), now
            self._recorder.call_from_anywhere(self._sign.set)
        elif now - self._asked_at >= BLOCKED:
            self._look()  # again at each tick: another step may block it before there is a sign

    def _look(self) -> None:
        culprit = self.blocking_step()
        if culprit is None or culprit in self._reported:
            return
        self._reported.add(culprit)
        step, what = culprit
        self._recorder.warn_from_anywhere(
            f"Step {step!r} held up everything for more than {BLOCKED:g} s: {what} is async, but blocks. "
            "Meanwhile no other step goes on, no timeout ends it, and Stop has to wait. Write it with def "
            "instead of async def, or await what takes long: asyncio.sleep instead of time.sleep, "
            "asyncio.to_thread for other calls.",
            step,
        )

    def blocking_step(self) -> tuple[str, str] | None:
        """The step of this run whose code is on the loop's stack just now, and what of it."""
        frame: FrameType | None = sys._current_frames().get(self._loop_thread)
        while frame is not None:
            # A tool has a task of its own: its step is not below it.
            what = USER_CODE.get(frame.f_code)
            if what is not None:
                run_id, step = _unit_in(frame.f_locals)
                if run_id == self._recorder.memory.run_id:
                    return step, what
            frame = frame.f_back
        return None


def _unit_in(names: Mapping[str, Any]) -> tuple[str, str]:
    """Run and step of a function that calls code of a user, from its local names."""
    if "prepared" in names:
        return names["prepared"].run_id, names["prepared"].name
    context: StepContext = names["context"] if "context" in names else names["self"].context
    return context.run_id, context.step


class _Watcher:
    """The thread that ticks; it ends when there is nothing left to watch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: set[LoopWatch] = set()
        self._thread: threading.Thread | None = None

    def add(self, watch: LoopWatch) -> None:
        with self._lock:
            self._watches.add(watch)
            # A forked child inherits the object, but the thread is dead in it.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._serve, name="tagent-nb loop watch", daemon=True)
                self._thread.start()

    def remove(self, watch: LoopWatch) -> None:
        with self._lock:
            self._watches.discard(watch)

    def _serve(self) -> None:
        while True:
            time.sleep(PERIOD)
            with self._lock:
                watches = tuple(self._watches)
                if not watches:
                    self._thread = None
                    return
            for watch in watches:
                try:
                    watch.tick(time.monotonic())
                except RuntimeError:
                    self.remove(watch)  # its loop is closed


_watcher = _Watcher()
