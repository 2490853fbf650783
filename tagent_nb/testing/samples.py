"""What the tests of a backend store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from tagent_nb.events import (
    CallRecorded,
    Event,
    FactLearned,
    InputTaken,
    MemorySaved,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    RunUnpaused,
    StepCached,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepProgress,
    StepRetried,
    StepSkipped,
    TokenUsage,
    Warned,
)
from tagent_nb.serde import StoredValue, event_to_dict
from tagent_nb.storage import Holder, StorageBackend

DEAD_PID = 2**22 + 1
"""A process id above what Linux and macOS give out."""


def sample_run(run_id: str = "run", pipeline: str = "sample", at: float = 1000.0) -> list[Event]:
    """Events of a run that finished: one of each kind that storage keeps."""
    run: dict[str, Any] = {"run_id": run_id}
    step: dict[str, Any] = {"run_id": run_id, "at": at + 1}
    value = {
        "rows": [1, 2.5, "three", None, True],
        "when": datetime(2026, 1, 2, tzinfo=UTC),
        "price": Decimal("1.10"),
    }
    usage = TokenUsage(10, 20, requests=1)
    steps = ("a", "b", "c", "d")
    definition = {"name": pipeline}
    done: dict[str, Any] = {"key": "k", "components": {"goal": "g"}, "metadata": {"model": "test"}}
    return [
        RunStarted(**run, at=at, pipeline=pipeline, steps=steps, definition=definition, host="me", pid=1),
        StepProgress(**step, step="a", kind="tool", detail={"name": "search"}),
        CallRecorded(**step, step="a", kind="model", key="k", request={"says": "?"}, answer={"parts": []}),
        StepRetried(**step, step="a", attempt=1, error_type="ValueError", message="no", delay=0.5, cost=0.25),
        FactLearned(**step, step="a", key="fact", value=[1, 2]),
        MemorySaved(**step, step="a", item="0", key="memory", value={"x": 1}),
        StepFinished(**step, **done, step="a", output=StoredValue.of(value), attempt=2, cost=0.5),
        StepFinished(**step, step="c", item="0", output=StoredValue.of("an item"), cost=0.25),
        StepCached(**step, **done, step="b", output=StoredValue.of(""), saved_usage=usage, saved_cost=None),
        StepFailed(**step, step="c", error_type="KeyError", message="'x'", traceback="line 1", cost=None),
        StepSkipped(**step, step="d", reason="c failed", cause="c"),
        StepCancelled(**step, step="d", item="1"),
        Warned(**step, message="careful", step="a"),
        RunPaused(**step),
        RunUnpaused(**step),
        RunResumed(**run, at=at + 2, steps=steps, kept=("a", "b"), host="there", pid=2),
        InputTaken(**run, at=at + 2, name="table", output=StoredValue.of([{"text": "Great"}])),
        StepFinished(**step, step="c", output=StoredValue.of(None)),
        StepFinished(**step, step="d", output=StoredValue.of(b"bytes")),
        RunFinished(**run, at=at + 3, success=True, seconds=3.0),
    ]  # fmt: skip


def plain(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Events in a form in which two equal ones compare equal."""
    return [event_to_dict(event) for event in events]


def holder(pid: int = DEAD_PID, **changes: Any) -> bytes:
    """The stored form of a lease's holder: this machine's process ``pid``, with a fresh heartbeat."""
    here = Holder.here(datetime.now(UTC).timestamp(), 30.0)
    values = {
        "host": here.host,
        "pid": pid,
        "machine": here.machine,
        "started": here.started,
        "beat": here.beat,
    }
    return Holder(**{**values, "ttl": 30.0, **changes}).to_bytes()


def require(store: StorageBackend, capability: str) -> None:
    """Skip the test of a promise that a backend does not declare."""
    if capability not in store.capabilities:
        pytest.skip(f"{store!r} does not promise {capability!r}")
