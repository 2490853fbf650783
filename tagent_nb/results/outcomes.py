"""How steps ended that have no value, in words."""

from __future__ import annotations

from collections.abc import Mapping

from tagent_nb.errors import did_you_mean
from tagent_nb.formatting import count, short_text
from tagent_nb.pipeline import StepStatus
from tagent_nb.results.result import PipelineResult, StepResult


def ending(step: StepResult) -> str:
    """How a step ended without a value, in words; empty for one with a value, or that did not run."""
    if step.status is StepStatus.FAILED:
        what = step.error_type + (f": {short_text(step.error, 120)}" if step.error else "")
        return failed_items(step) or f"it failed ({what})"
    if step.status is StepStatus.CANCELLED:
        return "it was stopped"
    if step.status is StepStatus.SKIPPED:
        return f"it was skipped ({step.reason})"
    return ""


def outcome(result: PipelineResult) -> tuple[StepStatus, str]:
    """How a run ended: the status that it looks like, and a word."""
    if result.cancelled:
        return StepStatus.CANCELLED, "cancelled"
    if result.timed_out:
        return StepStatus.FAILED, "timed out"
    if result.success:
        return StepStatus.COMPLETED, "success"
    if result.failed_steps:
        return StepStatus.FAILED, "failed"
    if result.waiting_steps:
        return StepStatus.WAITING, "waiting for approval"
    return StepStatus.PENDING, "not finished"


def failure(result: PipelineResult) -> str:
    """What kept a run from success, a line a step."""
    failed = [result.steps[name] for name in result.failed_steps]
    lines = [
        f"  {step.name}: {step.error_type}: {short_text(step.error, 300)}".rstrip(" :") for step in failed
    ]
    if result.waiting_steps:
        lines.append(f"  {', '.join(result.waiting_steps)}: waits for an approval")
    stopped = "was stopped by its timeout" if result.timed_out else "was stopped" if result.cancelled else ""
    head = stopped or ("failed" if result.failed_steps else "is not complete")
    return "\n".join([f"Run {result.run_id} of pipeline {result.pipeline_name!r} {head}.", *lines])


def failed_items(step: StepResult) -> str:
    """How many items of a mapped step have failed, in words; empty if none has."""
    items = list((step.items or {}).values())
    bad = sum(item.status is StepStatus.FAILED for item in items)
    return f"{bad} of {count(len(items), 'item')} failed" if bad else ""


def skipped_items(step: StepResult) -> int:
    """How many items of a mapped step its condition has left out."""
    items = list((step.items or {}).values())  # at once: the run goes on in another thread
    return sum(item.status is StepStatus.SKIPPED for item in items)


def no_value(steps: Mapping[str, StepResult], name: str, run: str) -> str:
    """The message for whoever asks for a value that is not there.

    Args:
        steps: The steps of the run, by name.
        name: What was asked for.
        run: What the run is called.
    """
    step = steps.get(name)
    if step is None:
        known = ", ".join(steps) or "none"
        return f"Run {run!r} has no step {name!r}.{did_you_mean(name, steps)} Steps: {known}."
    why = ending(step)
    if not why:
        why = "it has not run" if step.status is StepStatus.PENDING else f"it is {step.status.value}"
    more = ""
    if step.items:
        more = f" result.output_frame({name!r}) has its items."
    elif step.traceback:
        more = f" result.error_details[{name!r}] has its traceback."
    return f"Step {name!r} of run {run!r} has no value: {why}.{more}"
