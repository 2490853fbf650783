"""What waits for a person, as a request, and the decision, as the run records it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tagent_nb.engine.memory.memory import PipelineMemory
from tagent_nb.engine.memory.pending_approvals import PendingApproval
from tagent_nb.errors import DefinitionError, OutputValidationError, StepError, did_you_mean
from tagent_nb.events import ApprovalGiven, ApprovalRequested
from tagent_nb.formatting import whole_text
from tagent_nb.pipeline import ApprovalRequest, Approved, Approver, Decision, Edited, Pipeline, Rejected, Unit
from tagent_nb.serde import StoredValue


def unit_of(event: ApprovalRequested | ApprovalGiven) -> Unit:
    """What an event is about."""
    return (event.step, event.item, event.call)


def open_requests(memory: PipelineMemory, pipeline: Pipeline) -> list[ApprovalRequest]:
    """What waits for a decision in a run, oldest first.

    Args:
        memory: Of the run.
        pipeline: Its definition, for goals and schemas.
    """
    return [request_of(pipeline, pending) for pending in memory.pending.undecided()]


def request_of(pipeline: Pipeline, pending: PendingApproval) -> ApprovalRequest:
    """A request as people see it."""
    event = pending.request
    step = pipeline.get_step(event.step) if event.step in pipeline else None
    more: dict[str, Any] = {}
    if pending.check is not None:
        more["check"] = pending.check
    elif not event.tool and step is not None:
        more["check"] = step.validate_output
    schema = None if step is None or event.tool else step.output_schema
    parameters: Mapping[str, Any] = pending.parameters
    if schema is not None:
        parameters = schema.model_json_schema()
    return ApprovalRequest(
        run_id=event.run_id,
        pipeline=pipeline.name,
        step=event.step,
        item=event.item,
        call=event.call,
        tool=event.tool,
        value=event.output.value,
        digest=event.output.digest,
        goal="" if step is None else step.goal,
        schema=schema,
        parameters=parameters,
        at=event.at,
        **more,
    )


def decision_event(request: ApprovalRequest, decision: Decision, *, used: bool = False) -> ApprovalGiven:
    """A decision as an event.

    Raises:
        OutputValidationError: An edited value does not match the schema.
        StepError: It is no decision, or an edited value cannot be stored.
    """
    step, item, call = request.unit
    verdict, reason, output = "approved", "", None
    if isinstance(decision, Rejected):
        verdict, reason = "retry" if decision.retry else "rejected", whole_text(str(decision.reason))
    elif isinstance(decision, Edited):
        output = StoredValue.of(checked_value(request, decision.value))
        verdict = "edited"
    elif not isinstance(decision, Approved):
        raise StepError(
            f"The approver of {request.title} gave {decision!r}. It must return Approved(), "
            "Edited(value) or Rejected(reason)."
        )
    return ApprovalGiven(
        run_id=request.run_id,
        step=step,
        item=item,
        call=call,
        verdict=verdict,
        digest=request.digest,
        reason=reason,
        output=output,
        used=used,
    )


def checked_value(request: ApprovalRequest, value: Any) -> Any:
    """An edited value as the step, or the tool, wants it.

    Raises:
        OutputValidationError: It does not match.
    """
    try:
        return request.check(whole_text(value))
    except OutputValidationError:
        raise
    except ValueError as error:
        raise OutputValidationError(f"The edited value of {request.title} will not do: {error}") from None


def checked_approver(approver: Any) -> Approver | None:
    """``approver``, if it is one.

    Raises:
        DefinitionError: It is neither a function nor ``"wait"``.
    """
    if approver is None or approver == "wait" or callable(approver):
        return approver  # type: ignore[no-any-return]
    raise DefinitionError(
        f"approver must be a function that takes an ApprovalRequest, 'wait', or None, not {approver!r}."
    )


def chosen(
    waiting: Sequence[ApprovalRequest], step: str, item: str | None, tool: str | None
) -> ApprovalRequest:
    """The request that is meant.

    Raises:
        DefinitionError: None is, or several are; the message lists what waits.
    """
    matches = [
        request
        for request in waiting
        if request.step == step
        and (item is None or request.item == str(item))
        and (tool is None or request.tool == tool)
    ]
    if not matches:
        titles = "; ".join(request.title for request in waiting[:5]) or "nothing"
        hint = did_you_mean(step, [request.step for request in waiting if request.step != step])
        raise DefinitionError(f"Nothing of step {step!r} waits for approval.{hint} Waiting: {titles}.")
    if len({(request.item, request.tool) for request in matches}) > 1:
        titles = "; ".join(request.title for request in matches[:5])
        raise DefinitionError(
            f"{len(matches)} values of step {step!r} wait. Say which: item=..., tool=... ({titles})."
        )
    return matches[0]
