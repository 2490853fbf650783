"""What lists and messages say of runs and backups: plain data, and the fold over events that counts it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tagent_nb.events import (
    ApprovalGiven,
    ApprovalRequested,
    CallRecorded,
    Event,
    RunFinished,
    RunResumed,
    RunStarted,
    StepCached,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepRetried,
    StepSkipped,
)

Item = tuple[str, str, str]
"""Pipeline, kind (``"run"`` or ``"document"``) and name."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a list of runs says about one.

    Attributes:
        run_id: The run.
        pipeline_id: Storage id of its pipeline.
        pipeline: Name of its pipeline.
        status: ``"running"``, ``"interrupted"``, ``"completed"``, ``"failed"``, ``"cancelled"``,
            ``"waiting"`` for an approval, or ``"damaged"`` with ``problem`` saying why.
        started_at: Seconds since the epoch.
        ended_at: Seconds since the epoch; ``None`` while it runs and after an interruption.
        host: Name of the machine that carried it on last.
        pid: The process that carried it on last.
        steps: Number of steps of the pipeline.
        steps_done: Steps that have a value, cached ones too.
        steps_cached: Steps whose value came from the cache.
        steps_failed: Steps that failed.
        cost: USD, as far as prices are known.
        unpriced: Whether some price is unknown.
        size: Stored bytes; 0 where nothing is stored as bytes.
        problem: What is wrong with the stored run, or ``None``.
        chained: Whether its records are numbered, so that one that is missing or in another place is noticed.
            Those of older versions of tagent-nb are not, until the run is carried on.
        undecided: Values and calls of tools that wait for an approval, however the run stands.
    """

    run_id: str
    pipeline_id: str
    pipeline: str = ""
    status: str = "interrupted"
    started_at: float = 0.0
    ended_at: float | None = None
    host: str = ""
    pid: int = 0
    steps: int = 0
    steps_done: int = 0
    steps_cached: int = 0
    steps_failed: int = 0
    cost: float = 0.0
    unpriced: bool = False
    size: int = 0
    problem: str | None = None
    chained: bool = True
    undecided: int = 0


@dataclass
class Summary:
    """A fold over a run's events that counts what :class:`RunInfo` shows."""

    pipeline: str = ""
    outcome: str = ""
    started_at: float = 0.0
    ended_at: float | None = None
    host: str = ""
    pid: int = 0
    steps: int = 0
    cost: float = 0.0
    unpriced: bool = False
    states: dict[str, str] = field(default_factory=dict)
    calls: dict[tuple[str, str | None], list[float | None]] = field(default_factory=dict)
    pending: dict[tuple[str, str | None], set[str]] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Take one event in."""
        kind = type(event)
        if kind in _SPENDING and not getattr(event, "call", ""):
            # A call of a tool that waits for approval ends no attempt.
            self.calls.pop((event.step, event.item), None)  # type: ignore[attr-defined]
            self._spend(event.cost)  # type: ignore[attr-defined]
        elif isinstance(event, CallRecorded):
            # Counted with its attempt; if this is interrupted, by itself.
            self.calls.setdefault((event.step, event.item), []).append(event.cost)
        elif kind is RunResumed:
            self._interrupted()
        if kind in _APPROVALS:
            self._approval(event)
        state = _STATES.get(kind)
        if state is not None:
            if event.item is None:  # type: ignore[attr-defined]
                self.states[event.step] = state  # type: ignore[attr-defined]
        elif isinstance(event, RunStarted):
            self.pipeline, self.started_at, self.steps = event.pipeline, event.at, len(event.steps)
            self.host, self.pid = event.host, event.pid
        elif isinstance(event, RunResumed):
            self.states = {name: state for name, state in self.states.items() if name in event.kept}
            self.steps = len(event.steps) or self.steps
            self.host, self.pid = event.host, event.pid
            self.outcome, self.ended_at = "", None
        elif isinstance(event, RunFinished):
            self.ended_at = event.at
            self.outcome = "cancelled" if event.cancelled else "completed" if event.success else "failed"
            if event.waiting and not event.cancelled and "failed" not in self.states.values():
                self.outcome = "waiting"

    def _approval(self, event: Any) -> None:
        """Count what waits for a decision."""
        unit = (event.step, event.item)
        if isinstance(event, ApprovalRequested):
            self.pending.setdefault(unit, set()).add(event.call)
        elif isinstance(event, ApprovalGiven):
            self.pending.get(unit, set()).discard(event.call)
        elif self.pending:
            # The unit has come to an end, or begins anew.
            self.pending.pop(unit, None)

    def _spend(self, cost: float | None) -> None:
        if cost is None:
            self.unpriced = True
        else:
            self.cost += cost

    def _interrupted(self) -> None:
        """Count the calls of attempts whose process died."""
        for costs in self.calls.values():
            for cost in costs:
                self._spend(cost)
        self.calls.clear()

    def add_all(self, events: Iterable[Event]) -> Summary:
        """Take several events in."""
        for event in events:
            self.add(event)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with counts in place of the steps' states."""
        counted = replace(self, calls=dict(self.calls))
        counted._interrupted()
        data = asdict(counted)
        del data["calls"], data["pending"]
        data["undecided"] = sum(map(len, self.pending.values()))
        data["states"] = _counts(self.states)
        return data

    def to_info(self, pipeline_id: str, run_id: str, *, size: int, alive: bool) -> RunInfo:
        """The run as a list shows it; ``alive``: a process holds its lease."""
        return info_of(self.to_dict(), pipeline_id, run_id, size=size, alive=alive)


_SPENDING = (StepFinished, StepFailed, StepRetried, StepCancelled, ApprovalRequested)
_APPROVALS = {
    ApprovalRequested,
    ApprovalGiven,
    StepRetried,
    StepFinished,
    StepFailed,
    StepCached,
    StepSkipped,
}
_STATES: dict[type[Event], str] = {StepFinished: "done", StepCached: "cached", StepFailed: "failed"}


def _counts(states: Mapping[str, str]) -> dict[str, int]:
    values = list(states.values())
    return {state: values.count(state) for state in _STATES.values()}


def info_of(data: Mapping[str, Any], pipeline_id: str, run_id: str, *, size: int, alive: bool) -> RunInfo:
    """The run of a :meth:`Summary.to_dict`, as a list shows it; ``alive``: a process holds its lease."""
    counts = data["states"]
    return RunInfo(
        run_id=run_id,
        pipeline_id=pipeline_id,
        pipeline=data["pipeline"],
        status="running" if alive else data["outcome"] or "interrupted",
        started_at=data["started_at"],
        ended_at=None if alive else data["ended_at"],
        host=data["host"],
        pid=data["pid"],
        steps=data["steps"],
        steps_done=counts["done"] + counts["cached"],
        steps_cached=counts["cached"],
        steps_failed=counts["failed"],
        cost=data["cost"],
        unpriced=data["unpriced"],
        size=size,
        # Older versions did not count them.
        undecided=data.get("undecided", 0),
    )


def damaged(pipeline_id: str, run_id: str, size: int, error: Exception) -> RunInfo:
    """A run that cannot be read, in its place in the list: it may be the newest."""
    return RunInfo(
        run_id, pipeline_id, status="damaged", started_at=time_in(run_id), size=size, problem=str(error)
    )


def time_in(run_id: str) -> float:
    """The time in an id that the engine has made, in seconds since the epoch; 0 in any other."""
    try:
        return datetime.strptime(run_id[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


@dataclass(frozen=True, slots=True)
class BackupInfo:
    """What is known about a backup.

    Attributes:
        path: The file.
        made_at: When it was made, in seconds since the epoch.
        size: Bytes.
        pipelines: Pipelines in it.
        runs: Runs in it.
        problem: Why it must not be used, or ``None`` if it was verified.
    """

    path: Path
    made_at: float
    size: int
    pipelines: int = 0
    runs: int = 0
    problem: str | None = None


@dataclass(slots=True)
class RestoreInfo:
    """What a restore did.

    Attributes:
        backup: The backup that was used, or the file with which a restore that had been stopped went on.
        aside: Where the store as it was before is kept.
        restored: What came from the backup, or else from an older one.
        kept: What was intact and stayed.
        problems: What was found damaged, one sentence each.
    """

    backup: Path
    aside: str
    restored: list[Item] = field(default_factory=list)
    kept: list[Item] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
