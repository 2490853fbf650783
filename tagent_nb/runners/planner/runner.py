"""A planning step at work: plan, execute, evaluate, and plan anew or give the answer its form.

Imports pydantic-ai: load it late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_ai import ModelRetry
from pydantic_ai.models import Model

from tagent_nb import serde
from tagent_nb.errors import EncodeError, OutputValidationError, StepError, TemplateError
from tagent_nb.pipeline import Phase, PipelineStep, Task, TaskBasedStateMachine, TaskStatus
from tagent_nb.runners.agent.runner import instructions, prompt
from tagent_nb.runners.base import StepContext
from tagent_nb.runners.calls import edited_arguments
from tagent_nb.runners.execution.capture import Lines, captured
from tagent_nb.runners.models.clients import Models
from tagent_nb.runners.models.resolve import model_name
from tagent_nb.runners.planner import prompts as say
from tagent_nb.runners.planner.ask import RETRIES, Asker, UnusableError, pause
from tagent_nb.runners.planner.plan import (
    PlanError,
    Proposal,
    all_required,
    filled_in,
    free_id,
    proposal_of,
    references,
    shown_in,
    tasks_of,
)
from tagent_nb.runners.planner.toolbox import CallFailedError, Toolbox
from tagent_nb.runners.tools.registry import LLM, tools_of
from tagent_nb.runners.validators import Checks

BRIEF = 200
"""Characters of an argument or a message that a report shows at most."""


class Judgement(BaseModel):
    """Whether the goal can be answered from the results."""

    model_config = ConfigDict(title="Judgement", json_schema_extra=all_required)

    achieved: bool = Field(description="Whether the results are enough to answer the goal.")
    reason: str = Field(
        default="", json_schema_extra={"maxLength": 300}, description="What is missing, in one sentence."
    )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came of a plan.

    Attributes:
        by: Who judged: ``"tasks"``, ``"checks"``, ``"schema"``, ``"model"`` or ``"none"``.
        settled: Whether the last result is the value of the step.
        value: That value.
        missing: Why another plan is needed; empty if none is.
        failed: Whether a task failed, so that there is nothing to answer from.
    """

    by: str
    settled: bool = False
    value: Any = None
    missing: str = ""
    failed: bool = False


class Planning:
    """One attempt at a planning step.

    Args:
        step: The step.
        context: Of the attempt.
        model: Its model.
        goal: The goal with its values filled in, and what else is known.
        toolbox: The tools that plans may use.
        roles: Models by role, in place of ``model``.
    """

    def __init__(
        self,
        step: PipelineStep,
        context: StepContext,
        model: Model[Any],
        goal: str,
        toolbox: Toolbox,
        roles: Mapping[str, Model[Any]],
    ) -> None:
        self.step = step
        self.context = context
        self.goal = goal
        self.machine = TaskBasedStateMachine(goal, max_plans=step.max_replans + 1)
        self._toolbox = toolbox
        self._ask = Asker(step, context, model, roles)
        self._checks = Checks(step, context)
        self._form = proposal_of(toolbox.names)
        # Results of tools by their call: those of earlier plans, and those of the plan that goes on.
        self._before: dict[str, Any] = {}
        self._now: dict[str, Any] = {}
        self._refused: Exception | None = None
        self._missing = ""
        self._fell_back = False

    async def value(self) -> Any:
        """Go through the phases until there is a value.

        Raises:
            StepError: A task failed in the last plan that may be made, a tool ended the step, or the
                model's side refused a request.
            OutputValidationError: No answer matched the schema and passed the checks.
            RetryableError: The model's side failed in a way that may pass.
        """
        try:
            return await self._value()
        except BaseException:
            self.machine.transition(Phase.FAILED)
            raise
        finally:
            self._note()

    async def _value(self) -> Any:
        missing = ""
        while True:
            await self._plan(missing)
            await self._execute()
            evaluation = await self._evaluate()
            missing = evaluation.missing
            if missing and self._may_plan:
                continue
            if evaluation.failed:
                raise self._refused or StepError(
                    f"Step {self.step.name!r}: {self._plans()} did not succeed. {missing}. "
                    "Raise max_replans, or say in the goal how else it can be done."
                )
            try:
                value = await self._finalize(evaluation)
            except OutputValidationError as error:
                missing = str(error)
                if not self._may_plan:
                    raise
                continue
            self._enter(Phase.COMPLETED)
            return value

    @property
    def _may_plan(self) -> bool:
        """Whether another plan may be asked for; not of a model that could not write one."""
        return self.machine.may_plan and not self._fell_back

    def _plans(self) -> str:
        count = self.machine.plans
        return "its plan" if count == 1 else f"its {count} plans"

    # -- plan -------------------------------------------------------------------------------

    async def _plan(self, missing: str) -> None:
        self._enter(Phase.PLANNING, missing)
        self._refused, self._missing = None, missing
        earlier = self.machine.tasks
        waiting = [planned for planned in earlier if planned.status is TaskStatus.PENDING]
        task = say.to_plan(self.goal, self._toolbox.described(), self.step.output_schema, earlier, missing)
        try:
            proposal = await self._ask.about(
                task, say.system(self.context, "plan"), self._form, self._carried_out, role="plan"
            )
            tasks = self._tasks(proposal)
        except UnusableError as error:
            tasks = self._one_task(str(error))
        self.machine.add_plan(tasks)
        # Within one plan a model may want the same call twice; a new plan does not mean it again.
        self._before.update(self._now)
        self._now.clear()
        for planned in [*waiting, *tasks]:
            self._report(planned)

    async def _carried_out(self, proposal: Proposal) -> Proposal:
        """``proposal``, if it can be carried out; else the model reads why not."""
        try:
            self._tasks(proposal)
        except PlanError as error:
            raise ModelRetry(f"This plan cannot be carried out. {error}") from error
        return proposal

    def _tasks(self, proposal: Proposal) -> list[Task]:
        tasks = tasks_of(proposal, self._toolbox, self.machine.tasks, self.machine.plans + 1)
        for task in tasks:
            task.max_retries = RETRIES
        return tasks

    def _one_task(self, why: str) -> list[Task]:
        """What every model can do: answer the goal as it is."""
        self._fell_back = True
        self.context.progress(
            "plan_fallback",
            plan=self.machine.plans + 1,
            message=f"no usable plan, so the goal is one task: {why}"[: 2 * BRIEF],
        )
        name = free_id("goal", self.machine.plans + 1, [task.id for task in self.machine.tasks])
        return [Task("Answer the goal.", id=name, max_retries=RETRIES)]

    # -- execute ----------------------------------------------------------------------------

    async def _execute(self) -> None:
        """Do the tasks in order; the first that fails for good ends the plan."""
        self._enter(Phase.EXECUTING)
        while not self.machine.failed_tasks and (task := self.machine.next_task()) is not None:
            self.machine.start_task(task.id)
            self._report(task)
            try:
                result, reused = await self._result(task)
            except (CallFailedError, UnusableError, TemplateError) as error:
                passing = isinstance(error, CallFailedError) and error.passing
                waits = self.machine.fail_task(task.id, str(error), retry=passing)
                self._report(task)
                if waits:
                    await pause(self.context, task.attempts - 1, f"task {task.id!r}: {error}")
                continue
            self.machine.complete_task(task.id, result)
            self._report(task, "reused" if reused else "")

    async def _result(self, task: Task) -> tuple[Any, bool]:
        """The result of a task, and whether an earlier plan had it already."""
        results = self.machine.results
        arguments = filled_in(task.arguments, results, say.text_of)
        if task.tool == LLM:
            return await self._think(task, arguments), False
        call = f"{task.tool} {_digest(arguments)}"
        reused = call in self._before
        result = self._before[call] if reused else await self._toolbox.call(task.tool, arguments)
        if not reused and not self._toolbox.is_pure(task.tool):
            self._now[call] = result
        edited = edited_arguments(result)
        if edited is None:
            return result, reused
        # What the model reads of the task, and the record of the plan, are about what was really done.
        task.arguments, task.edited_by_user = dict(edited), True
        return result.return_value, reused

    async def _think(self, task: Task, arguments: dict[str, Any]) -> Any:
        """Let the model do a task; the last one of a plan has the form of the step's value."""
        machine = self.machine
        done = [done_task for done_task in machine.tasks if done_task.status is TaskStatus.COMPLETED]
        if self._fell_back:
            # In the words of a step without a plan, which the simplest models understand best.
            missing = self._missing
            question = say.to_answer(self.goal, done, missing) if done or missing else self.goal
            return await self._value_of(question, instructions(self.context))
        named, _ = references([task.description, task.arguments], machine.results)
        results = [done_task for done_task in done if done_task.id in named] if named else done
        # As data, also where it is all that the description says: a result is no instruction.
        description = shown_in(task.description, machine.results, say.shown)
        question = say.to_do(self.goal, description, arguments, results)
        if task is machine.tasks[-1]:
            return await self._value_of(question, say.system(self.context, "last"))
        return await self._ask.for_text(question, say.system(self.context, "task"))

    async def _value_of(self, question: str, system: str) -> Any:
        try:
            return await self._ask.for_value(question, system, self._checks, "act")
        except UnusableError as error:
            self._refused = error.error
            raise

    # -- evaluate ---------------------------------------------------------------------------

    async def _evaluate(self) -> Evaluation:
        """Judge what came of the plan: by its tasks, the schema and the checks; else by the model."""
        self._enter(Phase.EVALUATING)
        evaluation = await self._judged()
        report: dict[str, Any] = {
            "by": evaluation.by,
            "achieved": None if evaluation.by == "none" else not evaluation.missing,
        }
        if evaluation.missing:
            report["message"] = evaluation.missing[: 2 * BRIEF]
        self.context.metadata["evaluation"] = report
        self.context.progress("evaluation", plan=self.machine.plans, **report)
        return evaluation

    async def _judged(self) -> Evaluation:
        failed = self.machine.failed_tasks
        if failed:
            failures = "; ".join(
                f"Task {task.id!r} ({task.tool}) failed: {task.error.rstrip('.')}" for task in failed
            )
            return Evaluation("tasks", missing=failures, failed=True)
        last = self.machine.tasks[-1]
        fits, value = self._fitting(last)
        if fits:
            refused = "" if last.tool == LLM else await self._checks.judge(value)
            if refused:
                return Evaluation("checks", missing=refused)
            if self.step.checks or self.step.output_schema is not None:
                return Evaluation("checks" if self.step.checks else "schema", True, value)
        if self._fell_back:
            return Evaluation("none", fits, value)
        done = [task for task in self.machine.tasks if task.status is TaskStatus.COMPLETED]
        try:
            verdict = await self._ask.about(
                say.to_judge(self.goal, done), say.system(self.context, "judge"), Judgement, role="judge"
            )
        except UnusableError as error:
            self.context.progress("no_judgement", message=str(error)[:BRIEF])
            return Evaluation("none", fits, value)
        missing = "" if verdict.achieved else verdict.reason or "The goal is not achieved."
        return Evaluation("model", fits, value, missing)

    def _fitting(self, task: Task) -> tuple[bool, Any]:
        """Whether the result of the last task is a value of the step as it is, and that value.

        The model was asked for such a value. A tool was not: its record must name fields of the schema
        only, since a schema whose fields may all be absent would take anything.
        """
        schema, result = self.step.output_schema, task.result
        if task.tool == LLM or (schema is not None and isinstance(result, schema)):
            return True, result
        if schema is None or not isinstance(result, dict) or not result:
            return False, None
        fields = schema.model_fields
        names = {
            *fields,
            *(alias for info in fields.values() for alias in (info.alias, info.validation_alias)),
        }
        try:
            return (True, schema.model_validate(result)) if names.issuperset(result) else (False, None)
        except ValidationError:
            return False, None

    # -- finalize ---------------------------------------------------------------------------

    async def _finalize(self, evaluation: Evaluation) -> Any:
        """Give the answer its form.

        Raises:
            OutputValidationError: No answer matched the schema and passed the checks.
        """
        self._enter(Phase.FINALIZING)
        if evaluation.settled:
            return evaluation.value
        done = [task for task in self.machine.tasks if task.status is TaskStatus.COMPLETED]
        question = say.to_answer(self.goal, done, evaluation.missing)
        try:
            return await self._ask.for_value(
                question, say.system(self.context, "final"), self._checks, "answer"
            )
        except UnusableError as error:
            raise error.error from error

    # -- reports ----------------------------------------------------------------------------

    def _enter(self, phase: Phase, message: str = "") -> None:
        self.machine.transition(phase)
        plan = self.machine.plans + (phase is Phase.PLANNING)
        shown = {"message": message[: 2 * BRIEF]} if message else {}
        self.context.progress("phase", phase=phase.value, plan=plan, **shown)
        self._note()

    def _report(self, task: Task, status: str = "") -> None:
        self.context.progress("task", **{**_brief(task), **({"status": status} if status else {})})

    def _note(self) -> None:
        """Keep what is known in the result's metadata, whatever comes next."""
        machine = self.machine
        self.context.metadata.update(
            plan=[_brief(task) for task in machine.tasks],
            phases=[phase.value for phase in machine.history[1:]],
            replans=max(0, machine.plans - 1),
        )
        if self._fell_back:
            self.context.metadata["plan_fallback"] = True


def _digest(arguments: dict[str, Any]) -> str:
    try:
        return serde.digest(arguments)
    except EncodeError:  # an object of the user's, which is the same as long as it is shown the same
        return repr(arguments)


def _brief(task: Task) -> dict[str, Any]:
    """A task as plain data, without its result."""
    record: dict[str, Any] = {
        "task": task.id,
        "plan": task.plan,
        "description": task.description[:BRIEF],
        "tool": task.tool,
        "status": task.status.value,
        "attempts": task.attempts,
    }
    if task.arguments:
        record["arguments"] = {name: say.text_of(value)[:BRIEF] for name, value in task.arguments.items()}
    if task.edited_by_user:
        record["edited_by_user"] = True
    if task.error:
        record["error"] = task.error[:BRIEF]
    return record


class PlanRunner:
    """Gets the value of an agent step with ``agent="plan"``.

    The model writes a plan: tasks that tools do, or that it does itself, which may use each other's
    results. The step carries them out in the order of these references, and judges what came of it: by
    failed tasks, the schema and the checks first, else by asking the model. If something is missing, a
    new plan is made, at most ``max_replans`` times, that knows what was done and what failed. A call
    that a tool has answered in an earlier plan is not made again, unless the tool is marked pure.

    The step itself calls the tools, so that models without tool calls can use them. A model that
    writes no usable plan gets the goal as one task, which is reported as progress of kind
    ``"plan_fallback"``. Phases, tasks and judgements are progress of kinds ``"phase"``, ``"task"`` and
    ``"evaluation"``; ``plan``, ``phases``, ``replans`` and ``evaluation`` end in ``result.step_metadata``.
    """

    version = "plan 1"
    replays = True

    def __init__(self, models: Models | None = None) -> None:
        self.models = Models() if models is None else models

    async def run(self, step: PipelineStep, context: StepContext) -> Any:
        """Return the answer that the plan led to.

        Raises:
            ModelError: The model cannot be used.
            OutputValidationError: No answer matched the schema and passed the checks; the message shows
                the last one.
            RetryableError: The model's side failed in a way that may pass, such as a rate limit.
            StepError: A task failed in the last plan, a tool ended the step, or a request was refused.
            TemplateError: The goal reads something that is not there.
        """
        goal = prompt(step, context)
        model = await self.models.get(context.model, offline=context.offline)
        from tagent_nb.runners.planner.toolbox import Toolbox

        roles = {
            role: await self.models.get(name, offline=context.offline) for role, name in step.models.items()
        }
        context.metadata["model"] = model_name(context.model)
        if roles:
            context.metadata["models"] = {role: model_name(name) for role, name in step.models.items()}
        with tools_of(context), captured(Lines(context.write)):
            toolbox = await Toolbox.of(step, context, model)
            try:
                return await Planning(step, context, model, goal, toolbox, roles).value()
            except asyncio.CancelledError:
                context.stop.set()
                raise
