"""Groups of steps: which steps of a large pipeline are one node."""

from __future__ import annotations

from tagent_nb.graph.grouping import groups_of
from tagent_nb.pipeline import Pipeline


def pipeline(**reads: list[str]) -> Pipeline:
    made = Pipeline("p")
    for name, above in reads.items():
        made.step(name, "go", depends_on=above)
    return made


def members(made: Pipeline, most: int, opened: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [group.steps for group in groups_of(made, most=most, opened=opened)]


def test_few_steps_stand_alone() -> None:
    assert members(pipeline(a=[], b=["a"]), 80) == [("a",), ("b",)]


def test_a_chain_is_taken_together_piece_by_piece() -> None:
    chain = pipeline(**{f"s{n}": [f"s{n - 1}"] if n else [] for n in range(12)})
    groups = members(chain, 6)
    assert all(len(steps) <= 4 for steps in groups)
    assert len(groups) <= 6
    assert [name for steps in groups for name in steps] == [step.name for step in chain.steps]


def test_steps_that_read_the_same_for_the_same_are_one() -> None:
    fan = pipeline(a=[], **{f"f{n}": ["a"] for n in range(9)}, z=[f"f{n}" for n in range(9)])
    assert members(fan, 5) == [("a",), tuple(f"f{n}" for n in range(9)), ("z",)]


def test_chains_beside_each_other_are_one() -> None:
    pairs = {f"f{n}": ["a"] for n in range(6)} | {f"g{n}": [f"f{n}"] for n in range(6)}
    made = pipeline(a=[], **pairs, z=[f"g{n}" for n in range(6)])
    (first, middle, last) = members(made, 5)
    assert (first, last) == (("a",), ("z",))
    assert sorted(middle) == sorted(pairs)


def test_what_has_no_structure_is_taken_together_by_levels() -> None:
    loose = pipeline(**{f"s{n}": [] for n in range(10)})
    assert members(loose, 5) == [tuple(f"s{n}" for n in range(10))]
    ladder = {"a0": [], "b0": []}
    for n in range(1, 10):
        ladder |= {f"a{n}": [f"a{n - 1}", f"b{n - 1}"], f"b{n}": [f"b{n - 1}"]}
    groups = members(pipeline(**ladder), 5)
    assert groups[0] == ("a0", "b0", "a1", "b1")
    assert len(groups) == 5


def test_cycles_and_unknown_steps_do_not_hang_it() -> None:
    made = pipeline(a=["b"], b=["a"], c=["c", "nowhere"], d=[], e=["d"])
    assert sorted(name for steps in members(made, 2) for name in steps) == ["a", "b", "c", "d", "e"]


def test_twins_that_read_and_are_read_keep_their_edges() -> None:
    """Merging twins again and again: a step that reads two groups stays behind both."""
    reads = {"a": [], "b": []} | {f"x{n}": ["a", "b"] for n in range(4)} | {f"y{n}": ["b"] for n in range(4)}
    made = pipeline(**reads, z=[f"x{n}" for n in range(4)] + [f"y{n}" for n in range(4)])
    assert members(made, 5) == [
        ("a",),
        ("b",),
        ("x0", "x1", "x2", "x3"),
        ("y0", "y1", "y2", "y3"),
        ("z",),
    ]


def test_an_opened_group_is_shown_step_by_step() -> None:
    fan = pipeline(a=[], **{f"f{n}": ["a"] for n in range(9)}, z=[f"f{n}" for n in range(9)])
    key = groups_of(fan, most=5)[1].key
    assert members(fan, 5, (key,)) == [(step.name,) for step in fan.steps]
