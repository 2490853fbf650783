"""Plans: read leniently, checked strictly, put in the order of their references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from tagent_nb.pipeline import Task, TaskStatus
from tagent_nb.runners.planner.plan import MAX_TASKS, PlanError, Proposal, proposal_of, tasks_of


class Tools:
    """Two tools; ``add`` wants a and b."""

    names: Sequence[str] = ("search", "add")

    def problems(self, tool: str, arguments: Mapping[str, Any], *, complete: bool) -> str:
        if tool == "add" and set(arguments) != {"a", "b"}:
            return "wrong arguments for 'add'."
        if (
            tool == "add"
            and complete
            and not all(isinstance(argument, int) for argument in arguments.values())
        ):
            return "wrong values for 'add'."
        return ""


def plan(*tasks: Any) -> Proposal:
    return Proposal.model_validate({"tasks": list(tasks)})


def made(*tasks: Any, earlier: Sequence[Task] = (), number: int = 1) -> list[Task]:
    return tasks_of(plan(*tasks), Tools(), earlier, number)


def wrong(*tasks: Any) -> str:
    with pytest.raises(PlanError) as caught:
        made(*tasks)
    return str(caught.value)


def done(name: str) -> Task:
    return Task("before", id=name, status=TaskStatus.COMPLETED, plan=1)


# -- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        {"tasks": [{"id": "t1", "description": "go", "tool": "llm", "arguments": {}}]},
        {"tasks": [{"id": "t1", "description": "go"}]},
        {"tasks": [{"id": "t1", "description": "go", "tool": None, "arguments": None}]},
        {"tasks": [{"id": "t1", "description": "go", "tool": " LLM ", "args": {}}]},
        {"plan": [{"id": "t1", "description": "go", "tool": "none", "parameters": "{}"}]},
        {"steps": [{"id": "t1", "description": "go", "tool": "", "arguments": ""}]},
        [{"id": "t1", "description": "go"}],
    ],
)
def test_plans_are_read_leniently(data: Any) -> None:
    (task,) = Proposal.model_validate(data).tasks
    assert (task.id, task.description, task.tool, task.arguments) == ("t1", "go", "llm", {})


def test_a_task_may_be_a_text_and_an_id_a_number() -> None:
    assert Proposal.model_validate(["go"]).tasks[0].description == "go"
    assert Proposal.model_validate([{"id": 1, "description": None}]).tasks[0].id == "1"


def test_arguments_may_be_json_in_a_text() -> None:
    read = Proposal.model_validate([{"id": "a", "tool": "add", "input": '{"a": 1}'}])
    assert read.tasks[0].arguments == {"a": 1}


@pytest.mark.parametrize(
    "data",
    [
        {"tasks": []},
        {"tasks": ["go"] * (MAX_TASKS + 1)},
        {"tasks": [3]},
        {"tasks": [{"id": "a", "arguments": "not json"}]},
        {"tasks": [{"id": ["a"]}]},
        "go",
        None,
    ],
)
def test_what_is_no_plan_is_refused(data: Any) -> None:
    with pytest.raises(ValidationError):
        Proposal.model_validate(data)


def test_the_form_of_a_plan_names_the_tools_and_asks_for_every_field() -> None:
    schema = proposal_of(["search"]).model_json_schema()
    task = schema["$defs"]["Task"]
    assert task["properties"]["tool"]["enum"] == ["llm", "search"]
    assert task["required"] == ["id", "description", "tool", "arguments"]
    assert schema["title"] == "Plan"
    assert schema["properties"]["tasks"]["maxItems"] == MAX_TASKS
    with pytest.raises(ValidationError, match="Input should be 'llm' or 'search'"):
        proposal_of(["search"]).model_validate([{"id": "a", "tool": "serch"}])


def test_without_tools_a_plan_has_no_field_for_them() -> None:
    task = proposal_of([]).model_json_schema()["$defs"]["Task"]
    assert list(task["properties"]) == task["required"] == ["id", "description"]


# -- checking and ordering --------------------------------------------------------------------


def test_tasks_come_in_the_order_of_their_references() -> None:
    tasks = made(
        {"id": "report", "description": "Report {{ sum }}"},
        {"id": "sum", "tool": "add", "arguments": {"a": "{{ one.n }}", "b": "${two}"}},
        {"id": "two", "description": "Think"},
        {"id": "one", "tool": "search", "arguments": {"q": "x"}},
        {"id": "alone", "description": "Alone"},
    )
    assert [task.id for task in tasks] == ["two", "one", "sum", "report", "alone"]
    assert tasks[1].description == "Call search"
    assert tasks[2].arguments == {"a": "{{ one.n }}", "b": "{{ two }}"}


def test_tasks_without_an_id_get_one() -> None:
    assert [task.id for task in made("one", {"id": "x", "description": "two"}, "three")] == ["t1", "x", "t3"]


def test_a_later_plan_has_ids_of_its_own_and_may_use_earlier_results() -> None:
    failed = Task("before", id="t2", status=TaskStatus.FAILED, plan=1)
    tasks = made(
        {"id": "t2", "description": "From {{ t1 }}"},
        {"id": "t3", "description": "From {{ t2 }}"},
        earlier=[done("t1"), failed, done("t3_2")],
        number=2,
    )
    assert [(task.id, task.description) for task in tasks] == [
        ("t2_2", "From {{ t1 }}"),
        ("t3_2_", "From {{ t2_2 }}"),
    ]


def test_a_task_that_failed_before_has_no_result_to_refer_to() -> None:
    failed = Task("before", id="t1", status=TaskStatus.FAILED, plan=1)
    with pytest.raises(PlanError, match="{{ t1 }} names no task"):
        made({"id": "a", "description": "{{ t1 }}"}, earlier=[failed], number=2)


def test_everything_that_is_wrong_is_reported_at_once() -> None:
    message = wrong(
        {"id": "a", "description": "x {{ nowhere }}"},
        {"id": "a", "description": "y"},
        {"id": "b", "tool": "serch"},
        {"id": "c", "tool": "add", "arguments": {"a": 1}},
        {"id": "d", "tool": "add", "arguments": {"a": 1, "b": "x"}},
        {"id": "e", "tool": "add", "arguments": {"a": 1, "b": "{{ a }}"}},
        {"id": "f"},
    )
    assert message == (
        "Two tasks have the id 'a'. Task 'a': {{ nowhere }} names no task. Tasks: a, b, c, d, e, f. "
        "Task 'b': there is no tool 'serch'. Did you mean 'search'? Tools: llm, search, add. "
        "Task 'c': wrong arguments for 'add'. Task 'd': wrong values for 'add'. "
        "Task 'f': it has no description."
    )


def test_tasks_that_wait_for_each_other_are_reported() -> None:
    message = wrong({"id": "a", "description": "{{ b }}"}, {"id": "b", "description": "{{ a }}"})
    assert message in (
        "These tasks wait for each other: a -> b -> a.",
        "These tasks wait for each other: b -> a -> b.",
    )
    assert "a -> a" in wrong({"id": "a", "description": "{{ a }}"})
