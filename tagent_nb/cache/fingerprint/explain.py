"""What differs between two fingerprints, in words."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Definition = Mapping[str, Any]

GENERATION = {"generation": "2"}
"""Goes with the components of a record, but not into its key. Raised when components are added whose like was
not recorded before, or when digests of one kind come to mean something else. Records without it are older.
:data:`_LATER_KINDS` and :data:`_OTHER_DIGESTS` hold for records of before 2: with a 3, each kind needs its
number there."""

EARLIER_VERSION = "it was recorded by an earlier version, whose fingerprints say less"

_LATER_KINDS = frozenset({"class", "function", "global", "input", "module", "package", "shown"})
"""Kinds of which the first generation recorded fewer."""

_OTHER_DIGESTS = frozenset({"class", "output_schema"})
"""Kinds whose digests mean something else since the first generation."""

_MAX_LINES = 40
_SECRET = re.compile(r"key|token|secret|passw|auth|header|cookie|credential", re.IGNORECASE)


def explain(
    old: Mapping[str, str],
    new: Mapping[str, str],
    old_definition: Definition | None,
    new_definition: Definition | None,
) -> list[str]:
    """What changed from one fingerprint to the next, a sentence each; empty when they are equal.

    What an earlier version did not record, or recorded with another meaning, is no change; where nothing
    else differs, the only sentence says that.

    Args:
        old: Components of the earlier unit; empty if there was none.
        new: Components of the unit now.
        old_definition: The step as plain data (an entry of ``Pipeline.to_dict()["steps"]``) as it
            was then; texts and diffs come from these two, and without them are left out.
        new_definition: The same as it is now.
    """
    if not old:
        return ["there is no earlier result to compare with"] if new else []
    before, after = old_definition or {}, new_definition or {}
    sentences = []
    for name in sorted(differing(old, new, old_definition, new_definition), key=_order):
        kind, _, what = name.partition(":")
        tell = _TELLERS.get(kind, _by_digest)
        sentences.append(tell(kind, what, (old.get(name), new.get(name)), (before, after)))
    return sentences if sentences or old == new or not is_earlier(old, new) else [EARLIER_VERSION]


def is_earlier(old: Mapping[str, str], new: Mapping[str, str]) -> bool:
    """Whether an earlier version recorded ``old``, whose components may be fewer or mean something else."""
    return bool(old) and any(old.get(name) != new.get(name) for name in GENERATION)


def differing(
    old: Mapping[str, str],
    new: Mapping[str, str],
    old_definition: Definition | None = None,
    new_definition: Definition | None = None,
) -> list[str]:
    """Names of the components that differ, of those that both versions recorded with one meaning.

    Args:
        old: Components of the earlier unit.
        new: Components of the unit now.
        old_definition: As in :func:`explain`.
        new_definition: As in :func:`explain`.
    """
    names = [name for name in {*old, *new} if old.get(name) != new.get(name) and name not in GENERATION]
    if not names or not is_earlier(old, new):
        return names
    different = []
    for name in names:
        kind = name.partition(":")[0]
        if name not in old:
            comparable = kind not in _LATER_KINDS
        elif name in new and kind == "output_schema" and old_definition and new_definition:
            comparable = old_definition.get(kind) != new_definition.get(kind)
        else:
            comparable = name not in new or kind not in _OTHER_DIGESTS
        if comparable:
            different.append(name)
    return different


def uncompared(components: Mapping[str, str]) -> list[str]:
    """What counts by its type only, such as a connection: ``"client (openai.OpenAI)"``, sorted by name."""
    names = []
    for name, text in sorted(components.items()):
        # Entries of a table and fields of an object count one by one, under names of their own.
        inside = any(other.startswith((f"{name}.", f"{name}[")) for other in components)
        if text.startswith("type ") and not inside:
            names.append(f"{name.partition(':')[2]} ({text[5:]})")
    return names


_Texts = tuple[str | None, str | None]
_Definitions = tuple[Definition, Definition]


def _order(name: str) -> tuple[int, str]:
    kind = name.partition(":")[0]
    kinds = list(_TELLERS)
    return (kinds.index(kind) if kind in kinds else len(kinds), name)


def _verb(texts: _Texts) -> str:
    if texts[0] is None:
        return "is new"
    return "is gone" if texts[1] is None else "changed"


def _by_digest(kind: str, what: str, texts: _Texts, definitions: _Definitions) -> str:
    return f"{kind.replace('_', ' ')} {what} {_verb(texts)}".replace("  ", " ")


def _lines(kind: str, what: str, texts: _Texts, definitions: _Definitions) -> str:
    key = "goal" if kind == "goal" else "body"
    before, after = (_source(definition, key) for definition in definitions)
    return f"{kind} {_verb(texts)}" + _diff(definitions, before.splitlines(), after.splitlines())


def _source(definition: Definition, key: str) -> str:
    value = definition.get(key) or ""
    return str(value.get("source", "")) if isinstance(value, Mapping) else str(value)


def _instructions(kind: str, what: str, texts: _Texts, definitions: _Definitions) -> str:
    before, after = (str(definition.get("instructions") or "") for definition in definitions)
    if before == after and all(definitions):
        return "instructions of the pipeline changed"
    return "instructions changed" + _diff(definitions, before.splitlines(), after.splitlines())


def _constraints(kind: str, what: str, texts: _Texts, definitions: _Definitions) -> str:
    before, after = ([str(text) for text in d.get("constraints") or ()] for d in definitions)
    if before == after and all(definitions):
        return "constraints of the pipeline changed"
    return "constraints changed" + _diff(definitions, before, after)


def _model(kind: str, what: str, texts: _Texts, definitions: _Definitions) -> str:
    before, after = (definition.get("model") for definition in definitions)
    if before == after or not all(definitions):
        return f"model {_verb(texts)}"
    return f"model changed from {_named(before)} to {_named(after)}"


def _named(model: object) -> str:
    return "the pipeline's" if model is None else repr(model)


def _settings(kind: str, what: str, texts: _Texts, definitions: _Definitions) -> str:
    before, after = (dict(definition.get("settings") or {}) for definition in definitions)
    changes = []
    for name in sorted({*before, *after}) if all(definitions) else ():
        if before.get(name) != after.get(name):
            changes.append(f"{name} {_setting(name, before)} -> {_setting(name, after)}")
    return f"settings {_verb(texts)}" + (f": {', '.join(changes)}" if changes else "")


def _setting(name: str, settings: Mapping[str, Any]) -> str:
    if name not in settings:
        return "not set"
    value = settings[name]
    if isinstance(value, bool | int | float | None) or (isinstance(value, str) and not _SECRET.search(name)):
        return repr(value)
    return "(not shown)"


def _schema(kind: str, what: str, texts: _Texts, definitions: _Definitions) -> str:
    before, after = (_pretty(definition.get("output_schema")) for definition in definitions)
    if before == after and all(definitions):
        return "output_schema changed: its validators or the code they use"
    return f"output_schema {_verb(texts)}" + _diff(definitions, before, after)


def _pretty(schema: object) -> list[str]:
    return [] if schema is None else json.dumps(schema, indent=1, sort_keys=True, default=repr).splitlines()


def _input(kind: str, what: str, texts: _Texts, definitions: _Definitions) -> str:
    if texts[0] is None:
        return f"input {what} is read now"
    if texts[1] is None:
        return f"input {what} is no longer read"
    if texts[1] == "none":
        return f"input {what} has no value now"
    if texts[0] == "none":
        return f"input {what} has a value now"
    if texts[1].startswith("unstorable"):
        return f"input {what} cannot be stored, and so not be compared with earlier ones"
    return f"input {what} changed"


_OWN = ("output_mode", "rows_per_call", "flatten")
"""Plain components that a step itself sets."""


def _plain(kind: str, what: str, texts: _Texts, definitions: _Definitions) -> str:
    """Components that are readable as they are, such as versions."""
    subject = f"{kind} {what}" if what else kind if kind in _OWN else f"the {kind} of this kind of step"
    if None in texts:
        return f"{subject} {_verb(texts)}"
    return f"{subject} changed from {texts[0]} to {texts[1]}"


def _global(kind: str, what: str, texts: _Texts, definitions: _Definitions) -> str:
    if texts[1] == "absent":
        return f"global {what} is not defined now"
    if texts[0] == "absent":
        return f"global {what} is defined now"
    now = texts[1] or ""
    if now.startswith("named ") and (texts[0] or "").startswith("named "):
        return f"global {what} is now {now[6:]}"
    if now.startswith("type ") and texts[0] is not None:
        return f"global {what} is now of {now} (counted by its type only)"
    return _by_digest(kind, what, texts, definitions)


_TELLERS: Mapping[str, Callable[[str, str, _Texts, _Definitions], str]] = {
    "goal": _lines,
    "instructions": _instructions,
    "code": _lines,
    "constraints": _constraints,
    "model": _model,
    "models": lambda kind, what, texts, _: f"the model for {what} {_verb(texts)}",
    "model_settings": _by_digest,
    "model_server": _by_digest,
    "model_answers": _by_digest,
    "model_functions": _by_digest,
    "model_class": _by_digest,
    "settings": _settings,
    "output_schema": _schema,
    "output_mode": _plain,
    "rows_per_call": _plain,
    "samples": lambda kind, what, texts, _: f"samples changed from {texts[0] or 1} to {texts[1] or 1}",
    "flatten": _plain,
    "tool": _by_digest,
    "check": _by_digest,
    "input": _input,
    "when": lambda kind, what, texts, _: f"the condition for each item {_verb(texts)}",
    "shown": lambda kind, what, texts, _: (
        f"what goals can print of {what} {_verb(texts)}, such as computed fields of its classes"
    ),
    "facts": _by_digest,
    "function": _by_digest,
    "class": _by_digest,
    "global": _global,
    "shared": lambda kind, what, texts, _: f"shared value {what} {_verb(texts)}",
    "package": _plain,
    "module": _by_digest,
    "runner": _plain,
}


def _diff(definitions: _Definitions, before: Sequence[str], after: Sequence[str]) -> str:
    """Changed lines with one around them; empty unless both definitions are known and differ."""
    if not all(definitions) or list(before) == list(after):
        return ""
    difference = list(difflib.unified_diff(before, after, lineterm="", n=1))[3:]  # three lines of heading
    lines = ["  ..." if line.startswith("@@") else f"{line[0]} {line[1:]}" for line in difference]
    if len(lines) > _MAX_LINES:
        lines = [*lines[:_MAX_LINES], f"... and {len(lines) - _MAX_LINES} more lines"]
    return ":\n" + "\n".join(lines)
