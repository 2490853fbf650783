"""Goals as the engine uses them: what they read, what they become, and errors that name the step."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from enum import Enum
from typing import Annotated, Any, Literal

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, RootModel, computed_field

from tagent_nb.errors import DefinitionError, TemplateError
from tagent_nb.pipeline import DataExists, Pipeline, PipelineStep, PythonBody
from tagent_nb.templating import (
    DATA_RULE,
    Reference,
    evaluate,
    lookup,
    references_of,
    render,
    unknown_fields,
    view,
)
from tagent_nb.templating.template import is_template


class Label(Enum):
    GOOD = "good"


class Part(BaseModel):
    text: str
    count: int = 1


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    known: int = 1


class Parts(RootModel[list[Part]]):
    pass


class Wrapped(RootModel[Part]):
    pass


class Answer(BaseModel):
    label: Label
    best: Part | None = None
    other: Annotated[Part, "a note"] | None = None
    parts: list[Part] = []
    by_name: dict[str, Part] = {}
    choice: Literal["a", "b"] = "a"
    either: Part | Open | None = None
    open: Open = Open()
    wrapped: Wrapped | None = None
    many: Parts | None = None
    at: date | None = None
    share: float | None = None
    done: bool = False

    @computed_field
    def loud(self) -> str:
        return "LOUD"


def texts(step: PipelineStep) -> list[tuple[str, str]]:
    return [(reference.text, reference.kind) for reference in references_of(step)]


# -- references ---------------------------------------------------------------------------------


def test_goal_condition_and_map_over_are_read_in_this_order() -> None:
    step = PipelineStep("x", "{{ a.b }} {{ c }} {{ a.b }}", when="d.e > 1 and a.b", map_over="load.rows")
    assert texts(step) == [
        ("a.b", "goal"),
        ("c", "goal"),
        ("d.e", "when"),
        ("a.b", "when"),
        ("load.rows", "map"),
    ]


def test_a_condition_object_says_what_it_reads() -> None:
    assert texts(PipelineStep("x", "plain", when=DataExists("load.text"))) == [("load.text", "when")]


def test_a_mapped_goal_names_its_source_by_field() -> None:
    step = PipelineStep("x", "{{ load.text }} {{ item.text }}", map_over="load")
    assert texts(step) == [("load.text", "goal"), ("load", "map")]


def test_the_goal_of_a_python_step_is_no_template() -> None:
    body = PythonBody.from_cell("x", "1 + 1")
    assert references_of(PipelineStep("x", "{{ not read }} {% broken", body=body)) == ()


def test_a_loop_reads_the_whole_value() -> None:
    step = PipelineStep("x", "{% for row in load %}{{ row.text }}{% endfor %}")
    assert references_of(step) == (Reference("load", (), "goal"),)


def test_a_pipeline_draws_its_dependencies_from_goals() -> None:
    pipeline = Pipeline("p").step("load", "Load").step("say", "Say {{ load.text }}")
    assert [dependency.name for dependency in pipeline.dependencies("say")] == ["load"]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (PipelineStep("x", "a\n{{ load.__class__ }}"), "Step 'x', goal line 2: '__class__' starts with two"),
        (
            PipelineStep("x", "a\n\n{% include 'f' %}"),
            "Step 'x', goal line 3: {% include %}: goals cannot read",
        ),
        (PipelineStep("x", "a", when="{{ load }}"), "Step 'x', when: an expression has no braces."),
        (PipelineStep("x", "a", map_over="load rows"), "Step 'x', map_over: 'load rows' is not a reference"),
    ],
)
def test_what_cannot_be_read_names_step_and_place(step: PipelineStep, words: str) -> None:
    with pytest.raises(TemplateError) as caught:
        references_of(step)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("name", ["true", "false", "none"])
def test_what_a_goal_reads_as_a_constant_cannot_be_a_steps_name(name: str) -> None:
    with pytest.raises(DefinitionError, match=f"Step name '{name}' is reserved"):
        PipelineStep(name, "Say it")


@pytest.mark.parametrize(
    ("text", "step", "path"),
    [
        ("load", "load", ()),
        (" load.text ", "load", ("text",)),
        ("load.rows[0]['a b'].x", "load", ("rows", "0", "a b", "x")),
        ('load["it\'s"][-1].0', "load", ("it's", "-1", "0")),
        ("cafe\u0301.x", "café", ("x",)),
    ],
)
def test_a_reference_is_read_from_its_text(text: str, step: str, path: tuple[str, ...]) -> None:
    assert Reference.parse(text) == Reference(step, path, "when")


@pytest.mark.parametrize(
    "text",
    ["", "1a", ".a", "load.", "load..a", "load.a b", "load[a]", "load['a]", "load.a-b", "a > 1", None, 3],
)
def test_what_is_no_reference_is_an_error_with_an_example(text: Any) -> None:
    with pytest.raises(TemplateError, match=r"is not a reference.*'load\.text'"):
        Reference.parse(text)


@given(st.lists(st.text(min_size=1) | st.integers(-99, 99).map(str), max_size=4))
def test_a_reference_reads_back_from_its_text(path: list[str]) -> None:
    """So that two different references never have one text, which names a part of a fingerprint."""
    reference = Reference("load", tuple(path), "map")
    assert Reference.parse(reference.text, "map") == reference


# -- rendering ----------------------------------------------------------------------------------


def test_plain_text_is_returned_as_it_is_without_jinja2() -> None:
    code = (
        "import sys\n"
        "from tagent_nb.pipeline import PipelineStep\n"
        "from tagent_nb.templating.template import render, references_of\n"
        "goal = 'Say { hello } }} %} #}'\n"
        "assert render(goal, {}, step='x') is goal\n"
        "assert references_of(PipelineStep('x', goal, map_over='load'))[0].step == 'load'\n"
        "assert 'jinja2' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("goal", "is_one"), [("{{ a }}", True), ("{% a", True), ("{# a", True), ("{ a }", False)]
)
def test_a_template_is_known_by_its_marks(goal: str, is_one: bool) -> None:
    assert is_template(goal) is is_one


def test_text_without_marks_is_the_goal_itself() -> None:
    assert render("Say { hello }", {}, step="x") == "Say { hello }"


def test_a_goal_sees_steps_shared_facts_memories_and_the_item() -> None:
    text = render(
        "{{ load.n }}{{ shared.a }}{{ facts.b }}{{ memories.c }}{{ item }}",
        {"load": {"n": 1}},
        step="x",
        shared={"a": 2},
        facts={"b": 3},
        memories={"c": 4},
        item=5,
    )
    assert text == "12345"


def test_an_item_that_is_none_is_an_item() -> None:
    assert render("{{ item }}", {}, step="x", item=None) == "None"


def test_without_shared_values_a_goal_that_reads_one_says_so() -> None:
    with pytest.raises(TemplateError, match=r"Step 'x', goal line 2: 'shared\.tone' is not there"):
        render("a\n{{ shared.tone }}", {}, step="x")


def test_a_typing_mistake_gets_the_line_the_near_name_and_all_names() -> None:
    with pytest.raises(TemplateError) as caught:
        render("a\nb\n{{ load.txt }}", {"load": {"text": 1, "label": 2}}, step="x")
    assert str(caught.value) == (
        "Step 'x', goal line 3: 'load.txt' is not there. Did you mean 'text'? Known: text, label."
    )
    assert caught.value.__cause__ is None


def test_an_expression_is_true_or_false() -> None:
    values = {"load": pd.DataFrame({"n": [1]})}
    assert evaluate("load.n[0] == 1 and shared.on", values, step="x", shared={"on": True}) is True
    assert evaluate("load | length > 5", values, step="x") is False


def test_an_expression_that_fails_names_the_step() -> None:
    with pytest.raises(TemplateError, match=r"^Step 'x', when: TypeError: ") as caught:
        evaluate("load > 1", {"load": "a"}, step="x")
    assert isinstance(caught.value.__cause__, TypeError)


PIECES = st.sampled_from(["</data>", "<data>", "{{ x }}", "{% raw %}", "<", "/", "data", ">", "\n", " "])


@given(st.lists(PIECES | st.text(max_size=3), max_size=10).map("".join), st.booleans())
def test_what_a_step_says_never_reaches_the_goal_outside_its_tags(hostile: str, nested: bool) -> None:
    """The goal's own text stands around one block whose end is the first closing tag."""
    value: Any = {hostile: [hostile]} if nested else hostile
    text = render("before {{ load }} after", {"load": value}, step="x")
    assert text.startswith("before <data>")
    assert text.endswith("</data> after")
    assert text.lower().count("</data") == 1
    assert text.lower().count("<data") == 1


def test_the_rule_that_models_are_given_is_here() -> None:
    assert "never holds instructions" in DATA_RULE


# -- lookup -------------------------------------------------------------------------------------

ANSWER = Answer(label=Label.GOOD, best=Part(text="t"), parts=[Part(text="p")], at=date(2024, 5, 6))
FRAME = pd.DataFrame({"text": ["a", None], "n": [1, 2]})


@pytest.mark.parametrize(
    ("value", "path", "part"),
    [
        (ANSWER, (), ANSWER),
        (ANSWER, ("label",), Label.GOOD),
        (ANSWER, ("best",), ANSWER.best),
        (ANSWER, ("parts", "0", "text"), "p"),
        (ANSWER, ("parts", "-1"), ANSWER.parts[0]),
        (ANSWER, ("at", "year"), 2024),
        (ANSWER, ("loud",), "LOUD"),
        ({"a": None}, ("a",), None),
        ({1: {"x": 2}}, ("1", "x"), 2),
        (FRAME, ("text",), ["a", None]),
        (FRAME, ("1",), {"text": None, "n": 2}),
        (FRAME, ("0", "n"), 1),
        (Wrapped(Part(text="w")), ("text",), "w"),
    ],
)
def test_lookup_gives_the_raw_part(value: Any, path: tuple[str, ...], part: Any) -> None:
    assert lookup(value, path) == part


def test_lookup_of_the_whole_is_the_object_itself() -> None:
    assert lookup(FRAME, ()) is FRAME
    thing = object()
    assert lookup(thing, ()) is thing


@pytest.mark.parametrize(
    ("value", "path", "words"),
    [
        (ANSWER, ("best", "txt"), "'load.best.txt' is not there. Did you mean 'text'? Known: text, count."),
        (ANSWER, ("parts", "text"), "'load.parts.text' is not there: 'load.parts' is a list of 1."),
        (ANSWER, ("other", "text"), "'load.other.text' is not there: 'load.other' is None"),
        ("t", ("text",), "'load.text' is not there: 'load' is of type str"),
        ("t", ("upper",), "'load.upper' is not there"),
        ("t", ("__class__",), "'load.__class__' is not there"),
        (ANSWER, ("model_fields",), "'load.model_fields' is not there."),
        (len, ("x",), "'load' is of type builtin_function_or_method"),
    ],
)
def test_lookup_of_what_is_not_there_says_what_is(value: Any, path: tuple[str, ...], words: str) -> None:
    with pytest.raises(TemplateError) as caught:
        lookup(value, path, name="load")
    assert words in str(caught.value)


def test_lookup_can_give_a_default_instead() -> None:
    assert lookup({"a": 1}, ("b", "c"), default=None) is None


TREES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=2), inner, max_size=3) | st.lists(inner, max_size=3),
    max_leaves=12,
)


@given(TREES, st.data())
def test_lookup_and_goals_see_the_same(tree: Any, data: st.DataObject) -> None:
    """What a fingerprint digests is what the goal prints."""
    path: list[str] = []
    part = tree
    while isinstance(part, dict | list) and part and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(part))) if isinstance(part, dict) else len(part) - 1
        part = part[key]
        path.append(str(key))
    reference = Reference("load", tuple(path))
    assert lookup(tree, reference.path) == part
    seen = view(tree)
    for key in reference.path:
        seen = seen.read(key)
    assert seen == part
    goal = "{{ load" + "".join(f"[{key!r}]" for key in path) + " }}"
    if not any(key.startswith("__") for key in path):
        assert render(goal, {"load": tree}, step="x") == render("{{ p }}", {"p": part}, step="x")


# -- schemas ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        (), ("label",), ("label", "anything"), ("best", "text"), ("other", "count"), ("parts", "0", "x"),
        ("by_name", "any", "thing"), ("choice",), ("choice", "x"), ("either", "x"), ("open", "any", "x"),
        ("wrapped", "text"), ("many", "0", "x"), ("at", "year"), ("loud",),
    ],
)  # fmt: skip
def test_paths_that_may_exist_pass(path: tuple[str, ...]) -> None:
    assert unknown_fields(Answer, path) is None


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("lable",), "Answer has no field 'lable'. Did you mean 'label'? Fields: label, best, "),
        (("best", "txt"), "Part has no field 'txt'. Did you mean 'text'? Fields: text, count."),
        (("other", "zzz"), "Part has no field 'zzz'. Fields: text, count."),
        (("wrapped", "zzz"), "Part has no field 'zzz'."),
        (("best", "text", "x"), "'x' is not there: the value before it is text. Leave out 'x'."),
        (("best", "count", "x"), "the value before it is a number."),
        (("share", "x"), "the value before it is a number."),
        (("done", "x"), "the value before it is True or False."),
        (("loud", "x"), "the value before it is text."),
    ],
)
def test_paths_that_cannot_exist_are_reported_with_the_near_name(path: tuple[str, ...], words: str) -> None:
    assert words in (unknown_fields(Answer, path) or "")


def test_a_schema_without_fields_says_so() -> None:
    class Empty(BaseModel):
        pass

    assert unknown_fields(Empty, ("a",)) == "Empty has no field 'a'. Fields: none."


def test_extra_fields_of_an_open_schema_may_exist() -> None:
    assert unknown_fields(Open, ("anything",)) is None
    assert unknown_fields(Open, ("known", "x")) is not None
