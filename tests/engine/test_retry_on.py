"""Which errors are tried again: what may pass and what a step says, not those of its data or its code."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from tagent_nb import (
    DefinitionError,
    OutputValidationError,
    Pipeline,
    PipelineExecutor,
    PipelineStep,
    PipelineValidationError,
    RetryableError,
)
from tagent_nb.errors import EncodeError
from tagent_nb.events import StepRetried
from tagent_nb.results import PipelineResult


class NoJSONError(OSError, json.JSONDecodeError):
    """As the one of requests: what a server answered cannot be read."""

    def __init__(self) -> None:
        json.JSONDecodeError.__init__(self, "no JSON", "<html>", 0)


class RefusedError(Exception):
    """An error of a library of the user's."""


class BusyError(RetryableError, ValueError):
    """A data error that says itself that it may pass."""


def attempts(*errors: BaseException | type[BaseException], **options: Any) -> int:
    """How many attempts a step takes that raises these one after the other, and then has a value."""
    return run(*errors, **options).steps["only"].attempts


def run(
    *errors: BaseException | type[BaseException], namespace: Any = None, **options: Any
) -> PipelineResult:
    raised = iter(errors)
    pipeline = Pipeline("one")

    @pipeline.task(**options)
    def only() -> int:
        for error in raised:
            raise error
        return 1

    return PipelineExecutor(pipeline, retry_delay=0.0, namespace=namespace).run()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad row"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad byte"),
        json.JSONDecodeError("no JSON", "x", 0),
        KeyError("name"),
        IndexError(3),
        ZeroDivisionError(),
        OverflowError(),
        AssertionError(),
        RecursionError(),
        FileNotFoundError("d.csv"),
        FileExistsError("d.csv"),
        PermissionError("d.csv"),
        IsADirectoryError("d"),
        NotADirectoryError("d"),
        io.UnsupportedOperation("not readable"),
        TypeError(),
        ExceptionGroup("two", [ConnectionError(), ValueError()]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_data_files_or_code_is_not_tried_again(error: Exception) -> None:
    result = run(error)
    assert (result.success, result.steps["only"].attempts) == (False, 1)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("reset"),
        TimeoutError(),
        OSError("no route"),
        NoJSONError(),
        RuntimeError("pool is empty"),
        RetryableError("later"),
        BusyError("later"),
        ExceptionGroup("two", [ConnectionError(), ExceptionGroup("inner", [TimeoutError()])]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert attempts(error) == 2


def test_rows_of_an_async_step_are_judged_the_same_way() -> None:
    pipeline = Pipeline("rows")
    seen: list[Any] = []
    pipeline.task(lambda: [ValueError, ConnectionError], name="load")

    @pipeline.task(map_over="load", min_success=0, max_retries=2)
    async def each(item: type[Exception]) -> None:
        raise item("bad")

    result = PipelineExecutor(pipeline, retry_delay=0.0, observers=[seen.append]).run()
    items = result.steps["each"].items or {}
    assert [item.attempts for item in items.values()] == [1, 3]
    assert [event.error_type for event in seen if isinstance(event, StepRetried)] == ["ConnectionError"] * 2


@pytest.mark.parametrize(
    "retry_on",
    [
        ValueError,
        "ValueError",
        [KeyError, ValueError],
        ("LookupError", "ValueError"),
        Exception,
        " ValueError ",
    ],
)
def test_a_step_says_which_errors_are_tried_again(retry_on: Any) -> None:
    assert attempts(ValueError, ConnectionError, retry_on=retry_on) == 3


def test_other_errors_are_not() -> None:
    assert not run(KeyError("name"), retry_on=ValueError).success
    assert attempts(KeyError("name"), retry_on=LookupError) == 2
    assert attempts(TypeError("busy"), retry_on=TypeError) == 2


def test_no_more_often_than_max_retries() -> None:
    assert attempts(*[ValueError] * 9, retry_on=ValueError, max_retries=2) == 3


@pytest.mark.parametrize(("retry_count", "made"), [(0, [1, 2, 3, 4]), (2, [3, 4]), (5, [6])])
def test_attempts_before_the_run_only_count_against_what_is_left(retry_count: int, made: list[int]) -> None:
    failed = run(*[ConnectionError] * 9, retry_count=retry_count)
    assert failed.steps["only"].attempts == len(made)
    assert run(*[ValueError] * 9, retry_count=retry_count).steps["only"].attempts == 1


def test_a_name_is_one_of_the_notebook_before_it_is_one_of_python() -> None:
    names = {"ConnectionError": RefusedError, "lib": sys.modules[__name__]}
    assert attempts(ValueError, namespace={"Error": ValueError}, retry_on="Error") == 2
    assert attempts(RefusedError, namespace=names, retry_on="lib.RefusedError") == 2
    assert not run(LookupError(), namespace={"LookupError": RefusedError}, retry_on="LookupError").success


def test_a_name_with_a_module_is_imported() -> None:
    sys.modules.pop("tomllib", None)
    import tomllib

    assert attempts(tomllib.TOMLDecodeError("bad", "", 0), retry_on="tomllib.TOMLDecodeError") == 2


def test_our_own_errors_have_to_be_named() -> None:
    """A value that a check refuses is a ValueError to those who catch it, but no error of the code."""
    refusals = iter([1, 2])

    def runs(retry_on: Any) -> PipelineResult:
        pipeline = Pipeline("one")
        pipeline.task(lambda: next(refusals), name="only", retry_on=retry_on, checks=[never_odd])
        return PipelineExecutor(pipeline, retry_delay=0.0).run()

    assert not runs(ValueError).success
    refusals = iter([1, 2])
    assert runs(OutputValidationError)["only"] == 2


def never_odd(value: int) -> None:
    if value % 2:
        raise ValueError("it is odd")


def agent(answer: Callable[[int], str], **options: Any) -> int:
    asked = 0

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        nonlocal asked
        asked += 1
        return ModelResponse([TextPart(answer(asked))])

    pipeline = Pipeline("ask", model=FunctionModel(respond)).step("only", "Say it.", **options)
    result = PipelineExecutor(pipeline, retry_delay=0.0).run()
    return result.steps["only"].attempts


def test_an_agent_step_tries_data_errors_again_as_ever_and_others_where_it_says_so() -> None:
    def broken(kind: type[Exception]) -> Callable[[int], str]:
        def answer(asked: int) -> str:
            if asked == 1:
                raise kind("bad")
            return "good"

        return answer

    assert agent(broken(ValueError)) == 2
    assert agent(broken(TypeError)) == 1
    assert agent(broken(TypeError), retry_on=TypeError) == 2


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("ValueEror", "Did you mean 'ValueError'?"),
        ("value", "it is 3"),
        ("int", "it is <class 'int'>"),
        ("KeyboardInterrupt", "it is <class 'KeyboardInterrupt'>"),
        ("json.Error", "AttributeError"),
        ("no_such_module.Error", "No module named 'no_such_module'"),
    ],
)
def test_a_name_that_means_no_error_is_refused_before_anything_runs(name: str, problem: str) -> None:
    with pytest.raises(PipelineValidationError, match=r"'only': retry_on \(--retry-on\) names") as refused:
        run(namespace={"value": 3}, retry_on=[name])
    assert problem in str(refused.value)


def test_an_import_that_ends_the_program_ends_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaves_at_once.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit):
        run(retry_on="leaves_at_once.Error")


@pytest.mark.parametrize("value", [3, [int], "no name", [KeyboardInterrupt], None])
def test_what_names_no_errors_is_refused(value: Any) -> None:
    with pytest.raises(DefinitionError, match="'only': retry_on must name classes of errors"):
        PipelineStep("only", "go", retry_on=value)


def test_no_retry_and_errors_to_retry_exclude_each_other() -> None:
    with pytest.raises(DefinitionError, match="retry_on says what is tried again, and max_retries is 0"):
        PipelineStep("only", "go", retry_on=ValueError, max_retries=0)
    assert PipelineStep("only", "go", retry_on=[], max_retries=0).retry_on == []


def test_json_has_the_names() -> None:
    step = PipelineStep("only", "go", retry_on=[ValueError, RefusedError, "lib.Error"])
    data = step.to_dict()
    assert data["retry_on"] == ["ValueError", f"{__name__}.RefusedError", "lib.Error"]
    assert PipelineStep.from_dict(data).to_dict() == data
    of_the_notebook = type("Error", (Exception,), {"__module__": "__main__", "__qualname__": "Error"})
    assert PipelineStep("only", "go", retry_on=of_the_notebook).to_dict()["retry_on"] == ["Error"]

    class InnerError(Exception): ...

    with pytest.raises(EncodeError, match=r"retry_on: InnerError is defined inside of a function"):
        PipelineStep("only", "go", retry_on=InnerError).to_dict()
