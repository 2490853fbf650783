"""Words of other tools: each says what to write here, in Python, in cells and on the command line."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import fields
from typing import Any

import pytest

import tagent_nb
from tagent_nb import DefinitionError, Pipeline, PipelineExecutor, PipelineStep, foreign_words
from tagent_nb.cli import main
from tagent_nb.foreign_words import EXECUTOR, METHODS, NAMES, PIPELINE, STEP, option_advice


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("condition", "Write when=."),
        ("read_data", "in the goal. It becomes a dependency."),
        ("condition_mode", "when= is looked at before the step runs"),
        ("output_format", "Write output_schema=."),
        ("temperature", "Write settings=."),
        ("max_iterations", "or all requests with budget= '20 requests'"),
    ],
)
def test_a_step_names_our_word(word: str, remedy: str) -> None:
    """However the step is made: by a pipeline, by itself, as a task, or from a cell."""
    options: dict[str, Any] = {word: "x"}
    makers = [
        lambda: Pipeline("p").step("a", "Go.", **options),
        lambda: PipelineStep("a", "Go.", **options),
        lambda: PipelineStep.from_cell("a", "Go.", **options),
        lambda: Pipeline("p").task(**options)(_task),
    ]
    for make in makers:
        with pytest.raises(DefinitionError) as caught:
            make()
        assert remedy in str(caught.value)
        assert repr(word) in str(caught.value)


def _task() -> int:
    return 1


def test_templates_in_a_remedy_keep_their_braces() -> None:
    with pytest.raises(DefinitionError, match=r"used: \{\{ step\.field \}\} in the goal"):
        PipelineStep("a", "Go.", read_data=["b.c"])  # type: ignore[call-arg]


def test_a_misspelt_keyword_of_a_class_gets_a_near_one() -> None:
    with pytest.raises(DefinitionError, match="Pipeline: there is no keyword 'descripton'. Did you mean"):
        Pipeline("p", descripton="x")  # type: ignore[call-arg]
    with pytest.raises(DefinitionError, match="PipelineStep: there is no keyword 'xyzzy'. Known: name, "):
        PipelineStep("a", "Go.", xyzzy=1)  # type: ignore[call-arg]


def test_pipelines_and_executors_name_our_words() -> None:
    with pytest.raises(DefinitionError, match=r"pipeline\.step\(name, goal\)"):
        Pipeline("p", steps=[])  # type: ignore[call-arg]
    with pytest.raises(DefinitionError, match="Write max_concurrency="):
        PipelineExecutor(Pipeline("p"), max_concurrent_steps=3)  # type: ignore[call-arg]


def test_a_subclass_with_its_own_keywords_keeps_them() -> None:
    """Only the class whose keywords are known refuses some."""

    class Own(Pipeline):
        def __init__(self, name: str, *, condition: int) -> None:
            super().__init__(name)
            self.condition = condition

    assert Own("p", condition=3).condition == 3


def test_methods_of_other_builders_name_ours() -> None:
    pipeline = Pipeline("p")
    with pytest.raises(AttributeError, match="no attribute 'build'. Leave it out: the pipeline is ready"):
        pipeline.build()  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no attribute 'nothing_known'$"):
        pipeline.nothing_known  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(pipeline, "conditional_step")


def test_pipelines_and_steps_can_still_be_copied_and_pickled() -> None:
    pipeline = Pipeline("p").step("a", "Go.", timeout=5)
    assert copy.deepcopy(pipeline) == pipeline == pickle.loads(pickle.dumps(pipeline))
    assert copy.copy(pipeline.steps[0]) == pipeline.steps[0].with_(timeout=5)


def test_imports_of_other_tools_say_what_is_here() -> None:
    with pytest.raises(ImportError, match="has no 'PipelineBuilder'. What does its work here: Pipeline,"):
        from tagent_nb import PipelineBuilder  # type: ignore[attr-defined]  # noqa: F401


@pytest.mark.parametrize(
    ("option", "options", "remedy"),
    [
        ("--condition", ["--when"], " Write --when."),
        ("--guardrail", ["--check"], " Write --check."),
        ("--temperature", ["--setting"], " It is a setting of the model. Write --setting."),
        ("--condition", ["--model"], " Write when= of the step."),
        ("--max-concurrent-steps", [], " Write max_concurrency=."),
        ("--nonsense", ["--when"], ""),
    ],
)
def test_options_are_named_as_their_place_writes_them(option: str, options: list[str], remedy: str) -> None:
    assert option_advice(option, options) == remedy


def test_the_command_line_names_our_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, as for all that argparse refuses, and one sentence."""
    for words, remedy in [
        (["run", "x.py", "--condition", "a"], "there is no option --condition. Write when= of the step."),
        (["run", "x.py", "--modle=test"], "there is no option --modle. Did you mean '--model'?"),
        (["run", "x.py", "y.py"], "there is nothing to do with 'y.py'"),
        (["model", "status", "--all"], "there is no option --all. Options: -h, --help."),
    ]:
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 2
        assert remedy in capsys.readouterr().err


def test_no_word_of_ours_is_in_the_tables() -> None:
    """A table that lists a word of ours would be shown for what is right."""
    assert STEP.keys().isdisjoint(field.name for field in fields(PipelineStep))
    assert METHODS.keys().isdisjoint(dir(Pipeline("p")))
    assert NAMES.keys().isdisjoint(tagent_nb.__all__)
    for kind, table in ((Pipeline, PIPELINE), (PipelineExecutor, EXECUTOR)):
        assert table.keys().isdisjoint(inspect.signature(kind).parameters)


def test_signatures_still_show_the_keywords() -> None:
    """Tooltips and the documentation read them."""
    assert "default_mode" in inspect.signature(Pipeline).parameters
    assert "max_concurrency" in inspect.signature(PipelineExecutor).parameters
    assert list(inspect.signature(PipelineStep).parameters)[:2] == ["name", "goal"]


def test_every_remedy_names_fields_that_exist() -> None:
    options = {field.name for field in fields(PipelineStep)}
    named: set[str] = set()
    for text in STEP.values():
        foreign_words._filled(text, lambda field: named.add(field) or field)  # type: ignore[func-returns-value]
    assert named <= options
