"""The panel: it runs a pipeline and shows how it goes, live, and leaves a table and a picture.

Events come on the run's thread and only set flags there; a thread of the panel's own draws at most ten
times a second. Parts that others bring (see :mod:`tagent_nb.notebook.panel.extension`) are drawn with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tagent_nb.display import Bundle
from tagent_nb.engine import Durations, PipelineExecutor, RunHandle
from tagent_nb.errors import BudgetExceededError, TagentError
from tagent_nb.notebook.display import Picture, show
from tagent_nb.notebook.panel.details import details_html
from tagent_nb.notebook.panel.eta import seconds_left
from tagent_nb.notebook.panel.extension import PARTS
from tagent_nb.notebook.panel.feed import RunFeed
from tagent_nb.notebook.panel.view import PanelView
from tagent_nb.notebook.session import Session
from tagent_nb.notebook.widgets.step_table import row_of
from tagent_nb.notebook.workspace import Workspace
from tagent_nb.pipeline import StepStatus
from tagent_nb.redaction import redact
from tagent_nb.results import (
    MapProgress,
    Pace,
    PipelineResult,
    RunView,
    StepResult,
    failed_items,
    head_html,
    result_view,
    run_html,
    run_text,
    waiting_words,
)
from tagent_nb.user_objects import message_of

__all__ = ["Panel"]

INTERVAL = 0.1
"""Seconds between two drawings at the least."""
IDLE = 1.0
"""Seconds after which clocks are drawn again though nothing has happened."""
DETAILS_REST = 10.0
"""Times as long as the details of a step took to make they are not made again while the run goes on."""
DRAW_TIMEOUT = 2.0
"""Most seconds that a cell waits for the last drawing."""
_BUSY = (StepStatus.RUNNING, StepStatus.WAITING)


class Panel:
    """Runs a pipeline and shows how it goes, in the output of the cell that calls :meth:`show`.

    Args:
        session: Starts the runs.
        workspace: Whose pipeline is run.
        live: Whether there is a front end for widgets; without one only the final text is shown.
        on_result: Called with the result of every run that is started here, on a thread of the panel's.

    Attributes:
        feed: The run that it shows; ``None`` before the first.
        view: The widgets, once shown.
        selected: The step whose details are open, or an empty string.
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
        self.feed: RunFeed | None = None
        self.view: PanelView | None = None
        self.selected = ""
        self.parts = [make(self) for make in PARTS] if live else []
        self._lock = threading.RLock()
        self._cancelling = threading.Lock()
        self._note = ""
        self._announced = ""
        self._opened: set[str] = set()
        self._stale = True  # the definition is not the one that was laid out
        self._shown: list[str] = []
        self._reset = True  # every row may have changed
        self._stopping = False
        self._redrawing = False
        self._past: Future[Durations] = Future()
        self._pace = Pace()
        self._details_due, self._details_late = 0.0, False
        self._undo: list[Callable[[], None]] = []

    # -- runs -------------------------------------------------------------------------------

    def start(self, **options: Any) -> RunHandle:
        """Start a run; options are those of :meth:`Session.start`.

        Raises:
            RunInProgressError: The pipeline is running already.
        """
        # A person presses its buttons, and can answer in its forms.
        options.setdefault("approver", "wait" if self.live else None)
        return self.session.start(self.workspace, watches=[self.watch], **options)

    def watch(self) -> RunFeed:
        """Show the run that begins now."""
        feed = RunFeed([part.observe for part in self.parts])
        with self._lock:
            self.feed = feed
            self._pace = Pace()
            self._note = ""
            self._stopping = False
            self._reset = True
            if self.view is not None:
                self.view.take_back()
        # From here on a run always comes to its last drawing, also when an interrupt hits what follows.
        threading.Thread(target=self._draw, args=(feed,), name="tagent-nb panel", daemon=True).start()
        return feed

    def follow(self) -> None:
        """Show every run of the pipeline, however it is started."""
        handle = self.workspace.handle
        if handle is not None and self.workspace.running:
            feed = self.watch()
            feed.began.set()
            handle.executor.subscribe(feed)
            handle.when_done(feed.end)
        self.workspace.watches.append(self.watch)
        self._undo.append(lambda: self.workspace.watches.remove(self.watch))

    # -- buttons ----------------------------------------------------------------------------

    def run(self) -> None:
        """Start a new run."""
        self._begin()

    def retry(self) -> None:
        """Try failed steps and failed rows again; what is done is not run again."""
        self._begin(resume=True, retry_failed=self._has_failed())

    def force(self) -> None:
        """Run the chosen step anew."""
        if self.selected:
            self._begin(force=[self.selected])

    def go_on(self) -> None:
        """Go on after a pause, or with a run that was stopped."""
        handle = self.workspace.handle
        if handle is not None and self.workspace.running:
            handle.resume()
        else:
            self._begin(resume=True)

    def pause(self) -> None:
        """Start nothing further."""
        if self.workspace.handle is not None:
            self.workspace.handle.pause()

    def stop(self) -> None:
        """Stop the run; it can be resumed. Batches that providers have go on."""
        if self.workspace.running and self.workspace.handle is not None:
            self._stop(batches=False)

    def _stop(self, *, batches: bool) -> None:
        self._stopping = True
        if self.view is not None:
            self.view.offer(["stop"], enabled=False)
        assert self.workspace.handle is not None
        self.workspace.handle.cancel(batches=batches)

    def cancel_batches(self) -> None:
        """Cancel what providers have been sent, and the run where it goes on; what is answered is kept."""
        executor = self.workspace.executor
        if self.workspace.running and self.workspace.handle is not None:
            self._stop(batches=True)
        elif executor is not None:
            # Providers may take their time, and the click is on the thread of the cells.
            cancel = threading.Thread(
                target=self._cancel_recorded, args=(executor,), name="tagent-nb panel", daemon=True
            )
            cancel.start()

    def _cancel_recorded(self, executor: PipelineExecutor) -> None:
        with self._cancelling:  # a second click finds what the first has left
            try:
                number = executor.cancel_batches()
            except Exception as error:  # the provider's: a button cannot raise
                self._say(message_of(error))
            else:
                what = "The batch is" if number == 1 else f"{number} batches are"
                self._say(f"{what} cancelled. Resume keeps what is answered, and sends the rest again.")

    def _begin(self, **options: Any) -> None:
        # The click may come on the main thread or on a subshell's, and twice.
        with self._lock:
            # Not ticked says nothing: a run that is carried on stays as it was.
            offline = (self.view is not None and bool(self.view.offline.value)) or None
            try:
                self.start(offline=offline, **options)
            except TagentError as error:
                # A button cannot raise: show it where it was pressed.
                self._say(str(error))

    def _say(self, text: str) -> None:
        """Show a sentence below the progress bar, in place of the advice how to go on, until the next run."""
        with self._lock:
            self._note = redact(text)
            self._refresh()

    def select(self, name: str) -> None:
        """Show the details of a step; an empty name closes them."""
        with self._lock:
            if name != self.selected and self.view is not None:
                self.selected = name
                self.view.choose(name, self._details())

    def open_group(self, key: str) -> None:
        """Show a group of the graph step by step; an empty key closes all groups."""
        with self._lock:
            self._opened = self._opened | {key} if key else set()
            self._stale = True
            self._refresh()

    # -- what is seen -----------------------------------------------------------------------

    def show(self) -> None:
        """Show the panel in the output of the current cell, and keep it up to date."""
        if not self.live:
            return
        # Asked now and used when it is there: the run does not wait for it.
        self._past = self.session.durations(self.workspace)
        with self._lock:
            view = PanelView(self, self.parts)
            view.show()
            self._undo.append(self.workspace.pipeline.subscribe(self._defined))
            self.view = view
            self._refresh()
            if self.feed is not None and self.feed.drawn.is_set():
                view.leave(*self._twins())

    def settle(self) -> None:
        """After a run, show its table where no widget has shown it."""
        if self.view is None and self.feed is not None and self.feed.over.is_set():
            show(self._twins()[0])

    def close(self) -> None:
        """Take the live widgets away; what they have left in the notebook stays."""
        for undo in self._undo:
            undo()
        self._undo.clear()
        with self._lock:
            view, self.view = self.view, None
            if view is not None:
                view.close()

    def run_view(self) -> RunView:
        """The run as it is now, the last one at rest, or the steps before the first."""
        feed, executor = self.feed, self.workspace.executor
        outcome = None if feed is None else feed.outcome
        if isinstance(outcome, PipelineResult):
            return result_view(outcome, self._note or _how_to_go_on(outcome), feed.texts if feed else None)
        memory = executor.memory if executor is not None else None
        if feed is None and not self.workspace.running:
            if self.workspace.result is not None:
                return result_view(self.workspace.result, self._note or _how_to_go_on(self.workspace.result))
            steps = {step.name: StepResult(step.name) for step in self.workspace.pipeline.steps}
            return RunView(self.workspace.pipeline.name, steps, "not run yet", 0.0, self._note)
        phase = "failed" if outcome is not None else "paused" if memory and memory.paused else "running"
        steps = {} if memory is None else dict(memory.steps)
        items = self._pace.of(steps, time.monotonic())
        return RunView(
            self.workspace.pipeline.name,
            steps,
            phase,
            0.0 if memory is None else memory.seconds,
            self._note or ("" if outcome is None else redact(str(outcome))),
            {} if feed is None else dict(feed.texts),
            items,
            None if outcome is not None else self._left(steps, items),
            () if memory is None else tuple(memory.warnings),
            () if executor is None else executor.ledger.shares(),
        )

    def _left(self, steps: dict[str, StepResult], items: dict[str, MapProgress]) -> float | None:
        is_read = self._past.done() and self._past.exception() is None
        return seconds_left(steps, items, self._past.result() if is_read else Durations(), time.time())

    def _states(self) -> dict[str, StepResult]:
        """States that are true, of the steps as they are defined now."""
        states = dict(self.workspace.states() or {})
        names = [step.name for step in self.workspace.pipeline.steps]
        return {name: states.get(name) or StepResult(name) for name in dict.fromkeys([*names, *states])}

    def _details(self) -> str:
        if not self.selected:
            return ""
        executor = self.workspace.executor
        memory = executor.memory if executor is not None else None
        text = "" if self.feed is None else self.feed.texts.get(self.selected, "")
        values = ({}, {}, {}) if memory is None else (memory.facts, memory.memories, memory.inputs)
        return details_html(self.workspace.pipeline, self.selected, self._states(), text, *values)

    def _twins(self) -> tuple[Bundle, Picture | None]:
        view = self.run_view()
        executor = self.workspace.executor
        memory = executor.memory if executor is not None else None
        pipeline = memory.pipeline if memory is not None and memory.pipeline else self.workspace.pipeline
        table = Bundle(run_html(view), run_text(view))
        try:
            return table, Picture(pipeline, view.steps) if self.live else None
        except TagentError:
            # Without Graphviz there is no picture; the table tells the story alone.
            return table, None

    # -- drawing ----------------------------------------------------------------------------

    def _draw(self, feed: RunFeed) -> None:
        """Draw until the run is over, and then what stays."""
        while not feed.over.is_set():
            self._refresh()
            feed.over.wait(INTERVAL)
            feed.changed.wait(IDLE)
            feed.changed.clear()
        if feed.result is not None:
            self.on_result(feed.result)
        with self._lock:
            self._refresh()
            if self.view is not None and feed.began.is_set():
                self.view.leave(*self._twins())
            feed.drawn.set()

    def _defined(self) -> None:
        """The definition has changed: lay out again, once for many changes."""
        self._stale = True
        if self.workspace.running or self._redrawing:
            return
        self._redrawing = True
        threading.Thread(target=self._redraw, name="tagent-nb panel", daemon=True).start()

    def _redraw(self) -> None:
        time.sleep(INTERVAL)
        self._redrawing = False
        self._refresh()

    def _refresh(self) -> None:
        """Bring the widgets up to date."""
        with self._lock:
            view, feed = self.view, self.feed
            if view is None:
                return
            touched = set() if feed is None else feed.touched()
            states, now = self._states(), time.time()
            texts = {} if feed is None else feed.texts
            stale, self._stale = self._stale or list(states) != self._shown, False
            whole, self._reset = stale or self._reset, False
            names = states if whole else [n for n, s in states.items() if n in touched or s.status in _BUSY]
            items = self._pace.of({name: states[name] for name in names}, time.monotonic())
            rows = {name: row_of(states[name], items.get(name), texts.get(name, ""), now) for name in names}
            if stale:
                self._shown = list(states)
                view.rename([step.name for step in self.workspace.pipeline.steps])
                view.table.rebuild(rows)
                self._lay_out(view, states, now)
            else:
                view.table.send_changes(rows)
                view.graph.send_changes(names, states, now, items)
            shown = self.run_view()
            view.head.value = head_html(shown)
            self._offer(view, shown.phase)
            self._announce(view, shown)
            if self.selected and (whole or self._details_late or self.selected in touched):
                self._draw_details(view)
            for part in self.parts:
                part.draw()

    def _draw_details(self, view: PanelView) -> None:
        """Show the details of the chosen step anew: of many items they take long, so now and then only."""
        began = time.monotonic()
        self._details_late = (
            began < self._details_due and self.feed is not None and not self.feed.over.is_set()
        )
        if not self._details_late:
            view.choose(self.selected, self._details())
            ended = time.monotonic()
            self._details_due = ended + DETAILS_REST * (ended - began)

    def _lay_out(self, view: PanelView, states: dict[str, StepResult], now: float) -> None:
        try:
            view.graph.lay_out(self.workspace.pipeline, states, now, self._opened)
        except TagentError as error:
            # A goal that cannot be read, or no Graphviz: the rows are there without a graph.
            self._note = redact(str(error))

    def _offer(self, view: PanelView, phase: str) -> None:
        """Show the buttons that make sense now: while a run goes on, else by how it ended."""
        if self.feed is not None and not self.feed.over.is_set():
            now = ["stop", "go_on" if phase == "paused" else "pause", *self._batches()]
            view.offer(now, enabled=not self._stopping)
            return
        more = {"cancelled": ["go_on"], "timed out": ["go_on"], "waiting": ["go_on"]}.get(phase, [])
        again = ["retry"] if phase == "failed" or (phase == "completed" and self._has_failed()) else []
        view.offer(["run", *more, *again, "force", *self._batches()])

    def _batches(self) -> list[str]:
        """The button that cancels batches, while a provider has some."""
        memory = None if self.workspace.executor is None else self.workspace.executor.memory
        return ["cancel_batches"] if memory is not None and memory.batches.under_way() else []

    def _has_failed(self) -> bool:
        """Whether a step, or a row of one that has a value, has failed in the run that is shown."""
        steps = (self.workspace.states() or {}).values()
        return any(step.status is StepStatus.FAILED or failed_items(step) for step in steps)

    def _announce(self, view: PanelView, shown: RunView) -> None:
        """Tell screen readers what has changed in the whole, and what failed."""
        failed = [name for name, step in shown.steps.items() if step.status is StepStatus.FAILED]
        news = f"{shown.title}: {shown.phase}" + (f"; failed: {', '.join(failed[:5])}" if failed else "")
        if news != self._announced:
            self._announced = view.table.announcement = news


def _how_to_go_on(result: PipelineResult) -> str:
    if result.timed_out:
        return "The timeout is over. %tagent_run --resume carries this run on; what is done is not run again."
    if result.cancelled:
        return "Stopped. %tagent_run --resume carries this run on; what is done is not run again."
    if any(step.error_type == BudgetExceededError.__name__ for step in result.steps.values()):
        return (
            "The budget is used up. %tagent_run --resume --budget AMOUNT goes on with a higher one; "
            "what is done is kept."
        )
    if result.failed_steps:
        return "%tagent_run --resume tries the failed steps again; what is done is not run again."
    rows = [f"{failed_items(step)} in {name}" for name, step in result.steps.items() if failed_items(step)]
    if rows and not result.waiting_steps:
        return f"{'; '.join(rows)}. %tagent_run --retry-failed runs these alone, and what reads them."
    if result.waiting_steps:
        return f"Waiting for {waiting_words(result)}. %tagent_run --resume goes on with it."
    return ""
