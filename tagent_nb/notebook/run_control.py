"""A blocking run that can be stopped: by its button, by an interrupt, awaited or not."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from IPython.core.error import UsageError

from tagent_nb.engine import CANCEL_GRACE, RunHandle
from tagent_nb.errors import RunFailedError, TagentError
from tagent_nb.notebook.panel.controller import DRAW_TIMEOUT, Panel
from tagent_nb.notebook.session import Session
from tagent_nb.notebook.shell.comm import handle_clicks
from tagent_nb.pipeline import StepStatus
from tagent_nb.redaction import redact
from tagent_nb.results import PipelineResult, failure

POLL_INTERVAL = 0.05
"""Seconds between two looks at a run. Without this beat an interrupt reaches an awaiting cell only
when the run has ended by itself."""

Course = Generator[float, None, PipelineResult | RunHandle]


@dataclass(frozen=True)
class RunRequest:
    """One run, as a magic asks for it. ``options`` go to :meth:`Session.start`.

    With ``strict``, a run that fails raises when all of it is shown.
    """

    options: dict[str, Any] = field(default_factory=dict)
    background: bool = False
    strict: bool = False


class RunControl:
    """Starts runs for a cell and waits for them.

    Args:
        session: Whose current pipeline is run.
        shell: The IPython shell; the result goes to its variable ``result``.
    """

    def __init__(self, session: Session, shell: Any) -> None:
        self.session = session
        self.shell = shell
        self._runs: dict[str, Panel] = {}
        self._panels: dict[str, Panel] = {}

    def polling(self, request: RunRequest) -> PipelineResult | RunHandle:
        """Run and block this thread, awake ten times a second for an interrupt.

        Raises:
            UsageError: The run was interrupted; it can be resumed.
            RunFailedError: It failed, and the request is strict.
            TagentError: The run was refused, or could not be recorded.
        """
        course = self._course(request, answers=request.background)
        with strictly(request.strict):
            try:
                pause = next(course)
                while True:
                    try:
                        time.sleep(pause)
                    except KeyboardInterrupt as error:
                        pause = course.throw(error)
                    else:
                        pause = next(course)
            except StopIteration as end:
                return self._value(end)

    async def awaited(self, request: RunRequest) -> PipelineResult | RunHandle:
        """As :meth:`polling`, and the loop goes on meanwhile; cancelling is an interrupt."""
        course = self._course(request, answers=True)
        with strictly(request.strict):
            try:
                pause = next(course)
                while True:
                    try:
                        await asyncio.sleep(pause)
                        await handle_clicks(getattr(self.shell, "kernel", None))
                    except (asyncio.CancelledError, KeyboardInterrupt) as error:
                        pause = course.throw(error)
                    else:
                        pause = next(course)
            except StopIteration as end:
                return self._value(end)

    @staticmethod
    def _value(end: StopIteration) -> PipelineResult | RunHandle:
        value: PipelineResult | RunHandle = end.value
        return value

    def _course(self, request: RunRequest, *, answers: bool) -> Course:
        """What happens between two beats; yields the seconds until the next one.

        ``answers`` is whether a click arrives while this goes on.
        """
        panel = self._panel()
        waits = answers and self._can_answer()
        handle = panel.start(approver="wait" if waits else None, **request.options)
        feed = panel.feed
        assert feed is not None
        try:
            yield from _until(lambda: handle.done() or feed.began.is_set())
            if not feed.began.is_set():
                return handle.result()  # it was refused: this raises why
            self._only(self._runs, panel)
            panel.show()
            if request.background:
                return handle
            yield from _until(handle.done)
        except (asyncio.CancelledError, KeyboardInterrupt):
            yield from _until(lambda: _cancelled(handle), CANCEL_GRACE)
            yield from _until(feed.drawn.is_set, DRAW_TIMEOUT)
            panel.settle()
            raise UsageError(_stopped(handle)) from None
        yield from _until(feed.drawn.is_set, DRAW_TIMEOUT)
        panel.settle()
        result = handle.result()
        if request.strict and not result.success:
            raise RunFailedError(failure(result), result)
        return result

    def panel(self) -> Panel:
        """Show the current pipeline's panel, which follows all its runs; an earlier one goes.

        Raises:
            DefinitionError: There is no pipeline yet.
        """
        panel = self._panel()
        self._only(self._panels, panel)
        panel.follow()
        panel.show()
        return panel

    def _panel(self) -> Panel:
        live = getattr(self.shell, "kernel", None) is not None
        return Panel(self.session, self.session.workspace, live=live, on_result=self.keep)

    @staticmethod
    def _only(panels: dict[str, Panel], panel: Panel) -> None:
        """Each pipeline has one live view of a kind; what an earlier one put into the notebook stays."""
        name = panel.workspace.pipeline.name
        if name in panels:
            panels[name].close()
        panels[name] = panel

    def _can_answer(self) -> bool:
        """Whether a person can answer: a front end says that it takes input, nbconvert and nbval that
        they do not."""
        return bool(getattr(getattr(self.shell, "kernel", None), "_allow_stdin", False))

    def keep(self, result: PipelineResult) -> None:
        """Put a result where the notebook finds it."""
        self.shell.user_ns["result"] = result


@contextmanager
def strictly(strict: bool) -> Iterator[None]:
    """Let what refuses or interrupts a strict run be an error of the cell.

    A :class:`UsageError` is none for all programs that run notebooks: IPython prints it.

    Raises:
        RunFailedError: In place of an error of the library or of the magic.
    """
    try:
        yield
    except RunFailedError:
        raise
    except (TagentError, UsageError) as error:
        if strict:
            raise RunFailedError(redact(str(error))) from None
        raise


def _until(condition: Callable[[], bool], seconds: float = math.inf) -> Generator[float, None, None]:
    """Beats until something holds, or so many seconds have passed."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        yield POLL_INTERVAL


def _cancelled(handle: RunHandle) -> bool:
    """Cancel, at every beat again: a cancel before the run has its loop would be lost."""
    handle.cancel()
    return handle.done()


def _stopped(handle: RunHandle) -> str:
    if not handle.done():
        memory = handle.executor.memory
        steps = memory.steps.values() if memory is not None else ()
        running = [repr(step.name) for step in steps if step.status is StepStatus.RUNNING]
        return (
            f"The run is to stop, and {', '.join(running) or 'a step'} has not ended yet. Nothing "
            "further starts. Async code that blocks holds up all runs of the kernel; if it never ends, "
            "restart the kernel and run with --resume."
        )
    return "The run was stopped. %tagent_run --resume carries it on; what is done is not run again."
