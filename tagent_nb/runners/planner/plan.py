"""Plans as models write them: read leniently, checked strictly, put in the order of their references."""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from tagent_nb.errors import TemplateError, did_you_mean
from tagent_nb.pipeline import Task, TaskStatus, find_cycle
from tagent_nb.runners.tools.registry import LLM
from tagent_nb.templating import lookup

MAX_TASKS = 12
"""Tasks of one plan."""

_OTHER_NAMES = {"arguments": ("args", "parameters", "input"), "tasks": ("plan", "steps")}


class PlanError(ValueError):
    """A plan that cannot be carried out; the text says all that is wrong, for the model."""


class Tools(Protocol):
    """The tools that a plan may use."""

    @property
    def names(self) -> Sequence[str]: ...

    def problems(self, tool: str, arguments: Mapping[str, Any], *, complete: bool) -> str:
        """What is wrong with a call; with ``complete``, its values are looked at too."""
        ...


def all_required(schema: dict[str, Any]) -> None:
    """Ask models for every field, whatever is read leniently; and for no tool where there is none."""
    fields = schema["properties"]
    if fields.get("tool", {}).get("const") == LLM:
        del fields["tool"], fields["arguments"]
    schema["required"] = list(fields)


class PlannedTask(BaseModel):
    """One task of a plan."""

    model_config = ConfigDict(title="Task", json_schema_extra=all_required)

    id: str = Field(default="", json_schema_extra={"maxLength": 20}, description="A short name, such as t1.")
    description: str = Field(
        default="", json_schema_extra={"maxLength": 300}, description="What this task is to find out or do."
    )
    tool: str = LLM
    arguments: dict[str, Any] = Field(default_factory=dict, description="Arguments of the tool.")

    @model_validator(mode="before")
    @classmethod
    def _lenient(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"description": data}
        if not isinstance(data, Mapping):
            return data
        read = _other_names(data, "arguments")
        tool = read.get("tool")
        if tool is None or (isinstance(tool, str) and tool.strip().lower() in ("", "none", "null", LLM)):
            read["tool"] = LLM
        arguments = read.get("arguments")
        if isinstance(arguments, str):
            arguments = _object(arguments)
        read["arguments"] = {} if arguments is None else arguments
        for name in ("id", "description"):
            if isinstance(read.get(name), int | None):
                read[name] = "" if read.get(name) is None else str(read[name])
        return read


class Proposal(BaseModel):
    """A list of tasks that together achieve the goal."""

    model_config = ConfigDict(title="Plan")

    tasks: list[PlannedTask] = Field(min_length=1, max_length=MAX_TASKS)

    @model_validator(mode="before")
    @classmethod
    def _lenient(cls, data: Any) -> Any:
        if isinstance(data, list):
            return {"tasks": data}
        return _other_names(data, "tasks") if isinstance(data, Mapping) else data


def proposal_of(tools: Sequence[str]) -> type[Proposal]:
    """The form of a plan that may use these tools: a grammar made of it can name no others."""
    names = Literal[(LLM, *tools)]  # type: ignore[valid-type]
    task = create_model(
        "Task", __base__=PlannedTask, tool=(names, Field(default=LLM, description="What does it."))
    )
    form: Any = create_model(
        "Plan",
        __base__=Proposal,
        __doc__=Proposal.__doc__,
        tasks=(list[task], Field(min_length=1, max_length=MAX_TASKS)),  # type: ignore[valid-type]
    )
    return form  # type: ignore[no-any-return]


def _object(text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except json.JSONDecodeError:
        return text


def _other_names(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    read = dict(data)
    for other in _OTHER_NAMES[name]:
        if name not in read and other in read:
            read[name] = read.pop(other)
    return read


def tasks_of(proposal: Proposal, tools: Tools, earlier: Sequence[Task], number: int) -> list[Task]:
    """The tasks of a plan in the order of their references, under ids that no earlier plan has used.

    Args:
        proposal: The plan.
        tools: The tools that it may use.
        earlier: The tasks of earlier plans; those that have a result may be referred to.
        number: Number of the plan, from 1.

    Raises:
        PlanError: It cannot be carried out.
    """
    own = [task_id(task.id) or f"t{place}" for place, task in enumerate(proposal.tasks, 1)]
    wrong = [f"Two tasks have the id {name!r}." for name in dict.fromkeys(own) if own.count(name) > 1]
    there = [task.id for task in earlier if task.status is TaskStatus.COMPLETED]
    task_ids = dict.fromkeys([*own, *there])
    needs: dict[str, list[str]] = {}
    for name, task in zip(own, proposal.tasks, strict=True):
        ids, problems = references([task.description, task.arguments], task_ids)
        needs[name] = [reference for reference in ids if reference in own]
        wrong += [f"Task {name!r}: {problem}" for problem in problems]
        wrong += _wrong_call(name, task, tools, task_ids)
    cycle = find_cycle(needs)
    if cycle is not None:
        wrong.append(f"These tasks wait for each other: {' -> '.join(cycle)}.")
    if wrong:
        raise PlanError(" ".join(wrong))
    # What an earlier plan called so is meant by that name only where this plan has no task of it.
    final = {name: name for name in there}
    taken = [task.id for task in earlier]
    for name in own:
        final[name] = free_id(name, number, taken)
        taken.append(final[name])
    by_name = dict(zip(own, proposal.tasks, strict=True))
    return [
        Task(
            description=renamed(by_name[name].description, final) or f"Call {by_name[name].tool}",
            tool=by_name[name].tool,
            arguments=renamed(by_name[name].arguments, final),
            id=final[name],
        )
        for name in _in_order(needs)
    ]


def free_id(name: str, number: int, taken: Collection[str]) -> str:
    """An id for a task of this plan: ``t1``, or ``t1_2`` in the second."""
    name = name if number == 1 else f"{name}_{number}"
    while name in taken:
        name += "_"
    return name


def _wrong_call(name: str, task: PlannedTask, tools: Tools, task_ids: Mapping[str, None]) -> list[str]:
    if task.tool == LLM:
        return [] if task.description else [f"Task {name!r}: it has no description."]
    if task.tool not in tools.names:
        there = ", ".join([LLM, *tools.names])
        return [
            f"Task {name!r}: there is no tool {task.tool!r}.{did_you_mean(task.tool, tools.names)} "
            f"Tools: {there}."
        ]
    waits = bool(references(task.arguments, task_ids)[0])
    problem = tools.problems(task.tool, task.arguments, complete=not waits)
    return [f"Task {name!r}: {problem}"] if problem else []


def _in_order(needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Each after those it needs; where that leaves a choice, as the plan has them."""
    places = {name: place for place, name in enumerate(needs)}
    names = list(needs)
    open_needs = {name: len(set(needed)) for name, needed in needs.items()}
    ready = [places[name] for name, count in open_needs.items() if count == 0]
    ordered = []
    while ready:
        name = names[heapq.heappop(ready)]
        ordered.append(name)
        for other, needed in needs.items():
            if name in needed:
                open_needs[other] -= 1
                if open_needs[other] == 0:
                    heapq.heappush(ready, places[other])
    return ordered


_BRACES = re.compile(r"\{\{(?P<double>.*?)\}\}|\$\{(?P<dollar>[^{}]*)\}", re.DOTALL)
_REFERENCE = re.compile(r"\s*(?P<id>[\w-]+)(?P<path>(?:\.[\w-]+|\[\s*(?:\d+|'[^']*'|\"[^\"]*\")\s*\])*)\s*")
_PART = re.compile(r"\.([\w-]+)|\[\s*(?:(\d+)|'([^']*)'|\"([^\"]*)\")\s*\]")
_WHOLE = ("result", "output")
"""What models like to write after an id for the whole result."""


def task_id(text: str) -> str:
    """An id as an identifier: what a model calls ``1`` or ``step-1`` is ``t1`` or ``step_1``."""
    name = re.sub(r"\W", "_", text.strip())
    return f"t{name}" if name[:1].isdigit() else name


def _read(braces: re.Match[str], task_ids: Collection[str]) -> tuple[str, tuple[str, ...]] | str | None:
    """The id and the path in braces; a problem as text; ``None`` for text that is no reference."""
    inside = braces["double"] if braces["double"] is not None else braces["dollar"]
    match = _REFERENCE.fullmatch(inside)
    if match is not None and task_id(match["id"]) in task_ids:
        parts = ("".join(filter(None, part)) for part in _PART.findall(match["path"]))
        return task_id(match["id"]), tuple(parts)
    start = _REFERENCE.match(inside)
    begins = start is not None and task_id(start["id"]) in task_ids
    if match is not None and braces["double"] is not None:
        hint = did_you_mean(match["id"], task_ids)
        return f"{braces[0]} names no task.{hint} Tasks: {', '.join(task_ids) or 'none'}."
    if match is None and begins:
        return f"{braces[0]} cannot be read. Write {{{{ id }}}} or {{{{ id.field }}}}."
    # Braces are ordinary text too, such as those of a script that a tool is to run.
    return None


def references(value: Any, task_ids: Collection[str]) -> tuple[list[str], list[str]]:
    """The ids that texts inside ``value`` refer to, each once, and what is wrong with others, in words."""
    ids: dict[str, None] = {}
    wrong: dict[str, None] = {}
    for text in _texts(value):
        for match in _BRACES.finditer(text):
            read = _read(match, task_ids)
            if isinstance(read, tuple):
                ids[read[0]] = None
            elif read is not None:
                wrong[read] = None
    return list(ids), list(wrong)


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """``value`` with the ids in its references changed, all of them in the form ``{{ id.path }}``."""

    def rename(match: re.Match[str]) -> str:
        read = _read(match, names)
        if not isinstance(read, tuple):
            return match[0]
        path = "".join(f".{part}" if re.fullmatch(r"[\w-]+", part) else f"[{part!r}]" for part in read[1])
        return f"{{{{ {names[read[0]]}{path} }}}}"

    return _mapped(value, lambda text: _BRACES.sub(rename, text))


def filled_in(value: Any, results: Mapping[str, Any], show: Callable[[Any], str]) -> Any:
    """``value`` with results in place of references.

    A text that is one reference becomes the result itself, whatever it is; inside a longer text the
    result stands as ``show`` writes it.

    Raises:
        TemplateError: A result does not have the part that a reference names.
    """

    def fill(text: str) -> Any:
        whole = _BRACES.fullmatch(text.strip())
        read = _read(whole, results) if whole is not None else None
        return _part(results, *read) if isinstance(read, tuple) else shown_in(text, results, show)

    return _mapped(value, fill)


def shown_in(text: str, results: Mapping[str, Any], show: Callable[[Any], str]) -> str:
    """``text`` with results in place of references, each as ``show`` writes it.

    Raises:
        TemplateError: As :func:`filled_in`.
    """

    def put(match: re.Match[str]) -> str:
        read = _read(match, results)
        return show(_part(results, *read)) if isinstance(read, tuple) else match[0]

    return _BRACES.sub(put, text)


def _part(results: Mapping[str, Any], name: str, path: tuple[str, ...]) -> Any:
    try:
        return lookup(results[name], path, name=name)
    except TemplateError:
        if path and path[0] in _WHOLE:
            return lookup(results[name], path[1:], name=name)
        raise


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


def _mapped(value: Any, change: Callable[[str], Any]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(part, change) for key, part in value.items()}
    return [_mapped(part, change) for part in value] if isinstance(value, list) else value
