"""The part of an executor that decides on what its runs hold, from any thread."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.approval.requests import chosen, decision_event, open_requests, unit_of
from tagent_nb.engine.background import submit
from tagent_nb.engine.lease import holding
from tagent_nb.engine.memory.load import read_memory, schemas_of
from tagent_nb.errors import LeaseLostError, NotStoredError
from tagent_nb.events import ApprovalGiven
from tagent_nb.pipeline import ApprovalRequest, Approved, Decision, Edited, Rejected

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tagent_nb.engine.memory.memory import PipelineMemory
    from tagent_nb.engine.session import Session
    from tagent_nb.pipeline import Pipeline
    from tagent_nb.storage import StorageBackend


class Deciding(ABC):
    """What :class:`PipelineExecutor` offers to those who approve and reject."""

    pipeline: Pipeline
    storage: StorageBackend
    memory: PipelineMemory | None
    schemas: list[type[BaseModel]]
    namespace: Mapping[str, Any]

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether a run is going on."""

    @abstractmethod
    def _act(self, action: Callable[[Session], None]) -> None:
        """Do something with the run, on its loop."""

    def pending_approvals(self) -> list[ApprovalRequest]:
        """What waits for a decision in the run that goes on, or else in the last one, oldest first.

        Raises:
            StorageError: The last run cannot be read.
        """
        memory = self._known()
        return [] if memory is None else open_requests(memory, self.pipeline)

    def approve(
        self, step: str, item: str | None = None, *, tool: str | None = None, value: Any = ...
    ) -> None:
        """Approve what a step holds. A run with ``approver="wait"`` goes on with it at once. Without a run,
        or where it began without an approver, ``run(resume=True)`` goes on with it.

        Args:
            step: Whose result, or whose call of a tool.
            item: Which item of a mapped step; needed only where several wait.
            tool: The tool that is to be called; needed only where several wait.
            value: What to use in place of the result, or of the tool's arguments; without it they stay
                as they are.

        Raises:
            DefinitionError: Nothing of it waits, or several things do.
            OutputValidationError: ``value`` does not match the schema; nothing is decided.
            StorageError: The decision could not be recorded.
        """
        self._decide(step, item, tool, Approved() if value is ... else Edited(value))

    def reject(
        self,
        step: str,
        reason: str,
        *,
        item: str | None = None,
        tool: str | None = None,
        retry: bool = False,
    ) -> None:
        """Refuse what a step holds; arguments and errors as for :meth:`approve`.

        Args:
            step: Whose result, or whose call of a tool.
            reason: Why, in words. A result fails its step with it; a call of a tool is not made, and the
                model is told.
            item: Which item of a mapped step.
            tool: Which tool.
            retry: Let the step try again, with the reason, if it has retries left.
        """
        self._decide(step, item, tool, Rejected(reason, retry))

    def decide(self, request: ApprovalRequest, decision: Decision) -> None:
        """Decide on one of :meth:`pending_approvals`; errors as for :meth:`approve`."""
        decided = decision_event(request, decision)
        if self.running:
            self._act(lambda session: session.approvals.decide(decided))
        else:
            submit(self._record(decided)).result()

    def _decide(self, step: str, item: str | None, tool: str | None, decision: Decision) -> None:
        self.decide(chosen(self.pending_approvals(), step, item, tool), decision)

    def _known(self) -> PipelineMemory | None:
        """The memory of the run that goes on, or else of the last one."""
        if self.memory is not None:
            return self.memory
        schemas = schemas_of(self.pipeline, self.schemas, self.namespace)
        try:
            return submit(read_memory(self.storage, self.pipeline.name, None, schemas)).result()
        except NotStoredError:
            return None

    async def _record(self, given: ApprovalGiven) -> None:
        """Record a decision while nobody carries the run on."""

        def lost(error: LeaseLostError) -> None:
            """Whoever has taken the run over refuses the record below, which says so."""

        known = self.memory if self.memory is not None and self.memory.run_id == given.run_id else None
        if known is not None and known.pending.get(unit_of(given)) is None:
            return  # its run has ended meanwhile, and needed no other decision
        pipeline_id = self.pipeline.id
        async with holding(self.storage, pipeline_id, given.run_id, lost) as lease:
            await self.storage.append(pipeline_id, given.run_id, [given], token=lease.token)
        if known is not None:
            known.apply(given)
