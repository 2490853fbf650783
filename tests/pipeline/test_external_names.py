"""What the Python of a pipeline takes from around it, and what of that is missing."""

from __future__ import annotations

from typing import Any

import pytest

from tagent_nb import Pipeline, PipelineExecutor, PipelineStep
from tagent_nb.pipeline import listed, missing_names, outside_names


def helper(rows: list[int]) -> int:
    return len(rows)


def count(load: list[int]) -> int:
    return helper(load) if load else count([0])


def cells(**codes: str) -> Pipeline:
    pipeline = Pipeline("p")
    for name, code in codes.items():
        pipeline.put(PipelineStep.from_cell(name, code, python=True, max_retries=0))
    return pipeline


def test_names_of_steps_of_python_and_of_the_step_itself_are_not_from_outside() -> None:
    pipeline = cells(
        load="import json\nrows = [json.loads(one) for one in sorted(texts)]\nrows",
        count="len(load) + shared['n'] + tidy(load)",
    )
    pipeline.put(PipelineStep.from_cell("each", "item + load[0]", python=True, map_over="load"))
    pipeline.step("say", "Say {{ count }}.")
    assert outside_names(pipeline) == {"load": ["texts"], "count": ["tidy"]}


def test_a_cell_that_is_not_mapped_has_no_item() -> None:
    assert outside_names(cells(one="item")) == {"one": ["item"]}


def test_what_a_function_reads_besides_its_parameters_is_from_outside() -> None:
    """A function gets a step by a parameter; its globals are those of its module."""
    pipeline = cells(load="[1]")
    pipeline.task(count)
    assert outside_names(pipeline) == {"count": ["helper"]}
    assert missing_names(pipeline, {}) == {}
    again = Pipeline.from_json(pipeline.to_json())
    assert missing_names(again, {}) == {"count": ["helper"]}
    assert missing_names(again, {"helper": helper}) == {}


@pytest.mark.parametrize("handler", ["except NameError:", "except (KeyError, Exception):", "except:"])
def test_code_that_catches_the_error_knows_what_it_does(handler: str) -> None:
    assert missing_names(cells(one=f"try:\n    x = setting\n{handler}\n    x = 1\nx"), {}) == {}
    other = cells(one="try:\n    x = setting\nexcept KeyError:\n    x = 1\nx")
    assert missing_names(other, {}) == {"one": ["setting"]}


def test_names_are_listed_as_people_do() -> None:
    assert listed(["a"]) == "'a'"
    assert listed(["a", "b", "c"]) == "'a', 'b' and 'c'"


async def test_a_run_warns_of_names_that_nothing_defines_before_it_comes_to_them() -> None:
    pipeline = cells(load="1", clean="tidy(load) + offset")
    seen: list[Any] = []
    result = await PipelineExecutor(pipeline, observers=[seen.append]).execute()
    (warning,) = result.warnings
    assert warning.startswith("Step 'clean' uses 'offset' and 'tidy', which nothing defines: ")
    names = [type(event).__name__ for event in seen]
    assert names.index("Warned") < names.index("StepStarted")
    assert result.error_details["clean"].startswith("NameError: name 'tidy' is not defined")
    namespace = {"tidy": abs, "offset": 1}
    assert (await PipelineExecutor(pipeline, namespace=namespace).execute()).warnings == []
