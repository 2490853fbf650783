"""Groups of steps, so that a large pipeline is a picture that can be read.

Chains become one node, and so do steps that read the same and are read by the same; what is still
too much is taken together level by level. The order of definition is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tagent_nb.pipeline import Pipeline

MOST_NODES = 80
"""Nodes from which on steps are drawn in groups."""


@dataclass(frozen=True)
class Group:
    """Steps that are drawn as one node.

    Attributes:
        key: Identifies a group in its picture, and stays the same when another group is opened.
        steps: Names, in definition order.
    """

    key: str
    steps: tuple[str, ...]

    @property
    def title(self) -> str:
        """What it is called: by its first and last step."""
        return f"{self.steps[0]} … {self.steps[-1]}"


def groups_of(pipeline: Pipeline, *, most: int = MOST_NODES, opened: Collection[str] = ()) -> list[Group]:
    """The nodes of a picture: each step alone if there are at most ``most``, else groups of them.

    Args:
        pipeline: What is drawn.
        most: Nodes above which steps are put into groups.
        opened: Keys of groups whose steps are shown one by one.
    """
    names = list(dict.fromkeys(step.name for step in pipeline.steps))
    above = _above(pipeline, set(names))
    groups_of_names: list[tuple[str, ...]] = [(name,) for name in names]
    if len(names) > most:
        groups_of_names = _reduced(names, above, most)
        if len(groups_of_names) > most:
            groups_of_names = _levels(names, above, most)
    groups: list[Group] = []
    for steps in groups_of_names:
        key = steps[0] if len(steps) == 1 else f"{steps[0]}…{steps[-1]}"
        if key in opened:
            groups += [Group(name, (name,)) for name in steps]
        else:
            groups.append(Group(key, tuple(steps)))
    place = {name: index for index, name in enumerate(names)}
    return sorted(groups, key=lambda group: place[group.steps[0]])


def _above(pipeline: Pipeline, defined: Collection[str]) -> dict[str, list[str]]:
    """The defined steps that each step reads."""
    return {
        step.name: [
            dependency.name
            for dependency in pipeline.dependencies(step)
            if dependency.name in defined and dependency.name != step.name
        ]
        for step in pipeline.steps
    }


def _reduced(names: Sequence[str], above: Mapping[str, Sequence[str]], most: int) -> list[tuple[str, ...]]:
    """Chains and twins taken together, again and again until that is enough or nothing changes."""
    longest = -(-2 * len(names) // most)  # a chain of everything would be one node that says nothing
    members = {name: [name] for name in names}
    parents = {name: set(above[name]) for name in names}
    children: dict[str, set[str]] = {name: set() for name in names}
    for name, before in parents.items():
        for parent in before:
            children[parent].add(name)
    place = {name: index for index, name in enumerate(names)}

    def merge(kept: str, gone: str) -> None:
        members[kept] += members.pop(gone)
        for child in parents.pop(gone):
            children[child].discard(gone)
            if child != kept:
                children[child].add(kept)
                parents[kept].add(child)
        for child in children.pop(gone):
            parents[child].discard(gone)
            if child != kept:
                parents[child].add(kept)
                children[kept].add(child)

    changed = True
    while changed and len(members) > most:
        changed = False
        for name in list(members):
            # A chain: the only reader of a step that reads nothing else.
            while name in members and len(children[name]) == 1:
                (after,) = children[name]
                size = len(members[name]) + len(members[after])
                if len(parents[after]) != 1 or after == name or size > longest:
                    break
                merge(name, after)
                changed = True
        twins: dict[tuple[frozenset[str], frozenset[str]], str] = {}
        for name in list(members):
            if not parents[name] and not children[name]:
                continue  # steps that nothing connects have nothing in common
            first = twins.setdefault((frozenset(parents[name]), frozenset(children[name])), name)
            if first != name:
                merge(first, name)
                changed = True
    return [tuple(sorted(steps, key=place.__getitem__)) for steps in members.values()]


def _levels(names: Sequence[str], above: Mapping[str, Sequence[str]], most: int) -> list[tuple[str, ...]]:
    """Steps by how many stand before them; neighbouring levels together where there are too many."""
    level: dict[str, int] = {}
    # Two sweeps, since steps mostly stand after those they read; a cycle cannot hang it.
    for _ in range(2):
        for name in names:
            level[name] = 1 + max((level.get(parent, 0) for parent in above[name]), default=0)
    depth = max(level.values())
    share = -(-depth // most)
    by_share: dict[int, list[str]] = {}
    for name in names:
        by_share.setdefault((level[name] - 1) // share, []).append(name)
    return [tuple(by_share[key]) for key in sorted(by_share)]
