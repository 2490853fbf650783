"""What a planning step says to its model in each phase. The same work is always said in the same words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from tagent_nb.errors import TemplateError
from tagent_nb.pipeline import Task, TaskStatus
from tagent_nb.runners.agent.runner import instructions
from tagent_nb.runners.base import StepContext
from tagent_nb.runners.planner.plan import MAX_TASKS
from tagent_nb.runners.tools.registry import LLM
from tagent_nb.serde import json_schema
from tagent_nb.templating import delimit, plain_text

MAX_RESULT_CHARS = 20_000
"""Characters of one result that a prompt shows at most."""

_PLAN = f"""Do not answer yet. Make a plan: at most {MAX_TASKS} tasks that together achieve the goal.
A task names the tool that does it, with all its arguments; or "{LLM}" if you do it yourself by thinking or
writing. A task can use the result of another: write {{{{ its id }}}} or {{{{ its id.field }}}} in its
arguments or its description. The last task gives what the goal asks for. Plan only what is needed."""

_TASK = "You are at one task of a plan. Do this task only, and give its result only."

_LAST = "You are at the last task of a plan. Its result is the answer to the goal."

_JUDGE = """All tasks of the plan are done. Do not answer the goal. Judge whether the results are enough to
answer it, and say in one sentence what is missing if they are not."""

_FINAL = "All tasks of the plan are done. Answer the goal from their results."


def system(context: StepContext, phase: str) -> str:
    """The system instruction of a phase: ``"plan"``, ``"task"``, ``"last"``, ``"judge"`` or ``"final"``."""
    words = {"plan": _PLAN, "task": _TASK, "last": _LAST, "judge": _JUDGE, "final": _FINAL}
    return f"{instructions(context)}\n\n{words[phase]}"


def to_plan(
    goal: str,
    tools: Sequence[tuple[str, str, Mapping[str, Any]]],
    schema: type[BaseModel] | None,
    tasks: Sequence[Task],
    failed: str,
) -> str:
    """Ask for a plan.

    Args:
        goal: The task of the step.
        tools: Name, description and JSON schema of the arguments of each tool.
        schema: Form of the answer that the step will give.
        tasks: Those of earlier plans.
        failed: Why another plan is needed; empty for the first.
    """
    parts = [f"Goal:\n{goal}"]
    if tools:
        lines = [f"- {name}: {about} Arguments: {_json(form)}" for name, about, form in tools]
        parts.append("Tools:\n" + "\n".join(lines))
    if schema is not None:
        parts.append(f"The answer to the goal will have this form: {_json(json_schema(schema))}")
    if tasks:
        parts.append("Tasks of earlier plans:\n" + "\n".join(map(task_line, tasks)))
        parts.append(
            f"A new plan is needed: {delimit(failed)}\n"
            "Plan only what is still to be done, in another way where one has failed. "
            "Refer to the results above by their ids, and do not repeat their tasks."
        )
    return "\n\n".join(parts)


def to_do(goal: str, description: str, arguments: Mapping[str, Any], results: Sequence[Task]) -> str:
    """Ask for the result of one task."""
    parts = [f"Goal of the plan, for your information:\n{goal}"]
    if results:
        parts.append("Results so far:\n" + "\n".join(map(task_line, results)))
    parts.append(f"Your task: {description}")
    if arguments:
        parts.append(f"Given: {shown(arguments)}")
    return "\n\n".join(parts)


def to_judge(goal: str, tasks: Sequence[Task]) -> str:
    """Ask whether the results are enough."""
    return f"Goal:\n{goal}\n\nResults:\n" + "\n".join(map(task_line, tasks))


def to_answer(goal: str, tasks: Sequence[Task], refused: str) -> str:
    """Ask for the answer."""
    parts = [f"Goal:\n{goal}"]
    if tasks:
        parts.append("Results:\n" + "\n".join(map(task_line, tasks)))
    if refused:
        parts.append(f"Mind what was said before: {delimit(refused)}")
    return "\n\n".join(parts)


def task_line(task: Task) -> str:
    """A task in one line: what it was, how it ended, and its result."""
    whose = " as changed by the user" if task.edited_by_user else ""
    does = "" if task.tool == LLM else f" [{task.tool}({_json(task.arguments)}){whose}]"
    start = f"- {task.id}: {task.description}{does}"
    if task.status is TaskStatus.COMPLETED:
        return f"{start}: {shown(task.result)}"
    if task.status is TaskStatus.FAILED:
        return f"{start}: failed: {delimit(task.error)}"
    return f"{start}: not done"


def shown(value: Any) -> str:
    """A result as data in a prompt."""
    text = text_of(value)
    left = len(text) - MAX_RESULT_CHARS
    return (
        delimit(text)
        if left <= 0
        else f"{delimit(text[:MAX_RESULT_CHARS])} ({left:,} characters are left out)"
    )


def text_of(value: Any) -> str:
    """The text of a result."""
    try:
        return plain_text(value)
    except TemplateError:
        return to_json(value, fallback=repr).decode()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
