"""What steps with items run over, and which answer stands for several samples."""

from __future__ import annotations

from typing import Any

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from tagent_nb.results import StepRows, agreed, rows_to_map
from tagent_nb.results.items import token
from tagent_nb.templating import Reference

LABELS = st.sampled_from(["a", "b", "c"])
ANSWERS = st.lists(LABELS, min_size=1, max_size=7)
RECORDS = st.lists(
    st.fixed_dictionaries({"label": LABELS, "why": st.text(max_size=2)}), min_size=1, max_size=7
)


@given(ANSWERS)
def test_the_agreed_answer_is_the_most_frequent_and_of_equals_the_first(answers: list[str]) -> None:
    most = max(answers.count(answer) for answer in answers)
    first = next(place for place, answer in enumerate(answers) if answers.count(answer) == most)
    assert agreed(answers) == first


@given(RECORDS)
def test_of_records_the_field_that_most_agree_on_decides_first(answers: list[dict[str, str]]) -> None:
    """So that a reason, which is another each time, never outvotes a label."""
    chosen = answers[agreed(answers)]
    most = {
        name: max(sum(other[name] == answer[name] for other in answers) for answer in answers)
        for name in ("label", "why")
    }
    decisive = max(answers[0], key=most.__getitem__)
    assert sum(answer[decisive] == chosen[decisive] for answer in answers) == most[decisive]
    if all(sum(other["why"] == answer["why"] for other in answers) == 1 for answer in answers):
        labels = [answer["label"] for answer in answers]
        assert agreed(answers) == agreed(labels)


@given(RECORDS, st.randoms(use_true_random=False))
def test_what_a_strict_majority_says_does_not_depend_on_the_order(answers: list[Any], random: Any) -> None:
    labels = [answer["label"] for answer in answers]
    shuffled = random.sample(labels, len(labels))
    if max(map(labels.count, labels)) * 2 > len(labels):
        assert labels[agreed(labels)] == shuffled[agreed(shuffled)]


def test_answers_of_all_kinds_can_agree() -> None:
    """Numbers, missing ones, lists, objects that nothing can store, and records beside others."""
    assert agreed([1, 2, 2.0]) == 1
    assert agreed([float("nan"), None, 1]) == 0
    assert agreed([[1], [2], [2]]) == 1
    assert agreed([{"a": 1}, "text", "text"]) == 1
    assert agreed([{"a": 1}, {"b": 2}, {"b": 2}]) == 1
    assert token(lambda: 1)[0] == "shown"  # type: ignore[index]
    assert token(pd.NaT) is None


# -- elements of lists ---------------------------------------------------------------------------


LISTS = st.one_of(st.none(), st.lists(st.integers(0, 9), max_size=3))
FRAMES = st.dictionaries(st.text(max_size=3), LISTS, min_size=1, max_size=6)


def elements(lists: dict[Any, Any]) -> StepRows:
    index = pd.Index([*lists], dtype=object)
    frame = pd.DataFrame({"tags": pd.Series([*lists.values()], index, dtype=object)})
    return rows_to_map(frame, Reference("load", ("tags",)), flatten=True, notes={})


@given(FRAMES)
def test_each_element_has_a_key_of_its_own_and_the_labels_of_its_row_and_place(lists: dict[str, Any]) -> None:
    rows = elements(lists)
    keys = [key for key, _, _ in rows.rows]
    assert len(set(keys)) == len(keys)
    assert [label for _, label, _ in rows.rows] == [
        (label, place) for label, items in lists.items() for place in range(len(items or ()))
    ]
    assert [item for _, _, item in rows.rows] == [item for items in lists.values() for item in items or ()]
    assert [[*lists][place] for place in rows.places] == [label for _, (label, _), _ in rows.rows]
    assert len(rows.unlisted) == sum(items is None for items in lists.values())


@given(FRAMES, st.dictionaries(st.text(max_size=3), LISTS, max_size=3))
def test_keys_stay_what_they_are_when_other_rows_are_edited(
    lists: dict[str, Any], others: dict[str, Any]
) -> None:
    """A row that is changed, added or gone changes the keys of no other."""
    before = {label: key for key, label, _ in elements(lists).rows}
    edited = {**lists, **others}
    after = {label: key for key, label, _ in elements(edited).rows}
    untouched = {label for label in before if label[0] not in others}
    assert {label: before[label] for label in untouched} == {label: after[label] for label in untouched}


@given(FRAMES, st.integers(2, 3))
def test_samples_of_elements_have_keys_of_their_own(lists: dict[str, Any], samples: int) -> None:
    rows = elements(lists)
    units = list(rows.units(samples))
    assert len({key for key, _ in units}) == len(units) == len(rows.rows) * samples
    notes = rows.notes(samples)
    assert [level["name"] for level in notes["item_levels"]] == [None, "position", "sample"]


def test_levels_that_are_called_as_ours_stay_apart() -> None:
    frame = pd.DataFrame({"tags": [[1]]}, index=pd.Index(["a"], name="position"))
    rows = rows_to_map(frame, Reference("load", ("tags",)), flatten=True, notes={})
    assert [level["name"] for level in rows.levels or ()] == ["position", "position_2"]


def test_labels_that_could_not_be_stored_are_the_keys() -> None:
    notes = {"item_keys": ["a", "b"], "item_index": "(not stored)", "item_levels": [{"name": "id"}]}
    rows = rows_to_map([[1], [2]], Reference("load"), flatten=True, notes=notes)
    assert [label for _, label, _ in rows.rows] == [("a", 0), ("b", 0)]
    sampled = {"item_keys": ["a#0", "a#1"], "item_index": "(not stored)", "samples": 2, "row_levels": None}
    rows = rows_to_map([[1]], Reference("load"), flatten=True, notes=sampled)
    assert [row[:2] for row in rows.rows] == [("a/0", ("a", 0))]


def test_rows_of_a_reduction_are_those_of_its_value() -> None:
    notes = {"item_keys": ["0.0", "0.1"], "item_index": ["0.0", "0.1"], "levels": [2]}
    rows = rows_to_map([[1], [2]], Reference("sums"), flatten=True, notes=notes)
    assert [key for key, _, _ in rows.rows] == ["0/0", "1/0"]
