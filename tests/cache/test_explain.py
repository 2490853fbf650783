"""What changed is said in words, with a diff where there is a text, and without secrets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagent_nb.cache import explain, uncompared


def say(component: str, old: str | None, new: str | None, before: Any = None, after: Any = None) -> str:
    """The one sentence about a component, given the two definitions of its step."""
    texts = [{"other": "same"} | ({component: text} if text is not None else {}) for text in (old, new)]
    sentences = explain(texts[0], texts[1], before, after)
    assert len(sentences) == 1
    return sentences[0]


def test_equal_fingerprints_have_nothing_to_explain() -> None:
    assert explain({"goal": "1"}, {"goal": "1"}, {"goal": "a"}, {"goal": "a"}) == []
    assert explain({}, {}, None, None) == []


def test_without_an_earlier_result_it_says_so() -> None:
    assert explain({}, {"goal": "1"}, None, {"goal": "a"}) == ["there is no earlier result to compare with"]


def test_a_changed_goal_is_shown_as_a_diff() -> None:
    before, after = {"goal": "Classify.\nBe kind."}, {"goal": "Classify.\nBe strict."}
    assert say("goal", "1", "2", before, after) == "goal changed:\n  Classify.\n- Be kind.\n+ Be strict."


def test_changed_code_is_shown_as_a_diff() -> None:
    before, after = ({"body": {"kind": "cell", "name": "s", "source": text}} for text in ("x + 1", "x + 2"))
    assert say("code", "1", "2", before, after) == "code changed:\n- x + 1\n+ x + 2"


def test_places_far_apart_are_both_shown() -> None:
    lines = [f"line {number}" for number in range(30)]
    goal = say("goal", "1", "2", {"goal": "\n".join(lines)}, {"goal": "\n".join(["new", *lines, "new"])})
    assert goal == "goal changed:\n+ new\n  line 0\n  ...\n  line 29\n+ new"


def test_a_very_long_diff_is_cut() -> None:
    goal = say("goal", "1", "2", {"goal": "a\n" * 100}, {"goal": "b\n" * 100})
    assert goal.endswith("... and 160 more lines")
    assert len(goal.splitlines()) == 42


@pytest.mark.parametrize(("before", "after"), [(None, None), ({"goal": "a"}, None), (None, {"goal": "b"})])
def test_without_both_definitions_there_is_no_diff(before: Any, after: Any) -> None:
    assert say("goal", "1", "2", before, after) == "goal changed"


def test_constraints_of_the_step_are_shown_and_those_of_the_pipeline_named() -> None:
    before, after = {"constraints": ["Be short."]}, {"constraints": ["Be short.", "Be kind."]}
    assert say("constraints", "1", "2", before, after) == "constraints changed:\n  Be short.\n+ Be kind."
    assert say("constraints", "1", "2", before, before) == "constraints of the pipeline changed"
    assert say("constraints", "1", "2") == "constraints changed"


def test_a_changed_model_is_named() -> None:
    assert say("model", "1", "2", {"model": "local"}, {"model": "openai:gpt-5"}) == (
        "model changed from 'local' to 'openai:gpt-5'"
    )
    assert say("model", "1", "2", {"model": None, "name": "s"}, {"model": "local"}) == (
        "model changed from the pipeline's to 'local'"
    )
    assert say("model", "1", "2", {"name": "s"}, {"name": "s"}) == "model changed"


def test_changed_settings_are_named_and_secret_ones_not_shown() -> None:
    before = {
        "settings": {"temperature": 0.0, "stop": "x", "api_key": "sk-canary", "extra": {"a": 1}, "same": 1}
    }
    after = {"settings": {"temperature": 0.7, "api_key": "sk-other", "extra": {"a": 2}, "same": 1}}
    text = say("settings", "1", "2", before, after)
    assert text == (
        "settings changed: api_key (not shown) -> (not shown), extra (not shown) -> (not shown), "
        "stop 'x' -> not set, temperature 0.0 -> 0.7"
    )
    assert say("settings", None, "2") == "settings is new"


def test_a_changed_schema_is_shown_as_a_diff() -> None:
    before = {"output_schema": {"properties": {"label": {"type": "string"}}}}
    after = {"output_schema": {"properties": {"label": {"type": "integer"}}}}
    text = say("output_schema", "1", "2", before, after)
    assert text.startswith("output_schema changed:\n")
    assert '-    "type": "string"' in text
    assert '+    "type": "integer"' in text
    assert say("output_schema", "1", "2", after, after) == (
        "output_schema changed: its validators or the code they use"
    )
    assert "output_schema is new:" in say(
        "output_schema", None, "2", {"output_schema": None, "name": "s"}, after
    )


@pytest.mark.parametrize(
    ("component", "old", "new", "sentence"),
    [
        ("input:load.text", "1", "2", "input load.text changed"),
        ("input:load.text", None, "2", "input load.text is read now"),
        ("input:load.text", "1", None, "input load.text is no longer read"),
        ("input:load.text", "1", "none", "input load.text has no value now"),
        ("input:load.text", "none", "2", "input load.text has a value now"),
        (
            "input:load.text",
            "1",
            "unstorable-2",
            "input load.text cannot be stored, and so not be compared with earlier ones",
        ),
        ("global:threshold", "1", "2", "global threshold changed"),
        ("global:threshold", "1", "absent", "global threshold is not defined now"),
        ("global:threshold", "absent", "2", "global threshold is defined now"),
        ("global:threshold", None, "2", "global threshold is new"),
        ("global:mean", "named statistics.mean", "named numpy.mean", "global mean is now numpy.mean"),
        ("global:mean", "1", "named numpy.mean", "global mean changed"),
        ("global:threshold", None, "type a.B", "global threshold is new"),
        (
            "global:client",
            "1",
            "type a.Client",
            "global client is now of type a.Client (counted by its type only)",
        ),
        ("global:client", "type a.Client", None, "global client is gone"),
        ("function:clean", "1", "2", "function clean changed"),
        ("function:clean", None, "2", "function clean is new"),
        ("class:Review", "1", None, "class Review is gone"),
        ("tool:search", "1", "2", "tool search changed"),
        ("shared:region", "1", "2", "shared value region changed"),
        ("facts", "1", "2", "facts changed"),
        ("module:shop", "1", "2", "module shop changed"),
        ("package:pandas", "3.0", "3.1", "package pandas changed from 3.0 to 3.1"),
        ("package:pandas", None, "3.1", "package pandas is new"),
        ("runner", "1", "2", "the runner of this kind of step changed from 1 to 2"),
        ("something_else", "1", "2", "something else changed"),
    ],
)
def test_each_component_has_its_sentence(
    component: str, old: str | None, new: str | None, sentence: str
) -> None:
    assert say(component, old, new) == sentence


def test_the_users_own_changes_come_before_those_below_them() -> None:
    old = {"runner": "1", "package:x": "1", "input:a": "1", "goal": "1", "zzz": "1"}
    new = dict.fromkeys(old, "2")
    kinds = [sentence.split()[0] for sentence in explain(old, new, None, None)]
    assert kinds == ["goal", "input", "package", "the", "zzz"]


parts = st.dictionaries(
    st.sampled_from(
        ["goal", "code", "model", "settings", "input:a.b", "global:x", "output_schema", "odd:", ""]
    ),
    st.sampled_from(["1", "2", "none", "absent", "type x", "unstorable-1"]),
)
definitions = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "goal": st.text(max_size=20),
        "model": st.none() | st.text(max_size=3),
        "settings": st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
        "body": st.none() | st.fixed_dictionaries({"source": st.text(max_size=20)}),
        "output_schema": st.none() | st.just({"type": "object"}),
    },
)


@given(parts, parts, definitions, definitions)
def test_there_is_one_sentence_for_each_difference(old: Any, new: Any, before: Any, after: Any) -> None:
    sentences = explain(old, new, before, after)
    if old:
        assert len(sentences) == sum(old.get(name) != new.get(name) for name in {*old, *new})
    assert all(sentence.strip() for sentence in sentences)


def test_what_counts_by_its_type_only_is_named() -> None:
    reasons = {
        "global:client": "type openai.OpenAI",
        "global:table": "type builtins.list of 1",
        "global:table[0]": "type _thread.lock",
        "global:own": "type __main__.Client",
        "global:own.n": "abc",
        "global:n": "abc",
    }
    assert uncompared(reasons) == ["client (openai.OpenAI)", "table[0] (_thread.lock)"]
