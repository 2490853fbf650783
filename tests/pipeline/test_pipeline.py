"""Definitions: steps and pipelines as the specification names them."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tagent_nb import (
    DefinitionError,
    Dependency,
    DependencyType,
    EncodeError,
    ExecutionMode,
    OutputValidationError,
    Pipeline,
    PipelineStep,
    StepStatus,
    TemplateError,
    UnknownStepError,
)
from tagent_nb.pipeline import PythonBody


class Sentiment(BaseModel):
    label: str
    score: float = 0.0


class Inner(BaseModel):
    name: str


class Outer(BaseModel):
    inner: Inner


class TestPipelineStep:
    def test_defaults_are_those_of_the_specification(self) -> None:
        step = PipelineStep("load", "Load the rows")
        assert step.constraints == []
        assert step.depends_on == []
        assert step.execution_mode is ExecutionMode.SERIAL
        assert step.timeout is None
        assert step.retry_count == 0
        assert step.max_retries == 3
        assert step.tools_filter is None
        assert step.output_schema is None
        assert not step.is_python

    def test_a_step_does_not_share_lists_with_its_caller(self) -> None:
        constraints = ["short"]
        step = PipelineStep("a", "goal", constraints=constraints)
        constraints.append("long")
        assert step.constraints == ["short"]

    def test_a_step_is_immutable_and_copies_with_changes(self) -> None:
        step = PipelineStep("a", "goal")
        with pytest.raises(AttributeError):
            step.goal = "other"  # type: ignore[misc]
        assert step.with_(goal="other").goal == "other"
        assert step.goal == "goal"

    def test_what_is_not_passed_is_the_steps_own(self) -> None:
        """A default that can be changed is made for each step, and two steps without it are equal."""
        first, second = PipelineStep("a", "goal"), PipelineStep("a", goal="goal")
        assert first == second
        first.tools.append(len)
        first.settings["temperature"] = 0.0
        assert (second.tools, second.settings, first.tools) == ([], {}, [len])
        assert first != second
        assert first.with_(goal="other").tools == [len]
        assert pickle.loads(pickle.dumps(first)) == first
        assert repr(second).startswith("PipelineStep(name='a', goal='goal', constraints=[], depends_on=[]")
        with pytest.raises(AttributeError, match="'PipelineStep' has no attribute 'tools'"):
            PipelineStep.tools  # noqa: B018

    @pytest.mark.parametrize(
        ("values", "named", "message"),
        [
            ((), {"name": "a"}, "missing 1 required positional argument: 'goal'"),
            ((), {"goal": "x"}, "missing 1 required positional argument: 'name'"),
            (("a", "x"), {"goal": "y"}, "multiple values for argument 'goal'"),
            (("a", "x", *[None] * 60), {}, r"takes from 3 to \d\d positional arguments but 63"),
        ],
    )
    def test_arguments_are_those_of_a_function(
        self, values: tuple[Any, ...], named: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(TypeError, match=message):
            PipelineStep(*values, **named)
        assert list(inspect.signature(PipelineStep).parameters) == [
            field.name for field in dataclasses.fields(PipelineStep)
        ]

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"goal": ""}, "goal cannot be empty"),
            ({"goal": "  \n"}, "goal cannot be empty"),
            ({"goal": "x" * 1_000_000}, "1,000,000 characters; at most 262,144"),
            ({"constraints": "short"}, r"constraints must be a list, not str. Write \['short'\]"),
            ({"constraints": [1]}, "constraints must hold text only"),
            ({"depends_on": "load"}, "depends_on must be a list"),
            ({"depends_on": [3]}, "must be a step's name, not int"),
            ({"depends_on": ["load:strnog"]}, "strong, weak or optional"),
            ({"tools_filter": "search"}, "tools_filter must be a list"),
            ({"tools": [3]}, "tools must be functions, not int"),
            ({"execution_mode": "parallel"}, "ExecutionMode.SERIAL or ExecutionMode.CONCURRENT"),
            ({"timeout": -1}, "timeout must be a number of seconds above 0"),
            ({"timeout": 0}, "timeout must be"),
            ({"timeout": float("nan")}, "timeout must be"),
            ({"timeout": float("inf")}, "timeout must be"),
            ({"timeout": True}, "timeout must be"),
            ({"timeout": "5"}, "timeout must be"),
            ({"retry_count": -1}, "retry_count must be a whole number"),
            ({"max_retries": True}, "max_retries must be a whole number"),
            ({"max_retries": 1.5}, "max_retries must be a whole number"),
            ({"output_retries": -2}, "output_retries must be a whole number"),
            ({"min_success": 1.5}, "min_success must be a share"),
            ({"min_success": float("nan")}, "min_success must be a share"),
            ({"output_schema": "Sentiment"}, "output_schema must be a pydantic model class"),
            ({"output_schema": dict}, "output_schema must be a pydantic model class"),
            ({"when": 3}, "when must be an expression"),
            ({"when": " "}, "when must be an expression"),
            ({"map_over": 3}, "map_over must be a step's name"),
            ({"settings": "hot"}, "settings must be a dict"),
        ],
    )
    def test_a_bad_field_gets_one_error_that_names_step_and_field(
        self, fields: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(DefinitionError, match=message):
            PipelineStep(**{"name": "a", "goal": "goal", **fields})

    def test_an_empty_name_is_refused(self) -> None:
        with pytest.raises(ValueError, match="Step name cannot be empty"):
            PipelineStep("", "goal")

    def test_dependency_types_are_read_from_text(self) -> None:
        step = PipelineStep("c", "goal", depends_on=["a", "b:weak", Dependency("d", DependencyType.OPTIONAL)])
        assert [str(dependency) for dependency in step.dependencies] == ["a", "b:weak", "d:optional"]
        assert step.depends_on[0] == "a"

    def test_validate_output_follows_the_schema(self) -> None:
        step = PipelineStep("a", "goal", output_schema=Sentiment)
        assert step.validate_output({"label": "good"}) == Sentiment(label="good")
        answer = Sentiment(label="bad")
        assert step.validate_output(answer) is answer
        with pytest.raises(
            OutputValidationError, match="Step 'a' output does not match schema Sentiment: label"
        ):
            step.validate_output({"score": 1})
        with pytest.raises(ValueError, match="a value of type list"):
            step.validate_output(["good"])
        assert PipelineStep("b", "goal").validate_output(["anything"]) == ["anything"]

    def test_from_cell_makes_goals_and_bodies(self) -> None:
        step = PipelineStep.from_cell("ask", "\n  Say hello.\n", output_schema=Sentiment)
        assert (step.goal, step.output_schema) == ("Say hello.", Sentiment)
        python = PipelineStep.from_cell("load", "[1, 2]", python=True, timeout=5)
        assert python.is_python
        assert python.timeout == 5

    def test_from_cell_refuses_blank_cells_and_unknown_options(self) -> None:
        with pytest.raises(DefinitionError, match="the cell is empty"):
            PipelineStep.from_cell("a", " \n ")
        with pytest.raises(DefinitionError, match="no option 'timeuot'. Did you mean 'timeout'"):
            PipelineStep.from_cell("a", "goal", timeuot=3)


class TestStatus:
    def test_final_statuses_and_those_with_values(self) -> None:
        final = {status for status in StepStatus if status.is_final}
        assert {status.name for status in final} == {"COMPLETED", "CACHED", "FAILED", "SKIPPED", "CANCELLED"}
        assert {status.name for status in StepStatus if status.has_value} == {"COMPLETED", "CACHED"}


class TestPipeline:
    def test_the_fluent_interface_builds_in_order(self) -> None:
        pipeline = (
            Pipeline("reviews", "What do customers say?")
            .step("load", "Load")
            .step("classify", "Classify {{ load }}", execution_mode=ExecutionMode.CONCURRENT)
            .constraint("be brief", "be kind")
            .share(currency="EUR")
        )
        assert [step.name for step in pipeline.steps] == ["load", "classify"]
        assert pipeline.steps[1].execution_mode is ExecutionMode.CONCURRENT
        assert pipeline.global_constraints == ["be brief", "be kind"]
        assert pipeline.shared_context == {"currency": "EUR"}
        assert len(pipeline) == 2
        assert "load" in pipeline
        assert 3 not in pipeline
        assert repr(pipeline) == "<Pipeline 'reviews': 2 steps>"

    def test_default_mode_is_for_steps_that_do_not_say(self) -> None:
        pipeline = Pipeline("p", default_mode=ExecutionMode.CONCURRENT).step("a", "x")
        pipeline.step("b", "x", execution_mode=ExecutionMode.SERIAL)
        assert [step.execution_mode.name for step in pipeline.steps] == ["CONCURRENT", "SERIAL"]

    def test_an_unknown_field_is_refused_with_a_hint(self) -> None:
        with pytest.raises(DefinitionError, match="no option 'max_retry'. Did you mean 'max_retries'"):
            Pipeline("p").step("a", "x", max_retry=3)

    def test_put_replaces_in_place_and_remove_takes_out(self) -> None:
        pipeline = Pipeline("p").step("a", "1").step("b", "2").step("c", "3")
        pipeline.put(PipelineStep("b", "new")).remove("a")
        assert [(step.name, step.goal) for step in pipeline.steps] == [("b", "new"), ("c", "3")]
        assert pipeline.get_step("c").goal == "3"
        with pytest.raises(UnknownStepError, match="no step 'a'"):
            pipeline.remove("a")

    def test_get_step_suggests_a_near_name(self) -> None:
        with pytest.raises(KeyError, match="Did you mean 'classify'"):
            Pipeline("p").step("classify", "x").get_step("clasify")
        with pytest.raises(UnknownStepError, match="Steps: none"):
            Pipeline("p").get_step("a")

    def test_steps_is_a_list_that_others_may_change(self) -> None:
        pipeline = Pipeline("p").step("a", "1").step("b", "2")
        pipeline.steps.reverse()
        assert pipeline.get_step("a").goal == "1"
        del pipeline.steps[1]
        assert "a" not in pipeline
        pipeline.put(PipelineStep("c", "3"))
        pipeline.steps[0] = PipelineStep("d", "4")
        assert pipeline.put(PipelineStep("d", "5")).get_step("d").goal == "5"
        assert "b" not in pipeline
        pipeline.remove("c").put(PipelineStep("c", "6"))
        pipeline.steps.insert(0, PipelineStep("e", "7"))
        pipeline.put(PipelineStep("c", "8")).put(PipelineStep("d", "9")).put(PipelineStep("f", "10"))
        assert [(step.name, step.goal) for step in pipeline.steps] == [
            ("e", "7"), ("d", "9"), ("c", "8"), ("f", "10")
        ]  # fmt: skip

    @given(st.lists(st.tuples(st.sampled_from("prsxil"), st.sampled_from("abc")), max_size=30))
    def test_however_steps_are_changed_a_name_has_one_place(self, changes: list[tuple[str, str]]) -> None:
        """By our methods and in the public list, in any order; against a plain search."""
        pipeline = Pipeline("p")
        for place, (how, name) in enumerate(changes):
            there = [step.name for step in pipeline.steps]
            new = PipelineStep(name, str(place))
            if how == "p":
                pipeline.put(new)
            elif how == "r" and name in there:
                pipeline.remove(name)
            elif how == "s":
                pipeline.steps.reverse()
            elif how == "x" and there and name not in there:
                pipeline.steps[place % len(there)] = new
            elif how == "l":
                pipeline.steps = list(pipeline.steps)
            elif how == "i" and name not in there:
                pipeline.steps.insert(place % (len(there) + 1), new)
            names = [step.name for step in pipeline.steps]
            assert sorted(set(names)) == sorted(names)
            for letter in "abc":
                assert (letter in pipeline) == (letter in names)
                if letter in names:
                    assert pipeline.get_step(letter) is pipeline.steps[names.index(letter)]

    def test_a_change_may_ask_for_steps_while_it_is_made(self) -> None:
        """A generator that leaves out what is there, and a key to sort by that asks for a name."""
        pipeline = Pipeline("p")
        pipeline.step("a", "1")
        pipeline.steps.extend(PipelineStep(name, "g") for name in "abz" if name not in pipeline)
        assert [step.name for step in pipeline.steps] == ["a", "b", "z"]
        assert "z" in pipeline
        pipeline.steps.sort(key=lambda step: (step.name in pipeline, [-ord(step.name)]))
        assert pipeline.get_step("z") is pipeline.steps[0]
        pipeline.put(PipelineStep("b", "other"))
        assert [step.name for step in pipeline.steps] == ["z", "b", "a"]

    def test_a_changed_step_keeps_its_class(self) -> None:
        class Noted(PipelineStep):
            pass

        assert type(Noted("a", "b").with_(goal="c")) is Noted

    def test_every_change_is_reported_until_the_subscription_ends(self) -> None:
        calls: list[int] = []
        pipeline = Pipeline("p")
        end = pipeline.subscribe(lambda: calls.append(len(pipeline)))
        pipeline.step("a", "x").put(PipelineStep("a", "y")).constraint("c").share(k=1).remove("a")
        end()
        pipeline.step("b", "x")
        assert calls == [1, 1, 1, 1, 0]

    def test_task_makes_steps_of_functions(self) -> None:
        pipeline = Pipeline("p")

        @pipeline.task
        def load() -> list[int]:
            """Load some numbers."""
            return [1, 2]

        @pipeline.task(name="summed", timeout=5, goal="Add them")
        def add(load: list[int], scale: int = 1) -> int:
            return sum(load) * scale

        assert load() == [1, 2]
        assert pipeline.get_step("load").goal == "Load some numbers."
        step = pipeline.get_step("summed")
        assert (step.goal, step.timeout) == ("Add them", 5)
        assert [str(dependency) for dependency in pipeline.dependencies("summed")] == ["load"]
        assert add([3], 2) == 6

    def test_ids_are_safe_and_differ_by_the_whole_name(self) -> None:
        first, two = Pipeline("Réviews / 2026").id, Pipeline("Réviews : 2026").id
        assert first != two
        assert first == Pipeline("Réviews / 2026").id
        assert first.replace("-", "").isalnum()

    def test_a_snapshot_does_not_see_later_changes(self) -> None:
        pipeline = Pipeline("p").step("a", "x")
        copy = pipeline.snapshot()
        pipeline.step("b", "x").share(k=1).constraint("c")
        assert [step.name for step in copy.steps] == ["a"]
        assert copy.shared_context == {}
        assert copy.global_constraints == []

    def test_pickling_leaves_subscribers_behind(self) -> None:
        pipeline = Pipeline("p").step("a", "x")
        pipeline.subscribe(lambda: None)
        copy = pickle.loads(pickle.dumps(pipeline))
        assert [step.name for step in copy.steps] == ["a"]
        copy.step("b", "x")


class TestInference:
    def test_references_become_dependencies_beside_explicit_ones(self) -> None:
        pipeline = Pipeline("p").step("load", "x").step("extra", "x").step("first", "x")
        pipeline.step("last", "Use {{ load.text }} and {{ extra }}", depends_on=["first", "extra:weak"])
        assert [str(dependency) for dependency in pipeline.dependencies("last")] == [
            "first",
            "extra:weak",
            "load",
        ]

    def test_conditions_and_maps_are_references_too(self) -> None:
        pipeline = Pipeline("p").step("load", "x").step("flag", "x")
        pipeline.step("each", "{{ load.text }}", map_over="load", when="flag == 1")
        assert {str(dependency) for dependency in pipeline.dependencies("each")} == {"load", "flag"}

    def test_cells_read_only_names_that_are_steps(self) -> None:
        pipeline = Pipeline("p").step("load", "x")
        pipeline.put(PipelineStep.from_cell("count", "len(load) + limit", python=True))
        assert [str(dependency) for dependency in pipeline.dependencies("count")] == ["load"]

    def test_a_parameter_with_a_default_may_be_absent(self) -> None:
        pipeline = Pipeline("p")

        @pipeline.task
        def use(extra: int = 0) -> int:
            return extra

        assert pipeline.dependencies("use") == []
        pipeline.step("extra", "x")
        assert pipeline.dependencies("use") == [Dependency("extra", DependencyType.OPTIONAL)]

    def test_an_explicit_type_wins_over_a_parameter(self) -> None:
        pipeline = Pipeline("p").step("load", "x")

        def use(load: Any, item: Any) -> Any:
            return load

        pipeline.put(
            PipelineStep(
                "use", "u", body=PythonBody.from_function(use), depends_on=["load:weak"], map_over="load"
            )
        )
        assert [str(dependency) for dependency in pipeline.dependencies("use")] == ["load:weak"]

    def test_a_field_that_the_schema_lacks_is_an_error_at_once(self) -> None:
        pipeline = Pipeline("p").step("classify", "x", output_schema=Sentiment)
        with pytest.raises(TemplateError, match="labl.*Did you mean 'label'"):
            pipeline.put(PipelineStep("use", "{{ classify.labl }}"))
        pipeline.put(PipelineStep("use", "{{ classify.label }}"))

    def test_fields_of_a_mapped_source_are_checked_by_item(self) -> None:
        pipeline = Pipeline("p").step("rows", "x").step("each", "x", map_over="rows", output_schema=Sentiment)
        pipeline.put(PipelineStep("use", "{{ each.anything }}"))
        outer = Pipeline("p").step("outer", "x", output_schema=Outer)
        outer.put(PipelineStep("each", "{{ outer.name }}", map_over="outer.inner"))
        with pytest.raises(TemplateError, match="'nam'"):
            outer.put(PipelineStep("use", "{{ outer.inner.nam }}"))


class TestValidate:
    def test_a_good_pipeline_has_no_problems(self) -> None:
        assert Pipeline("p").step("a", "x").step("b", "{{ a }}").validate() == []

    def test_forward_references_are_fine(self) -> None:
        assert Pipeline("p").step("b", "{{ a }}").step("a", "x").validate() == []

    def test_no_steps_is_a_problem(self) -> None:
        assert "has no steps" in Pipeline("p").validate()[0]

    def test_all_problems_come_at_once(self) -> None:
        pipeline = Pipeline("p").step("load", "x").step("load", "y")
        pipeline.step("self_", "x", depends_on=["self_"])
        pipeline.step("lost", "{{ laod }}")
        pipeline.step("wrong", "{{ load.x ")
        pipeline.step("iffy", "x", when="nothing > 1")
        pipeline.step("mapped", "x", map_over="rows")

        @pipeline.task
        def needs(missing: int) -> int:
            return missing

        problems = pipeline.validate()
        assert len(problems) == 7
        assert "2 steps are named 'load'" in problems[0]
        assert "depends on itself" in problems[1]
        assert "own depends_on" in problems[1]
        assert "unknown step 'laod' in its goal. Did you mean 'load'" in problems[2]
        assert "wrong" in problems[3]
        assert "condition (when)" in problems[4]
        assert "map_over" in problems[5]
        assert "'missing' in its parameters" in problems[6]

    def test_a_cycle_is_named_beside_other_problems(self) -> None:
        pipeline = Pipeline("p").step("a", "{{ b }}").step("b", "{{ a }}").step("c", "{{ nowhere }}")
        problems = pipeline.validate()
        assert len(problems) == 2
        assert "'nowhere'" in problems[0]
        assert "a -> b -> a" in problems[1]

    def test_a_cycle_is_named_with_its_path(self) -> None:
        problems = Pipeline("p").step("a", "{{ c }}").step("b", "{{ a }}").step("c", "{{ b }}").validate()
        assert len(problems) == 1
        assert "Circular dependency" in problems[0]
        assert problems[0].count("->") == 3


def test_a_dependency_on_what_is_no_name_is_refused_as_a_name() -> None:
    with pytest.raises(DefinitionError, match="not good"):
        Dependency.parse("not good:weak")


def test_a_problem_names_the_field_that_holds_it_wherever_it_stands_there() -> None:
    pipeline = Pipeline("fields").step("a", "go").step("b", "{{ a }} and {{ missing }}")
    (problem,) = pipeline.validate()
    assert "'missing' in its goal" in problem


class TestContent:
    """Pipelines and steps compare by what they say."""

    @staticmethod
    def full() -> Pipeline:
        pipeline = Pipeline("p", "d", model="test").share(frame=pd.DataFrame({"x": [1, 2]}), rate=2)
        pipeline.constraint("be short").step("a", "g", output_schema=Sentiment, settings={"temperature": 0.0})

        @pipeline.task(timeout=5)
        def total(a: Any) -> Any:
            return a

        return pipeline

    def test_equal_definitions_are_equal(self) -> None:
        assert self.full() == self.full()
        assert self.full() == self.full().snapshot()
        assert self.full().get_step("total") == self.full().get_step("total")

    @pytest.mark.parametrize(
        "change",
        [
            lambda pipeline: setattr(pipeline, "description", "other"),
            lambda pipeline: setattr(pipeline, "model", "local"),
            lambda pipeline: setattr(pipeline, "final", "a"),
            lambda pipeline: pipeline.constraint("more"),
            lambda pipeline: pipeline.share(rate=3),
            lambda pipeline: pipeline.share(frame=pd.DataFrame({"x": [1, 3]})),
            lambda pipeline: pipeline.share(more=1),
            lambda pipeline: pipeline.step("b", "g"),
            lambda pipeline: pipeline.put(pipeline.get_step("a").with_(goal="other")),
        ],
    )
    def test_a_difference_makes_them_different(self, change: Any) -> None:
        changed = self.full()
        change(changed)
        assert changed != self.full()

    def test_a_pipeline_is_no_other_thing_and_no_key(self) -> None:
        assert self.full() != "p"
        with pytest.raises(TypeError, match="unhashable"):
            hash(self.full())


class TestStepsAsData:
    """A step has the whole set of JSON methods, as a pipeline has."""

    @pytest.mark.parametrize(
        "step",
        [
            PipelineStep("a", "g"),
            PipelineStep("a", "{{ b }}", output_schema=Sentiment, depends_on=["c:weak"], budget="5 tokens"),
            PipelineStep.from_cell("a", "b + 1", python=True, timeout=3.0),
            PipelineStep("a", "g", when="b.x > 3", map_over="b", final=True),
        ],
    )
    def test_a_step_comes_back_as_it_was(self, step: PipelineStep) -> None:
        assert PipelineStep.from_dict(step.to_dict(), schemas=[Sentiment]) == step
        assert PipelineStep.from_json(step.to_json(), schemas=[Sentiment]) == step

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({"kind": "pipeline", "format": 1}, "not a stored step"),
            ([], "must be an object"),
            ({"kind": "step", "format": 1, "name": "a"}, "goal is missing"),
            ({"kind": "step", "format": 1, "name": "a", "goal": "g", "tmeout": 1}, "Did you mean 'timeout'"),
        ],
    )
    def test_what_is_no_step_is_refused(self, data: Any, message: str) -> None:
        with pytest.raises(DefinitionError, match=message):
            PipelineStep.from_dict(data)

    def test_bad_json_and_what_cannot_be_written_are_refused(self) -> None:
        with pytest.raises(DefinitionError, match="not the JSON of a step"):
            PipelineStep.from_json("{")
        with pytest.raises(EncodeError, match="steps.a.settings"):
            PipelineStep("a", "g", settings={"x": len}).to_dict()
