"""Pipelines as YAML and back: the content of their JSON, in a notation that people write by hand.

What a plain word means is what it means in JSON: ``no``, ``on`` and ``2026-01-01`` are text, only ``true``,
``false``, ``null`` and numbers are not. Tags, anchors and keys given twice are refused. Reading runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from tagent_nb.errors import DefinitionError, MissingExtraError
from tagent_nb.naming import step_name
from tagent_nb.pipeline.json import pipeline_to_dict
from tagent_nb.pipeline.python_body import PythonBody
from tagent_nb.serde import FORMAT

if TYPE_CHECKING:
    from tagent_nb.pipeline.graph import Definition

P = TypeVar("P", bound="Definition")

DEEPEST = 100
"""Nesting that is read at most: a definition has no more, and deeper text would exhaust the stack."""

PYTHON = "python"
"""Field of a step in YAML: the text of a Python cell, for which JSON has ``body``."""


def pipeline_to_yaml(pipeline: Definition) -> str:
    """A pipeline as YAML text.

    Raises:
        EncodeError: Something cannot be rebuilt from data; the message has the path to it.
        MissingExtraError: PyYAML is not installed.
    """
    yaml = _yaml()
    data = pipeline_to_dict(pipeline)
    for step in data["steps"]:
        body = step.get("body")
        if body is not None and body.get("kind") == "cell" and body.get("name") == step["name"]:
            step[PYTHON] = step.pop("body")["source"]
            if step["goal"] == pipeline.get_step(step["name"]).body.summary:  # type: ignore[union-attr]
                del step["goal"]

    class Dumper(yaml.SafeDumper):  # type: ignore[name-defined, misc]
        """Texts of several lines stand as they are; plain words mean what they mean in JSON."""

        yaml_implicit_resolvers: Mapping[Any, Any] = _resolvers()

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        style = '"' if _BREAKS.search(value) else "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    written: str = yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
    return written


def pipeline_from_yaml(text: str, make: Callable[[dict[str, Any]], P]) -> P:
    """Rebuild a pipeline from YAML; ``format`` and ``kind`` may be left out.

    Args:
        text: The YAML.
        make: Rebuilds a pipeline from its data.

    Raises:
        DefinitionError: It cannot be read; the message has the line and the remedy.
        FormatVersionError: It was written by a newer version of tagent-nb.
        MissingExtraError: PyYAML is not installed.
    """
    data, lines = _read(text)
    if not isinstance(data, dict):
        raise DefinitionError("Line 1: a pipeline is a mapping. Begin with: name: my pipeline")
    stored: dict[str, Any] = {"format": FORMAT, "kind": "pipeline", **data}
    steps = stored.get("steps", [])
    pipeline = _at(lines, (), lambda: make({**stored, "steps": []}))
    if not isinstance(steps, list):
        raise DefinitionError(
            f"Line {lines[('steps',)]}: steps must be a list: a line that begins with '- name:' for each."
        )
    head = {"format": FORMAT, "kind": "pipeline", "name": pipeline.name}
    for number, step in enumerate(steps):
        made = partial(lambda step: make({**head, "steps": [_with_body(step)]}), step)
        pipeline.steps += _at(lines, ("steps", number), made).steps
    return pipeline


def _with_body(step: Any) -> Any:
    """A step whose ``python`` is the body of a cell."""
    if not isinstance(step, dict) or PYTHON not in step:
        return step
    source, name = step[PYTHON], step_name(step.get("name"))
    if not isinstance(source, str) or not source.strip():
        raise DefinitionError(f"Stored step {name!r}: python must be the text of a cell. Write: python: |")
    body = PythonBody.from_cell(name, source.strip("\n"))
    others = {field: value for field, value in step.items() if field != PYTHON}
    return {"goal": body.summary, **others, "body": body.to_dict()}


# -- reading ----------------------------------------------------------------------------------

Lines = dict[tuple[Any, ...], int]
"""Line (from 1) by path, of every value in a text."""


def _at(lines: Lines, path: tuple[Any, ...], make: Callable[[], P]) -> P:
    """Make something; an error gets the line of the field that it names, else of the whole."""
    try:
        return make()
    except DefinitionError as error:
        fields = [field for field in lines if len(field) == len(path) + 1 and field[: len(path)] == path]
        words = set(re.findall(r"\w+", str(error)))
        named = next((lines[field] for field in fields if field[-1] in words and field[-1] != "name"), None)
        raise type(error)(f"Line {lines[path] if named is None else named}: {error}") from None


def _read(text: str) -> tuple[Any, Lines]:
    yaml = _yaml()

    class Loader(yaml.SafeLoader):  # type: ignore[name-defined, misc]
        """Knows the words of JSON only."""

        yaml_implicit_resolvers: Mapping[Any, Any] = _resolvers()

    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise DefinitionError("Line 1: the text is empty. Begin with: name: my pipeline")
        lines: Lines = {}
        _check(node, (), lines, set())
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "This" if mark is None else f"Line {mark.line + 1}, column {mark.column + 1}: this"
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise DefinitionError(
            f"{where} is not YAML: {what}. Look at the indentation, and put text with ': ', '#', or "
            "braces at its beginning into quotes or below a '|'."
        ) from None
    except RecursionError:
        raise DefinitionError(f"This is nested deeper than the {DEEPEST} levels that are read.") from None


def _check(node: Any, path: tuple[Any, ...], lines: Lines, seen: set[int]) -> None:
    """Note the line of every value, and refuse what JSON has no words for."""
    line = lines[path] = node.start_mark.line + 1
    if id(node) in seen:
        raise DefinitionError(f"Line {line}: anchors (&name, *name) are not read. Write the value out twice.")
    if len(path) > DEEPEST:
        raise DefinitionError(f"Line {line}: this is nested deeper than the {DEEPEST} levels that are read.")
    seen.add(id(node))
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.rpartition(":")[2] not in _TAGS:
        raise DefinitionError(f"Line {line}: the tag {node.tag!r} is not read. Leave it out.")
    if node.id == "sequence":
        for number, item in enumerate(node.value):
            _check(item, (*path, number), lines, seen)
    elif node.id == "mapping":
        for key, value in node.value:
            at = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:str":
                raise DefinitionError(
                    f"Line {at}: a name must be text, not {key.value!r}. Put it into quotes."
                )
            if (*path, key.value) in lines:
                raise DefinitionError(f"Line {at}: {key.value!r} is given twice. Keep one.")
            _check(value, (*path, key.value), lines, seen)
            lines[*path, key.value] = at


_BREAKS = re.compile("[\r\x85\u2028\u2029]")
"""What YAML takes for the end of a line, besides the newline: it would come back as one."""

_TAGS = ("str", "int", "float", "bool", "null", "seq", "map")

_PLAIN = (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", "n~\0"),
    ("int", r"-?(?:0|[1-9][0-9]*)", "-0123456789"),
    ("float", r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", "-0123456789"),
)
"""Plain words that are no text, as in JSON, with the letters they begin with."""


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, pattern, letters in _PLAIN:
        for letter in letters:
            entry = (f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"))
            resolvers.setdefault("" if letter == "\0" else letter, []).append(entry)
    return resolvers


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError(
            "Pipelines in YAML need the package PyYAML. Install it: pip install 'tagent-nb[yaml]'"
        ) from error
    return yaml
