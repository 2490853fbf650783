"""References of a plan's tasks to each other: ``{{ t1 }}``, ``${t1}``, ``{{ t1.rows[0].name }}``."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from tagent_nb.errors import TemplateError, did_you_mean
from tagent_nb.pipeline.template import lookup

_BRACES = re.compile(r"\{\{(?P<double>.*?)\}\}|\$\{(?P<dollar>[^{}]*)\}", re.DOTALL)
_REFERENCE = re.compile(r"\s*(?P<id>[\w-]+)(?P<path>(?:\.[\w-]+|\[\s*(?:\d+|'[^']*'|\"[^\"]*\")\s*\])*)\s*")
_PART = re.compile(r"\.([\w-]+)|\[\s*(?:(\d+)|'([^']*)'|\"([^\"]*)\")\s*\]")
_WHOLE = ("result", "output")
"""What models like to write after an id for the whole result."""

Known = Collection[str]


def task_id(text: str) -> str:
    """An id as an identifier: what a model calls ``1`` or ``step-1`` is ``t1`` or ``step_1``."""
    name = re.sub(r"\W", "_", text.strip())
    return f"t{name}" if name[:1].isdigit() else name


def _read(found: re.Match[str], known: Known) -> tuple[str, tuple[str, ...]] | str | None:
    """The id and the path in braces; a problem as text; ``None`` for text that is no reference."""
    inside = found["double"] if found["double"] is not None else found["dollar"]
    match = _REFERENCE.fullmatch(inside)
    if match is not None and task_id(match["id"]) in known:
        parts = ("".join(filter(None, part)) for part in _PART.findall(match["path"]))
        return task_id(match["id"]), tuple(parts)
    start = _REFERENCE.match(inside)
    begins = start is not None and task_id(start["id"]) in known
    if match is not None and found["double"] is not None:
        hint = did_you_mean(match["id"], known)
        return f"{found[0]} names no task.{hint} Tasks: {', '.join(known) or 'none'}."
    if match is None and begins:
        return f"{found[0]} cannot be read. Write {{{{ id }}}} or {{{{ id.field }}}}."
    # Braces are ordinary text too, such as those of a script that a tool is to run.
    return None


def references(value: Any, known: Known) -> tuple[list[str], list[str]]:
    """The ids that texts inside ``value`` refer to, each once, and what is wrong with others, in words."""
    ids: dict[str, None] = {}
    wrong: dict[str, None] = {}
    for text in _texts(value):
        for found in _BRACES.finditer(text):
            read = _read(found, known)
            if isinstance(read, tuple):
                ids[read[0]] = None
            elif read is not None:
                wrong[read] = None
    return list(ids), list(wrong)


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """``value`` with the ids in its references changed, all of them in the form ``{{ id.path }}``."""

    def rename(found: re.Match[str]) -> str:
        read = _read(found, names)
        if not isinstance(read, tuple):
            return found[0]
        path = "".join(f".{part}" if re.fullmatch(r"[\w-]+", part) else f"[{part!r}]" for part in read[1])
        return f"{{{{ {names[read[0]]}{path} }}}}"

    return _mapped(value, lambda text: _BRACES.sub(rename, text))


def filled_in(value: Any, results: Mapping[str, Any], show: Callable[[Any], str]) -> Any:
    """``value`` with results in place of references.

    A text that is one reference becomes the result itself, whatever it is; inside a longer text the
    result stands as ``show`` writes it.

    Raises:
        TemplateError: A result does not have the part that a reference names.
    """

    def fill(text: str) -> Any:
        whole = _BRACES.fullmatch(text.strip())
        read = _read(whole, results) if whole is not None else None
        return _part(results, *read) if isinstance(read, tuple) else shown_in(text, results, show)

    return _mapped(value, fill)


def shown_in(text: str, results: Mapping[str, Any], show: Callable[[Any], str]) -> str:
    """``text`` with results in place of references, each as ``show`` writes it.

    Raises:
        TemplateError: As :func:`filled_in`.
    """

    def put(found: re.Match[str]) -> str:
        read = _read(found, results)
        return show(_part(results, *read)) if isinstance(read, tuple) else found[0]

    return _BRACES.sub(put, text)


def _part(results: Mapping[str, Any], name: str, path: tuple[str, ...]) -> Any:
    try:
        return lookup(results[name], path, name=name)
    except TemplateError:
        if path and path[0] in _WHOLE:
            return lookup(results[name], path[1:], name=name)
        raise


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _mapped(value: Any, change: Callable[[str], Any]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(one, change) for key, one in value.items()}
    return [_mapped(one, change) for one in value] if isinstance(value, list) else value
