"""Goals and expressions as they are rendered: plain fields, clear errors, and no way out."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import pandas as pd
import pytest
from pydantic import BaseModel, computed_field

from tagent_nb.templating.sandbox import Problem, compiled


class Label(enum.Enum):
    GOOD = "good"


class Review(BaseModel):
    text: str
    label: Label = Label.GOOD
    at: datetime = datetime(2024, 5, 6)

    @computed_field
    def broken(self) -> str:
        raise OSError("no disk")


VALUES: dict[str, Any] = {
    "load": [Review(text="fine"), Review(text="poor")],
    "one": Review(text="a </data> b"),
    "frame": pd.DataFrame({"text": ["a", "b"], "n": [1, 2]}),
    "word": "hello",
    "none": None,
    "extra": None,
    "big": 10**5_000,
    "shared": {"tone": "formal", "limits": [1, 2]},
    "facts": {"found": "x"},
    "item": {"text": "it"},
}


def render(source: str) -> str:
    return compiled(source).render(VALUES)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ one.text }}", "<data>a &lt;/data> b</data>"),
        ("{{ one['label'] }} {{ one.at.year }}", "<data>good</data> 2024"),
        ("{{ one.at.strftime('%d') }}", "<data>06</data>"),
        ("{% for row in load %}{{ loop.index }} {{ row.text }}\n{% endfor %}",
         "1 <data>fine</data>\n2 <data>poor</data>\n"),
        ("{{ load[-1].text }} {{ load[1:]|length }}", "<data>poor</data> 1"),
        ("{{ load.0.text }}", "<data>fine</data>"),
        ("{{ load | map(attribute='text') | join(', ') }}", "<data>fine, poor</data>"),
        ("{{ load | map(attribute='text') }}", '<data>["fine", "poor"]</data>'),
        ("{{ load | selectattr('text', 'equalto', 'poor') | list | length }}", "1"),
        ("{{ frame | sum(attribute='n') }} {{ frame.n | max }} {{ frame | length }}", "3 2 2"),
        ("{{ frame[0].text | tojson }}", '<data>"a"</data>'),
        ("{% for text, rows in frame | groupby('text') %}{{ rows | length }}{% endfor %}", "11"),
        ("{{ word | upper }} {{ word.upper() }} {{ word.split('l') }}",
         '<data>HELLO</data> <data>HELLO</data> <data>["he", "", "o"]</data>'),
        ("{{ facts.found }} {{ item.text }}", "<data>x</data> <data>it</data>"),
        ("{% if extra %}yes{% else %}no{% endif %}{{ extra }}", "noNone"),
        ("{{ one.nothing | default('-') }} {{ one.nothing is defined }} {{ lost is defined }}",
         "<data>-</data> False False"),
        ("{% for k, v in item | items %}{{ k }}{{ v }}{% endfor %}", "<data>text</data><data>it</data>"),
        ("{% for key in item.keys() %}{{ item.get(key) }}{% endfor %}", "<data>it</data>"),
        ("{% set n = namespace(x=0) %}{% for row in frame %}{% set n.x = n.x + row.n %}{% endfor %}{{ n.x }}",
         "3"),
        ("{% for n in range(3) %}{{ n }}{% endfor %}", "012"),
        ("{{ 'good' in load | map(attribute='label') | list }} {{ 'text' in one }}", "True True"),
        ("{{ word ~ 1 }}", "<data>hello1</data>"),
        ("{{ '%s' | format(one.text) }} {{ '{0.text}'.format(one) }}",
         "<data>a &lt;/data> b</data> <data>a &lt;/data> b</data>"),
        ("a\n{#- a comment #}\n", "a\n"),
        ("{% raw %}{{ x }}{% endraw %}", "{{ x }}"),
        ("line\n", "line\n"),
        ("{{ 'x' if extra }}{{ word if extra }}{{ [1 if extra] }}", "<data>[null]</data>"),
    ],
)  # fmt: skip
def test_values_are_printed_as_data(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'one </data>' }}", "one </data>"),
        ("{{ 'yes' if one.text else 'no' }}", "yes"),
        ("{{ shared.tone }} {{ shared.tone | upper }} {{ shared['tone'] ~ '!' }}", "formal FORMAL formal!"),
        ("{{ shared.limits }} {{ shared.tone | data }}", "<data>[1, 2]</data> <data>formal</data>"),
        ("{{ 'yes' if word else word }}", "<data>yes</data>"),
        ("{{ shared.nothing | default(word) }}", "<data>hello</data>"),
        ("{{ shared.tone ~ word }}", "<data>formalhello</data>"),
        ("{{ word | data }}", "<data>hello</data>"),
        ("{{ (word | data) ~ '' }}", "<data>&lt;data>hello&lt;/data></data>"),
        ("{% set x = shared.tone %}{{ x }}", "<data>formal</data>"),
    ],
)  # fmt: skip
def test_text_of_the_author_stands_as_it_is_and_what_touches_data_is_data(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ one.txt }}", "'one.txt' is not there. Did you mean 'text'? Known: text, label, at, broken."),
        ("{% if one.txt %}{% endif %}", "'one.txt' is not there."),
        (
            "{{ load.text }}",
            "'load.text' is not there: 'load' is a list of 2. Take one item, as in load[0], or",
        ),
        ("{{ load[7] }}", "'load[7]' is not there: 'load' is a list of 2, counted from 0."),
        ("{{ frame.head }}", "'frame.head' is not there. Known: text, n."),
        ("{{ frame.head() }}", "'frame.head' is not there."),
        ("{{ extra.text }}", "'text' is not there: the value before it is None"),
        ("{{ word.text }}", "'text' is not there: the value before it is of type str"),
        ("{{ word._x }}", "'_x' is not there: the value before it is of type str"),
        ("{{ wrod }}", "'wrod' is not there. Did you mean 'word'? Steps that this one reads: load, one,"),
        ("{{ loop.index }}", "'loop' is not there: it belongs to the inside of {% for %}."),
        ("{{ context }}", "'context' is not there: it is for Python steps."),
        ("{{ [lost] }}", "'lost' is not there."),
        ("{% if 0 %}{% set x = 1 %}{% endif %}{{ x }}", "'x' is not there."),
        ("{{ word.upper }}", "'upper' is a method. Call it, as in upper(), or name a field."),
        ("{{ one.keys }}", "'keys' is a method."),
        ("{{ one.model_dump() }}", "'one.model_dump' is not there."),
        ("{{ one[1:] }}", "KeyError"),
        ("{{ '{0.__class__}'.format(one) }}", "'one.__class__' is not there."),
        ("{{ '{0.__class__}'.format(word) }}", "access to attribute '__class__' of 'str' object is unsafe."),
        (
            "{{ '{x.__class__}'.format_map({'x': 1}) }}",
            "access to attribute '__class__' of 'int' object is unsafe.",
        ),
        ("{{ load | map(attribute='__class__') | list }}", "'load[0].__class__' is not there."),
        (
            "{{ [1] | map(attribute='__class__') | list }}",
            "access to attribute '__class__' of 'int' object is unsafe.",
        ),
        ("{{ one | map('attr', '__class__') | list }}", "No filter named 'attr'"),
        ("{% for row in load %}{% if row.text.append(1) %}{% endif %}{% endfor %}", "'append' is not there"),
        ("{{ [].append(1) }}", "access to attribute 'append' of 'list' object is unsafe"),
        (
            "{{ 1 / 0 }}",
            "ZeroDivisionError: division by zero. Change the expression, or compute the value in a",
        ),
        ("{{ word + 1 }}", "TypeError: can only concatenate str"),
        ("{{ range(10 ** 9) }}", "'**' is not for goals"),
        ("{{ range(1000000) }}", "OverflowError: Range too big"),
        ("{{ big }}", "ValueError: Exceeds the limit"),
        ("{{ load }}", "OSError: no disk"),
        ("{{ namespace }}", "'namespace' is not there."),
    ],
)
def test_every_failure_is_one_problem_with_its_line(source: str, words: str) -> None:
    with pytest.raises(Problem) as caught:
        render("first line\n\n" + source)
    assert words in caught.value.text
    assert caught.value.line == 3


def test_item_belongs_to_mapped_steps() -> None:
    with pytest.raises(Problem, match="'item' is not there: it is the current item of a step with map_over"):
        compiled("{{ item.text }}").render({"load": 1})


def test_an_error_of_the_users_own_code_stays_attached() -> None:
    with pytest.raises(Problem) as caught:
        render("{{ load }}")
    assert isinstance(caught.value.__cause__, OSError)


def test_a_value_that_cannot_be_read_is_reported_on_the_line_that_names_it() -> None:
    goal = compiled("a\n{{ model }}")
    with pytest.raises(Problem, match="'model' is of type builtin_function_or_method") as caught:
        goal.render({"model": len})
    assert caught.value.line == 2


class Lazy(Mapping[str, Any]):
    """Values of which only ``a`` may be looked at."""

    def __getitem__(self, name: str) -> Any:
        assert name == "a", f"{name} was decoded, though no one reads it"
        return "x"

    def __iter__(self) -> Iterator[str]:
        return iter(["a", "b"])

    def __len__(self) -> int:
        return 2


def test_values_that_a_goal_does_not_read_are_not_looked_at() -> None:
    assert compiled("{{ a }}").render(Lazy()) == "<data>x</data>"


def test_a_source_is_compiled_once() -> None:
    assert compiled("{{ a }} once") is compiled("{{ a }} once")


def test_a_goal_with_too_many_blocks_in_each_other_is_refused() -> None:
    deep = "{% for x in a %}" * 30 + "{% endfor %}" * 30
    with pytest.raises(Problem, match=r"too complex .* Compute the value in a Python step"):
        compiled(deep)


@pytest.mark.parametrize(
    ("expression", "truth"),
    [
        ("one.label == 'good' and frame.n | sum > 2", True),
        ("not extra or extra.text", True),
        ("'hell' in word", True),
        ("load", True),
        ("frame[5:]", False),
        ("none_such is defined", False),
        ("  word == 'x'  ", False),
        ("one.at.year > 2000 if one.at else false", True),
        ("shared.tone == 'formal' and item.text", True),
    ],
)
def test_expressions_have_a_truth(expression: str, truth: bool) -> None:
    assert compiled(expression, True).evaluate(VALUES) is truth


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("{{ word }}", "an expression has no braces. Write load.count > 0, not {{ load.count > 0 }}."),
        ("{% if word %}", "an expression has no braces."),
        ("word = 'x'", "goes on after its end. Join parts with 'and' or 'or'."),
        ("word >", "Write an expression such as load.count > 0."),
        ("word && one", "unexpected char '&'"),
        ("word > 3", "TypeError"),
        ("one.lable", "'one.lable' is not there. Did you mean 'label'?"),
        ("none_such", "'none_such' is not there."),
        ("word.__class__", "starts with two underscores"),
        ("word | uper", "There is no filter 'uper'."),
        ("word()", "'word' cannot be called"),
        ("lambda: 1", "goes on after its end"),
    ],
)
def test_expressions_that_cannot_be_decided_say_why(expression: str, words: str) -> None:
    with pytest.raises(Problem) as caught:
        compiled(expression, True).evaluate(VALUES)
    assert words in caught.value.text
