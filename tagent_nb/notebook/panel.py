"""The progress panel of a run: live while it goes on, and a static table when it has ended.

Events come on the run's thread and only set flags there; a thread of the panel's own draws at most
ten times a second. When the run has ended, the widget is taken away and the table stays in the
notebook, where it can be read without a kernel.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from tagent_nb.engine.handle import RunHandle
from tagent_nb.errors import BudgetExceededError, TagentError
from tagent_nb.events import (
    Event,
    RunContinued,
    RunStarted,
    StepCached,
    StepEvent,
    StepFailed,
    StepFinished,
    StepStarted,
    StepStreamed,
)
from tagent_nb.notebook.display import Bundle, place, show, update
from tagent_nb.notebook.run_view import RunView, result_view, run_html, run_text
from tagent_nb.notebook.session import Session, Workspace
from tagent_nb.pipeline.result import PipelineResult
from tagent_nb.pipeline.secrets import redact

__all__ = ["Feed", "Panel"]

INTERVAL = 0.1
"""Seconds between two drawings at the least."""
IDLE = 1.0
"""Seconds after which clocks are drawn again though nothing has happened."""
MOST_TEXT = 10_000
"""Characters kept of what a step printed or streamed, counted from the end."""
SETTLE = 2.0
"""Most seconds that a cell waits for the last drawing."""


class Feed:
    """What the panel needs besides the memory of the run: texts and counts of items.

    Attributes:
        texts: The end of what each step printed or streamed, by name.
        items: ``[ended, failed, all]`` of the mapped steps, by name.
        began: Set when the run has begun: it was not refused.
        changed: Set when there is something new to draw.
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.items: dict[str, list[int]] = {}
        self.began = threading.Event()
        self.changed = threading.Event()
        self._writing: dict[str, str] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepStreamed):
            self._write(event)
        elif isinstance(event, StepStarted) and event.items is not None:
            self.items[event.step] = [0, 0, event.items]
        elif isinstance(event, StepFinished | StepCached | StepFailed) and event.item is not None:
            self._count(event)
        elif isinstance(event, RunStarted | RunContinued):
            self.began.set()
        self.changed.set()

    def _write(self, event: StepStreamed) -> None:
        text = self.texts.get(event.step, "")
        if event.item is not None:
            # Items run at the same time: each line says whose it is.
            if text and not text.endswith("\n") and self._writing.get(event.step) != event.item:
                text += "\n"
            if not text or text.endswith("\n"):
                text += f"[{event.item}] "
            self._writing[event.step] = event.item
        self.texts[event.step] = (text + event.text)[-MOST_TEXT:]

    def _count(self, event: StepEvent) -> None:
        counts = self.items.setdefault(event.step, [0, 0, 0])
        counts[0] += 1
        counts[1] += isinstance(event, StepFailed)


class Sitting:
    """One run of a panel, from its start to its last drawing.

    Attributes:
        feed: What it folds from events.
        over: Set when the run has ended.
        drawn: Set when the static table is there.
        outcome: The result or the error, once it is over.
        handle: Stops it.
    """

    def __init__(self) -> None:
        self.feed = Feed()
        self.over = threading.Event()
        self.drawn = threading.Event()
        self.outcome: PipelineResult | BaseException | None = None
        self.handle: RunHandle | None = None

    def end(self, outcome: PipelineResult | BaseException) -> None:
        """Take the outcome; called once, on the run's loop."""
        self.outcome = outcome
        self.over.set()
        self.feed.changed.set()

    @property
    def result(self) -> PipelineResult | None:
        """The result; ``None`` before the end, and for a run that was refused or not recorded."""
        return self.outcome if isinstance(self.outcome, PipelineResult) else None


class Panel:
    """Runs a pipeline and shows how it goes, in the output of the cell that calls :meth:`show`.

    Args:
        session: Starts the runs.
        workspace: Whose pipeline is run.
        live: Whether there is a front end for widgets; without one only the final text is shown.
        on_result: Called with every result, on a thread of the panel's.
    """

    def __init__(
        self,
        session: Session,
        workspace: Workspace,
        *,
        live: bool,
        on_result: Callable[[PipelineResult], None] = lambda result: None,
    ) -> None:
        self.session = session
        self.workspace = workspace
        self.live = live
        self.on_result = on_result
        self.sitting = Sitting()
        self.widgets: Widgets | None = None
        self._lock = threading.Lock()

    # -- the run ----------------------------------------------------------------------------

    def start(self, **options: Any) -> RunHandle:
        """Start a run; options are those of :meth:`Session.start`.

        Raises:
            RunInProgressError: The pipeline is running already.
        """
        sitting = Sitting()
        handle = self.session.start(self.workspace, observers=[sitting.feed], on_end=sitting.end, **options)
        sitting.handle = handle
        self.sitting = sitting
        # From here on a run always comes to its last drawing, also when an interrupt hits what follows.
        threading.Thread(target=self._draw, args=(sitting,), name="tagent-nb panel", daemon=True).start()
        return handle

    def stop(self) -> None:
        """Stop the run; it can be resumed."""
        if self.sitting.handle is not None:
            self.sitting.handle.cancel()

    def again(self) -> None:
        """Carry the run on in the same place. Does nothing while it runs, and after a success."""
        # The click may come on the main thread or on a subshell's, and twice.
        with self._lock:
            result = self.sitting.result
            if self.widgets is None or not self.sitting.drawn.is_set() or (result and result.success):
                return
            try:
                self.start(resume=True)
            except TagentError as error:
                # A button has nobody to raise to: say it where it was pressed.
                self.widgets.end(self._final(redact(str(error))), self.widgets.again.description)
                return
            self.widgets.clear()

    # -- what is seen -----------------------------------------------------------------------

    def show(self) -> None:
        """Show the panel in the output of the current cell, and keep it up to date."""
        if self.live:
            with self._lock:
                self.widgets = Widgets(run_html(self.view()), self.stop, self.again)
                if self.sitting.drawn.is_set():
                    self._end(self.widgets)

    def settle(self) -> None:
        """After a run, show its table where no widget has shown it."""
        if self.widgets is None and self.sitting.over.is_set():
            show(self._final())

    def view(self, note: str = "") -> RunView:
        """The run as it is now."""
        sitting = self.sitting
        result = sitting.result
        if result is not None:
            return result_view(result, note or _how_to_go_on(result), sitting.feed.texts)
        executor = self.workspace.executor
        memory = executor.memory if executor is not None else None
        error = sitting.outcome
        phase = "failed" if error is not None else "paused" if memory and memory.paused else "running"
        return RunView(
            self.workspace.pipeline.name,
            {} if memory is None else dict(memory.steps),
            phase,
            0.0 if memory is None else memory.seconds,
            note or ("" if error is None else redact(str(error))),
            dict(sitting.feed.texts),
            {name: (ended, failed, all_) for name, (ended, failed, all_) in list(sitting.feed.items.items())},
            time.time(),
            () if memory is None else tuple(memory.warnings),
            () if executor is None else executor.ledger.shares(),
        )

    def _final(self, note: str = "") -> Bundle:
        view = self.view(note)
        return Bundle(run_html(view, most=None, folded=True), run_text(view))

    # -- drawing ----------------------------------------------------------------------------

    def _draw(self, sitting: Sitting) -> None:
        """Draw until the run is over, and then what stays."""
        while not sitting.over.is_set():
            if self.widgets is not None:
                self.widgets.html.value = run_html(self.view())
            sitting.over.wait(INTERVAL)
            sitting.feed.changed.wait(IDLE)
            sitting.feed.changed.clear()
        if sitting.result is not None:
            self.on_result(sitting.result)
        with self._lock:
            if self.widgets is not None:
                self._end(self.widgets)
            sitting.drawn.set()

    def _end(self, widgets: Widgets) -> None:
        result = self.sitting.result
        again = "Resume" if result is not None and result.cancelled else "Retry failed"
        widgets.end(self._final(), "" if result is not None and result.success else again)


class Widgets:
    """The live widget in one output of a cell, and the place of its static twin in the next.

    They are two outputs, since a saved notebook shows an error for one that has both a widget and a table.
    """

    def __init__(self, html: str, stop: Callable[[], None], again: Callable[[], None]) -> None:
        from ipywidgets import HTML, Button, HBox, Layout, VBox

        self.html = HTML(value=html)
        self.stop = Button(
            description="Stop",
            icon="stop",
            tooltip="Stop this run; it can be resumed",
            layout=Layout(width="auto"),
        )
        self.again = Button(icon="play", tooltip="Carry this run on", layout=Layout(width="auto"))
        self.stop.on_click(lambda button: self._stopping(stop))
        self.again.on_click(lambda button: again())
        self.box = VBox([self.html, HBox([self.stop, self.again])])
        self._running(True)
        self._place = place(self.box)
        self._twin = place(Bundle("", ""))

    def _stopping(self, stop: Callable[[], None]) -> None:
        self.stop.disabled = True
        self.stop.description = "Stopping"
        stop()

    def _running(self, running: bool) -> None:
        self.stop.disabled, self.stop.description = not running, "Stop"
        self.stop.layout.display = None if running else "none"
        self.html.layout.display = None if running else "none"
        self.again.disabled = running
        self.again.layout.display = "none" if running else None

    def clear(self) -> None:
        """Make room for another sitting."""
        update(self._twin, Bundle("", ""))
        self._running(True)

    def end(self, table: Bundle, again: str) -> None:
        """Leave the static table, and a button only where there is something to go on with."""
        update(self._twin, table)
        if again:
            self.again.description = again
            self._running(False)
        else:
            update(self._place, Bundle("", ""))


def _how_to_go_on(result: PipelineResult) -> str:
    if result.cancelled:
        return "Stopped. %tagent_run --resume carries this run on; what is done is not run again."
    if any(step.error_type == BudgetExceededError.__name__ for step in result.steps.values()):
        return (
            "The budget is used up. %tagent_run --resume --budget AMOUNT goes on with a higher one; "
            "what is done is kept."
        )
    if result.failed_steps:
        return "%tagent_run --resume tries the failed steps again; what is done is not run again."
    if result.waiting_steps:
        return (
            f"Waiting for approval: {', '.join(result.waiting_steps)}. "
            "%tagent_run --resume asks for it, and goes on."
        )
    return ""
