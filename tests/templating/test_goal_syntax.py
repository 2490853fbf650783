"""What a goal may contain, and that what it is said to read is what it reads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import meta

from tagent_nb.naming import RESERVED
from tagent_nb.templating.sandbox import REMOVED_FILTERS, Problem, _environment, chains_of, compiled

NAMES = ("load", "a", "b", "row")


def reads(source: str) -> list[tuple[str, ...]]:
    return [(name, *path) for name, path in chains_of(source)]


@pytest.mark.parametrize(
    ("source", "chains"),
    [
        ("{{ load }}", [("load",)]),
        ("{{ load.text }}{{ load }}", [("load", "text"), ("load",)]),
        ("{{ load.a.b['c d'][0] }}", [("load", "a", "b", "c d", "0")]),
        ("{{ load[-1].x }}", [("load", "-1", "x")]),
        ("{{ load.0 }}", [("load", "0")]),
        ("{{ load.rows[a.n].x }}", [("a", "n"), ("load", "rows")]),
        ("{{ load[1:2] }}{{ load.x[:a] }}", [("load",), ("a",), ("load", "x")]),
        ("{{ load[1.5] }}{{ a[true] }}{{ b[-1.5] }}{{ b[-a] }}", [("load",), ("a",), ("b",)]),
        ("{{ load.text | upper }}", [("load", "text")]),
        ("{{ load.text.split(a.b) }}", [("load", "text"), ("a", "b")]),
        ("{{ load.split() }}", [("load",)]),
        ("{{ load.text is defined }}", [("load", "text")]),
        ("{{ load.x if a.y else b }}", [("a", "y"), ("load", "x"), ("b",)]),
        ("{% for row in load %}{{ row.text }}{{ loop.index }}{% endfor %}", [("load",)]),
        ("{% for x, y in load.b if x.ok %}{{ y }}{% else %}{{ x }}{% endfor %}", [("load", "b"), ("x",)]),
        ("{% for x in load %}{% set z = a %}{% endfor %}{{ x }}{{ z }}", [("load",), ("a",), ("x",), ("z",)]),
        ("{% set x = load.text %}{{ x.y }}", [("load", "text")]),
        ("{{ x }}{% set x = 1 %}{{ x }}", [("x",)]),
        ("{% with x = load.a, y = b %}{{ x.c }}{{ y }}{% endwith %}{{ y }}", [("load", "a"), ("b",), ("y",)]),
        ("{% if a %}{% set x = 1 %}{% endif %}{{ x }}", [("a",), ("x",)]),
        ("{% if a %}{% set x = 1 %}{% elif b %}{% set x = 2 %}{% else %}{% set x = 3 %}{% endif %}{{ x }}",
         [("a",), ("b",)]),
        ("{% if a %}{% set x = 1 %}{% elif b %}{% else %}{% set x = 3 %}{% endif %}{{ x }}",
         [("a",), ("b",), ("x",)]),
        ("{% set n = namespace(x=a) %}{% set n.x = b.c %}{{ n.x }}", [("a",), ("b", "c")]),
        ("{{ item.x }}{{ shared.y }}{{ facts.z }}{{ memories }}", []),
        ("{{ range(3) }}{{ {'k': a.x} }}{{ [b] }}", [("a", "x"), ("b",)]),
        ("{% raw %}{{ load }}{% endraw %}{# {{ a }} #}", []),
        ("{{ (a ~ b).x }}", [("a",), ("b",)]),
    ],
)  # fmt: skip
def test_what_a_goal_reads_is_found(source: str, chains: list[tuple[str, ...]]) -> None:
    assert reads(source) == chains


def test_a_name_in_combining_letters_is_the_step_of_that_name() -> None:
    assert reads("{{ cafe\u0301.x }}") == [("café", "x")]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ x.__class__ }}", "'__class__' starts with two underscores"),
        ("{{ x['__class__'] }}", "'__class__' starts with two underscores"),
        ("{{ x.__class__() }}", "'__class__' starts with two underscores"),
        ("{{ ''.__class__.__mro__ }}", "starts with two underscores"),
        ("{{ __name__ }}", "'__name__' starts with two underscores. Name a step."),
        ("{% set __x = 1 %}", "The name '__x' is taken"),
        ("{% include 'f' %}", "goals cannot read files"),
        ("{% import 'f' as f %}", "goals cannot read files"),
        ("{% from 'f' import f %}", "goals cannot read files"),
        ("{% extends 'f' %}", "goals cannot read files"),
        ("{% block b %}{% endblock %}", "goals cannot read files"),
        ("{% macro m() %}{% endmacro %}", "goals have no macros"),
        ("{% call m() %}{% endcall %}", "goals have no macros"),
        ("{% filter upper %}x{% endfilter %}", "as in {{ load.text | upper }}"),
        ("{% set x %}y{% endset %}", "write {% set name = value %}"),
        ("{% autoescape true %}{% endautoescape %}", "this is not allowed in goals"),
        ("{{ 2 ** 9 }}", "'**' is not for goals"),
        ("{{ load() }}", "'load' cannot be called"),
        ("{{ load.x()() }}", "this cannot be called"),
        ("{% set range = load %}{{ range(3) }}", "'range' cannot be called"),
        ("{{ load | uper }}", "There is no filter 'uper'. Did you mean 'upper'?"),
        ("{{ load is defind }}", "There is no test 'defind'. Did you mean 'defined'?"),
        *((f"{{{{ load | {name} }}}}", f"The filter {name!r} is not for goals") for name in REMOVED_FILTERS),
        ("{% set shared = load %}", "The name 'shared' is taken. Choose another, such as 'row'."),
        ("{% for facts in load %}{% endfor %}", "The name 'facts' is taken"),
        ("{% for x, shared in load %}{% endfor %}", "The name 'shared' is taken"),
        ("{% with memories = load %}{% endwith %}", "The name 'memories' is taken"),
        ("{% set loop = 1 %}", "The name 'loop' is taken"),
        ("{{ load", "between {% raw %} and {% endraw %}"),
        ("{# load", "Missing end of comment tag. To write braces as text"),
        ('{{"a": 1}}', "between {% raw %} and {% endraw %}"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
    ],
)
def test_what_is_not_allowed_is_refused_with_line_and_remedy(source: str, words: str) -> None:
    with pytest.raises(Problem) as caught:
        chains_of("first\nsecond\n" + source)
    assert words in caught.value.text
    assert caught.value.line == (1 if words == "nested too deeply" else 3)


def test_item_may_be_the_name_of_a_loop() -> None:
    assert reads("{% for item in load %}{{ item.x }}{% endfor %}") == [("load",)]


# -- against two obvious implementations --------------------------------------------------------


def _small(strategy: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """The same strategy with a short repr: nested ones would print megabytes."""
    return st.composite(lambda draw: draw(strategy))()


KEYS = st.sampled_from([".x", ".y.z", "['a b']", "[0]", "[row]", "[-1]", "[:2]"])
ATOMS = _small(
    st.builds(lambda name, path: name + "".join(path), st.sampled_from(NAMES), st.lists(KEYS, max_size=2))
)
EXPRESSIONS = _small(
    st.recursive(
        ATOMS | st.sampled_from(["1", "'t'", "range(2)"]),
        lambda inner: st.one_of(
            st.builds("({} ~ {})".format, inner, inner),
            st.builds("({} if {} else {})".format, inner, inner, inner),
            st.builds("({})|default({})".format, inner, inner),
            st.builds("({}).get({})".format, inner, inner),
            st.builds("(({}) is defined)".format, inner),
            st.builds("[{}, {}]".format, inner, inner),
        ),
        max_leaves=4,
    )
)


def _blocks(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    e, name, inner = EXPRESSIONS, st.sampled_from(NAMES), _small(inner)
    return _small(
        st.one_of(
            st.builds("{{% if {} %}}{}{{% endif %}}".format, e, inner),
            st.builds(
                "{{% if {} %}}{}{{% elif {} %}}{}{{% else %}}{}{{% endif %}}".format,
                e,
                inner,
                e,
                inner,
                inner,
            ),
            st.builds(
                "{{% for {} in [{}] if {} %}}{}{{% else %}}{}{{% endfor %}}".format, name, e, e, inner, inner
            ),
            st.builds("{{% with {} = {} %}}{}{{% endwith %}}".format, name, e, inner),
            st.builds("{}{}".format, inner, inner),
        )
    )


GOALS = _small(
    st.recursive(
        st.one_of(
            st.just(" text "),
            st.builds("{{{{ {} }}}}".format, EXPRESSIONS),
            st.builds("{{% set {} = {} %}}".format, st.sampled_from(NAMES), EXPRESSIONS),
        ),
        _blocks,
        max_leaves=8,
    )
)


@given(GOALS)
def test_names_that_are_read_are_those_that_jinja2_looks_up(source: str) -> None:
    environment = _environment()
    looked_up = meta.find_undeclared_variables(environment.parse(source))
    names = {name for name, _ in chains_of(source)}
    assert names <= looked_up - RESERVED
    assert set(compiled(source).names) == names
    if "set" not in source:
        # After a name is set in one branch, jinja2 counts it whether or not someone reads it.
        assert names == looked_up - RESERVED


TREES = st.recursive(
    st.integers(0, 2) | st.sampled_from(["", "t", "x"]),
    lambda inner: (
        st.dictionaries(st.sampled_from(["x", "y", "z", "a b", "0"]), inner, max_size=3)
        | st.lists(inner, max_size=2)
    ),
    max_leaves=8,
)


def _only(value: Any, paths: list[tuple[str, ...]]) -> Any:
    """What is left of a value when only these parts of it are kept."""
    if () in paths or not isinstance(value, dict):
        return value
    return {
        key: _only(part, [path[1:] for path in paths if path[0] == key])
        for key, part in value.items()
        if any(path[0] == key for path in paths)
    }


@given(GOALS, st.fixed_dictionaries(dict.fromkeys(NAMES, TREES)))
def test_a_goal_depends_on_nothing_but_what_it_is_said_to_read(source: str, values: dict[str, Any]) -> None:
    """Fingerprints rest on this: values cut down to the parts that are read give the same text."""

    def outcome(some: dict[str, Any]) -> str | None:
        try:
            return compiled(source).render(some)
        except Problem:
            return None

    chains = chains_of(source)
    kept = {name: _only(values[name], [path for other, path in chains if other == name])
            for name in {name for name, _ in chains}}  # fmt: skip
    assert outcome(kept) == outcome(values)
