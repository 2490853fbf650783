"""What lists and messages say of runs and backups: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

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
