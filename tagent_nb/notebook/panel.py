"""The progress panel of a run: live while it goes on, and a static table when it has ended.

Events come on the run's thread and only set flags there; a thread of the panel's own draws at most
ten times a second. When the run has ended, the widget is taken away and the table stays in the
notebook, where it can be read without a kernel.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from IPython.display import DisplayHandle

from tagent_nb.engine.handle import RunHandle
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
from tagent_nb.notebook.display import Bundle, show, update
from tagent_nb.notebook.run_view import RunView, result_view, run_html, run_text
from tagent_nb.notebook.session import Session, Workspace
from tagent_nb.pipeline.result import PipelineResult

if TYPE_CHECKING:
    from ipywidgets import HTML, Box, Button

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
        self._writing: dict[str, str | None] = {}

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
        # Items run at the same time: say whose line it is, whenever that changes.
        if event.item is not None and (
            not text.endswith("\n") or self._writing.get(event.step) != event.item
        ):
            if not text or text.endswith("\n"):
                text += f"[{event.item}] "
            elif self._writing.get(event.step) != event.item:
                text += f"\n[{event.item}] "
        self._writing[event.step] = event.item
        self.texts[event.step] = (text + event.text)[-MOST_TEXT:]

    def _count(self, event: StepEvent) -> None:
        counts = self.items.setdefault(event.step, [0, 0, 0])
        counts[0] += 1
        counts[1] += isinstance(event, StepFailed)


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
        self.feed = Feed()
        self.over = threading.Event()
        self.drawn = threading.Event()
        self.note = ""
        self._outcome: PipelineResult | BaseException | None = None
        self._handle: RunHandle | None = None
        self._lock = threading.Lock()
        self._place: DisplayHandle | None = None
        self._twin: DisplayHandle | None = None
        self._box: Box | None = None
        self._html: HTML | None = None
        self._stop: Button | None = None
        self._again: Button | None = None

    # -- the run ----------------------------------------------------------------------------

    def start(self, **options: Any) -> RunHandle:
        """Start a run; options are those of :meth:`PipelineExecutor.execute`.

        Raises:
            RunInProgressError: The pipeline is running already.
        """
        self.feed = Feed()
        self.over.clear()
        self.drawn.clear()
        self._outcome = None
        self._handle = self.session.start(
            self.workspace, observers=[self.feed], on_end=self._ended, **options
        )
        return self._handle

    def _ended(self, outcome: PipelineResult | BaseException) -> None:
        self._outcome = outcome
        self.over.set()
        self.feed.changed.set()

    # -- what is seen -----------------------------------------------------------------------

    def show(self) -> None:
        """Show the panel in the output of the current cell, and keep it up to date."""
        if self.live:
            self._build()
            self._place = show(self._box)
            self._twin = show(Bundle("", ""))
        self._follow()

    def settle(self) -> None:
        """Show the final text where there is no front end that showed the rest."""
        if not self.live and self.over.is_set():
            show(self._final())

    def view(self) -> RunView:
        """The run as it is now."""
        outcome = self._outcome
        if isinstance(outcome, PipelineResult):
            return result_view(outcome, self.note or _how_to_go_on(outcome), self.feed.texts)
        memory = self.workspace.executor.memory if self.workspace.executor is not None else None
        note = self.note if outcome is None else str(outcome)
        phase = "failed" if outcome is not None else "paused" if memory and memory.paused else "running"
        return RunView(
            self.workspace.pipeline.name,
            {} if memory is None else dict(memory.steps),
            phase,
            0.0 if memory is None else memory.seconds,
            note,
            dict(self.feed.texts),
            {name: (counts[0], counts[1], counts[2]) for name, counts in list(self.feed.items.items())},
            time.time(),
            () if memory is None else tuple(memory.warnings),
        )

    def _final(self) -> Bundle:
        view = self.view()
        return Bundle(run_html(view, most=None, folded=True), run_text(view))

    # -- widgets ----------------------------------------------------------------------------

    def _build(self) -> None:
        from ipywidgets import HTML, Button, HBox, Layout, VBox

        layout = Layout(width="auto")
        self._html = HTML(value=run_html(self.view()))
        self._stop = Button(
            description="Stop",
            icon="stop",
            tooltip="Stop this run; it can be resumed",
            layout=layout,
        )
        self._again = Button(
            description="Resume",
            icon="play",
            tooltip="Carry this run on",
            layout=Layout(width="auto", display="none"),
        )
        self._stop.on_click(self._stop_clicked)
        self._again.on_click(self._again_clicked)
        self._box = VBox([self._html, HBox([self._stop, self._again])])

    def _stop_clicked(self, button: Button) -> None:
        button.disabled = True
        button.description = "Stopping"
        if self._handle is not None:
            self._handle.cancel()

    def _again_clicked(self, button: Button) -> None:
        # The click may come on the main thread or on a subshell's, and twice.
        with self._lock:
            if not self.over.is_set() or button.disabled:
                return
            button.disabled = True
            try:
                self.start(resume=True)
            except Exception as error:  # a button has nobody to raise to: show it where it was pressed
                self.note = str(error)
                self._refresh()
                button.disabled = False
                return
        self.note = ""
        if self._twin is not None:
            update(self._twin, Bundle("", ""))
        self._follow()

    def _follow(self) -> None:
        threading.Thread(target=self._draw_until_over, name="tagent-nb panel", daemon=True).start()

    def _draw_until_over(self) -> None:
        self._buttons(running=True)
        while not self.over.is_set():
            self._refresh()
            self.over.wait(INTERVAL)
            self.feed.changed.wait(IDLE)
            self.feed.changed.clear()
        self._close()

    def _refresh(self) -> None:
        if self._html is not None:
            self._html.value = run_html(self.view())

    def _buttons(self, *, running: bool) -> None:
        if self._stop is None or self._again is None or self._html is None:
            return
        self._stop.disabled, self._stop.description = not running, "Stop"
        self._stop.layout.display = None if running else "none"
        self._html.layout.display = None if running else "none"
        self._again.disabled = running
        self._again.layout.display = "none" if running else None

    def _close(self) -> None:
        """Leave the static table, and a button only where there is something to go on with."""
        outcome = self._outcome
        if isinstance(outcome, PipelineResult):
            self.on_result(outcome)
        if self._twin is not None and self._place is not None and self._again is not None:
            update(self._twin, self._final())
            if isinstance(outcome, PipelineResult) and outcome.success:
                update(self._place, Bundle("", ""))
            else:
                self._again.description = "Resume" if _cancelled(outcome) else "Retry failed"
                self._buttons(running=False)
        self.drawn.set()


def _cancelled(outcome: PipelineResult | BaseException | None) -> bool:
    return isinstance(outcome, PipelineResult) and outcome.cancelled


def _how_to_go_on(result: PipelineResult) -> str:
    if result.cancelled:
        return "Stopped. %tagent_run --resume carries this run on; what is done is not run again."
    if result.failed_steps:
        return "%tagent_run --resume tries the failed steps again; what is done is not run again."
    return ""
