"""A run as a panel watches it: what its events add to the run's memory, and how it ended."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterable

from tagent_nb.events import (
    Event,
    Observer,
    RunResumed,
    RunStarted,
    StepEvent,
    StepProgress,
    StepStreamed,
)
from tagent_nb.results import PipelineResult

__all__ = ["MAX_TEXT", "RunFeed"]

MAX_TEXT = 10_000
"""Characters kept of what a step printed or streamed, counted from the end."""

_OVERWRITTEN = re.compile(r"[^\r\n]*\r+(?=[^\r\n])")

SHOWN_PROGRESS = ("tool_call", "tool_edited", "tool_error", "tool_rejected")
"""Kinds of progress that stand among the text of a step."""


class RunFeed:
    """One run, from its start to its last drawing: texts, what is new, and the outcome.

    Args:
        observers: Called with every event too.

    Attributes:
        texts: The end of what each step printed or streamed, by name.
        began: Set when the run has begun: it was not refused.
        changed: Set when there is something new to draw.
        over: Set when the run has ended.
        drawn: Set when the static twin is there.
        outcome: The result or the error, once it is over.
    """

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = list(observers)
        self.texts: dict[str, str] = {}
        self.began = threading.Event()
        self.changed = threading.Event()
        self.over = threading.Event()
        self.drawn = threading.Event()
        self.outcome: PipelineResult | BaseException | None = None
        self._writing: dict[str, str] = {}
        self._touched: deque[str] = deque()

    def __call__(self, event: Event) -> None:
        for observer in self._observers:
            observer(event)
        if isinstance(event, StepEvent):
            self._touched.append(event.step)
        if isinstance(event, StepStreamed):
            self._write(event.step, event.item, event.text)
        elif isinstance(event, StepProgress) and event.kind in SHOWN_PROGRESS:
            self._write_tool(event)
        elif isinstance(event, (RunStarted, RunResumed)):
            # A view that was drawn before the run was opened did not know what is recorded of these.
            self._touched.extend(event.steps)
            self.began.set()
        # Who waits clears it before it looks; to set it again for each event would take most of the time.
        if not self.changed.is_set():
            self.changed.set()

    def touched(self) -> set[str]:
        """The steps with events since the last call."""
        steps: set[str] = set()
        while self._touched:
            steps.add(self._touched.popleft())
        return steps

    def end(self, outcome: PipelineResult | BaseException) -> None:
        """Take the outcome; called once, on the run's loop."""
        self.outcome = outcome
        self.over.set()
        self.changed.set()

    @property
    def result(self) -> PipelineResult | None:
        """The result; ``None`` before the end, and for a run that was refused or not recorded."""
        return self.outcome if isinstance(self.outcome, PipelineResult) else None

    def _write(self, step: str, item: str | None, written: str) -> None:
        text = self.texts.get(step, "")
        if item is not None:
            # Items run at the same time: each line says whose it is.
            if text and not text.endswith("\n") and self._writing.get(step) != item:
                text += "\n"
            if not text or text.endswith("\n"):
                text += f"[{item}] "
            self._writing[step] = item
        text += written
        # A progress bar writes over its line.
        self.texts[step] = (_OVERWRITTEN.sub("", text) if "\r" in text else text)[-MAX_TEXT:]

    def _write_tool(self, event: StepProgress) -> None:
        """What a tool does, on a line of its own."""
        tool, detail = event.detail.get("tool", ""), event.detail.get("message", "")
        if event.kind in ("tool_call", "tool_edited"):
            arguments = event.detail.get("arguments", {})
            sign = "→" if event.kind == "tool_call" else "✎"
            line = f"{sign} {tool}({', '.join(f'{name}={value}' for name, value in arguments.items())})"
        else:
            line = f"✗ {tool}: {detail}"
        text = self.texts.get(event.step, "")
        if text and not text.endswith("\n"):
            self.texts[event.step] = text + "\n"
        self._write(event.step, event.item, line + "\n")
