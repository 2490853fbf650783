"""What stored data is checked against: its format, and model classes by name and JSON Schema."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from tagent_nb.errors import FormatVersionError, TagentError

FORMAT = 1
"""Version of the JSON of pipelines and results."""

_known: WeakKeyDictionary[type, str] = WeakKeyDictionary()


def json_schema(model: Any) -> dict[str, Any]:
    """The JSON Schema of a pydantic model class; parts that JSON Schema cannot express are ``{}``."""
    from pydantic.json_schema import GenerateJsonSchema

    class Total(GenerateJsonSchema):
        ignored_warning_kinds = frozenset({"skipped-choice", "non-serializable-default"})  # type: ignore[assignment]

        def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
            return {}

    found: dict[str, Any] = model.model_json_schema(schema_generator=Total)
    return found


def schema_hash(model: type) -> str:
    """SHA-256 (hex, its first 16 digits) of a model's JSON Schema."""
    found = _known.get(model)
    if found is None:
        text = json.dumps(json_schema(model), sort_keys=True, default=str)
        found = _known[model] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def registry(schemas: Iterable[type] | Mapping[str, type]) -> Mapping[str, type]:
    """Classes by the name under which stored values know them."""
    if isinstance(schemas, Mapping):
        return schemas
    return {one.__name__: one for one in schemas}


def check_format(data: Mapping[str, Any], kind: str, problem: type[TagentError]) -> None:
    """Check kind and version of stored data.

    Raises:
        TagentError: ``problem``: it is something else.
        FormatVersionError: It is newer than this version knows.
    """
    version = data.get("format")
    if data.get("kind") != kind or type(version) is not int or version < 1:
        raise problem(
            f"This is not a stored {kind}: it has kind {data.get('kind')!r} and format {version!r}. "
            f"Pass what {kind}.to_dict() or to_json() returned."
        )
    if version > FORMAT:
        raise FormatVersionError(
            f"This {kind} was stored in format {version}; this version of tagent-nb reads up to {FORMAT}. "
            "Upgrade tagent-nb to read it."
        )
