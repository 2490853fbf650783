"""What steps took the last time they ran."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tagent_nb.engine.dry_run.plan import StepPlan
from tagent_nb.engine.dry_run.quote import Answer
from tagent_nb.engine.memory.entries import last_time
from tagent_nb.engine.memory.load import read_memory
from tagent_nb.engine.unit.work import changed_since
from tagent_nb.errors import CorruptRecordError, FormatVersionError, NotStoredError
from tagent_nb.events import FactLearned, MemorySaved
from tagent_nb.pipeline import PipelineStep, StepStatus
from tagent_nb.results import ItemResult, StepResult

if TYPE_CHECKING:
    from tagent_nb.engine.memory.memory import PipelineMemory
    from tagent_nb.storage import StorageBackend

MOST_RUNS = 20
"""Newest runs to look through for one in which a step ran."""


MOST_ANSWERS = 1000
"""Newest answers of a step by which its next ones are estimated."""


@dataclass(frozen=True)
class Durations:
    """How long steps took, for an estimate of the time that is left.

    Attributes:
        seconds: Of each step the last time that it ran, by name; of a mapped step all its items together.
        pace: Seconds of wall time for one second of a step: below 1 where steps overlapped.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    pace: float = 1.0


class EarlierRuns:
    """Earlier runs of a pipeline, read from storage when they are needed, the newest first."""

    def __init__(
        self, storage: StorageBackend, pipeline_id: str, pipeline_name: str, most: int | None = None
    ) -> None:
        self._storage = storage
        self._most = MOST_RUNS if most is None else most
        self._id = pipeline_id
        self._name = pipeline_name
        self._ids: list[str] | None = None
        self._read: list[PipelineMemory] = []
        self._last_runs: dict[str, PipelineMemory | None] = {}

    async def expected(self, step: PipelineStep, plan: StepPlan) -> StepPlan:
        """The plan of a step that runs, with what it is expected to take."""
        memory = await self._last(step.name)
        if memory is None:
            # Python that cannot report what it spends spends no tokens; how long it takes is unknown.
            spends = step.body is None or step.body.wants_context
            return replace(plan, seconds=None, tokens=None if spends else 0, cost=None if spends else 0.0)
        before = memory.steps[step.name]
        share = _share(before, plan)
        return replace(
            plan,
            seconds=before.seconds * share,
            tokens=None if before.usage.unmeasured else round(before.usage.total_tokens * share),
            cost=None if before.cost is None else before.cost * share,
        )

    async def units(self, step: PipelineStep) -> int:
        """How many units of a step are to run whose source is yet to come: as many as the last time."""
        if step.runs_over is None:
            return step.samples
        memory = await self._last(step.name)
        if memory is None:
            return 0
        before = memory.steps[step.name]
        return len(before.items or ()) // int(before.metadata.get("samples", 1)) * step.samples

    async def answers(self, name: str, *, shared: bool = False) -> list[Answer]:
        """What the answers of a step took, a unit each, the newest first: of at most :data:`MOST_ANSWERS`.

        Args:
            name: The step.
            shared: Whether rows that shared calls count, else the others.
        """
        answers: list[Answer] = []
        async for memory in self._memories():
            step = memory.steps.get(name)
            if step is None:
                continue
            units = [step] if step.items is None else step.items.values()
            for unit in units:
                rows_in_call = unit.rows_in_call if isinstance(unit, ItemResult) else 0
                used = unit.usage
                is_answer = used.requests or rows_in_call
                if unit.status is not StepStatus.COMPLETED or not is_answer or used.unmeasured:
                    continue
                if bool(rows_in_call) == shared:
                    alone = isinstance(unit, ItemResult) and bool(unit.asked_alone)
                    answers.append(Answer(used, alone))
            if len(answers) >= MOST_ANSWERS:
                break
        return answers[:MOST_ANSWERS]

    async def unit_seconds(self, name: str, *, shared: bool = False) -> list[float]:
        """Seconds that units of a step took, the newest first: of at most :data:`MOST_ANSWERS`.

        Args:
            name: The step.
            shared: Whether rows that shared calls count, else all others.
        """
        seconds: list[float] = []
        async for memory in self._memories():
            step = memory.steps.get(name)
            if step is None:
                continue
            units = [step] if step.items is None else step.items.values()
            seconds += [
                unit.seconds
                for unit in units
                if unit.status is StepStatus.COMPLETED
                and unit.seconds > 0
                and (isinstance(unit, ItemResult) and bool(unit.rows_in_call)) == shared
            ]
            if len(seconds) >= MOST_ANSWERS:
                break
        return seconds[:MOST_ANSWERS]

    async def learned(self, name: str) -> dict[str, list[str]]:
        """The keys of ``facts`` and ``memories`` that a step recorded the last time it ran."""
        memory = await self._last(name)
        events = [] if memory is None else memory.events
        return {
            "facts": [event.key for event in events if isinstance(event, FactLearned) and event.step == name],
            "memories": [
                event.key for event in events if isinstance(event, MemorySaved) and event.step == name
            ],
        }

    async def components(self, name: str) -> Mapping[str, str] | None:
        """The newest recorded fingerprint of a step, empty without one; ``None`` if nothing ran yet."""
        components: Mapping[str, str] | None = None
        async for memory in self._memories():
            step = memory.steps.get(name)
            components = step.components if step is not None else {}
            if components:
                break
        return components

    async def all_components(self) -> AsyncIterator[Mapping[str, str]]:
        """The recorded fingerprints of all steps of all runs, the newest first."""
        async for memory in self._memories():
            for step in memory.steps.values():
                if step.components:
                    yield step.components

    async def file_changes(self, name: str) -> list[str]:
        """What is no longer as it was of the files that a step read the last time, in sentences.

        It has a recorded fingerprint.
        """
        ran = (memory async for memory in self._memories() if name in memory.steps)
        newest = await anext(memory async for memory in ran if memory.steps[name].components)
        return await changed_since(newest, name)

    async def last_time(self, name: str) -> str:
        """How a step ended the last time, in words; empty if it has a value or has not run."""
        async for memory in self._memories():
            return last_time(memory.steps[name]) if name in memory.steps else ""
        return ""

    async def durations(self, names: Iterable[str]) -> Durations:
        """How long these steps took the last time they ran."""
        wanted = set(names)
        seconds: dict[str, float] = {}
        pace: float | None = None
        async for memory in self._memories():
            ran = {name: step.seconds for name, step in memory.steps.items() if _ran(step)}
            if ran and pace is None:
                pace = min(1.0, memory.seconds / sum(ran.values()))
            seconds.update({name: taken for name, taken in ran.items() if name in wanted - seconds.keys()})
            if wanted <= seconds.keys():
                break
        return Durations(seconds, 1.0 if pace is None else pace)

    async def _last(self, name: str) -> PipelineMemory | None:
        """The newest run in which a step ran to its end."""
        if name not in self._last_runs:
            self._last_runs[name] = None
            async for memory in self._memories():
                if name in memory.steps and _ran(memory.steps[name]):
                    self._last_runs[name] = memory
                    break
        return self._last_runs[name]

    async def _memories(self) -> AsyncIterator[PipelineMemory]:
        for memory in self._read:
            yield memory
        if self._ids is None:
            self._ids = [run.run_id for run in await self._storage.runs(self._id, limit=self._most)]
        while self._ids:
            try:
                memory = await read_memory(self._storage, self._name, self._ids.pop())
            except (CorruptRecordError, FormatVersionError, NotStoredError):
                # A run that cannot be read, or that was deleted just now: an older one does as well.
                continue
            self._read.append(memory)
            yield memory


def _ran(step: StepResult) -> bool:
    """Whether a runner gave this step its value: not the cache, nor the record of an earlier session."""
    return step.status is StepStatus.COMPLETED and step.seconds > 0


def _share(before: StepResult, plan: StepPlan) -> float:
    """How much is to be done, as a multiple of what was done then."""
    if before.items is None:
        return 1.0
    ran = sum(item.status is StepStatus.COMPLETED for item in before.items.values())
    if plan.items is None or plan.items_done is None:
        left = sum(item.status is not StepStatus.SKIPPED for item in before.items.values())
    else:
        left = plan.items - plan.items_done
    return left / ran if ran else 1.0
