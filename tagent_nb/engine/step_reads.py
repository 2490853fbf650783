"""What the units of a step read: parts of other steps' values, facts and memories."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tagent_nb.pipeline import PipelineStep
from tagent_nb.templating import Reference

_ITEM = re.compile(r"\bitem\b")


def source_of(step: PipelineStep) -> Reference:
    """What a mapped step maps over."""
    return Reference.parse(step.map_over or "", "map")


def reads(step: PipelineStep, inputs: Iterable[str]) -> list[Reference]:
    """The parts of its inputs that a unit of this step reads."""
    source = source_of(step).step if step.map_over is not None else ""
    body = step.body
    if body is None:
        references = [reference for reference in step.references if reference.kind == "goal"]
        if source and _ITEM.search(step.goal):
            references.append(Reference(source, (), "goal"))
        return references
    read = {*body.params, *body.names, *body.provided}
    names = [name for name in inputs if name in read]
    if source and source not in names and "item" in read:
        names.append(source)
    return [Reference(name, (), "goal") for name in names]


def wants(step: PipelineStep, name: str) -> bool:
    """Whether facts or memories reach this step: every agent, and Python that asks for them."""
    body = step.body
    return body is None or body.wants_context or name in body.provided or name in body.params
