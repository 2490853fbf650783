"""Names of steps and ids of pipelines: what is allowed, and what reaches a path or a query."""

from __future__ import annotations

import hashlib
import keyword
import re
import sys
import unicodedata

from tagent_nb.errors import DefinitionError

MAX_NAME = 64
RESERVED = frozenset({"item", "shared", "facts", "memories", "context", "loop"})
"""Names that goals, conditions and Python steps already use for something else."""

_CONSTANTS = frozenset({"true", "false", "none"})
"""What a goal reads as a value: ``{{ none }}`` would never be the step."""

_TAKEN = RESERVED | _CONSTANTS | frozenset(keyword.kwlist)

_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


def step_name(name: object) -> str:
    """Check a step's name and return it in Unicode's NFC form.

    Raises:
        DefinitionError: The name is not an identifier of at most 64 characters, or is reserved.
    """
    if (
        type(name) is str
        and name.isascii()  # nothing of Unicode is to be looked at
        and name.isidentifier()
        and len(name) <= MAX_NAME
        and name not in _TAKEN
        and not name.startswith("__")
    ):
        return sys.intern(name)
    if not isinstance(name, str):
        raise DefinitionError(
            f"Step name must be text, not {type(name).__name__} ({name!r}). Write a name such as 'load'."
        )
    if not name:
        raise DefinitionError("Step name cannot be empty. Write a name such as 'load'.")
    normal = unicodedata.normalize("NFC", name)
    if len(normal) > MAX_NAME:
        raise DefinitionError(
            f"Step name {normal[:20]!a}... has {len(normal)} characters; "
            f"at most {MAX_NAME} are allowed. Shorten it."
        )
    if not normal.isidentifier():
        raise DefinitionError(
            f"Step name {name!a} is not an identifier. Use letters, digits and underscores, "
            "not starting with a digit, as in 'load_reviews'; goals and Python cells refer to it."
        )
    if normal.startswith("__"):
        raise DefinitionError(f"Step name {normal!r} starts with two underscores. Leave them out.")
    compatible = unicodedata.normalize("NFKC", normal)
    if compatible != normal:
        raise DefinitionError(
            f"Step name {name!a} has letters that Python reads as others. Write {compatible!r}."
        )
    if normal in _TAKEN:
        raise DefinitionError(f"Step name {normal!r} is reserved. Choose another, such as '{normal}_step'.")
    # Names are keys of many dicts: an interned one is found by identity, and kept once.
    return sys.intern(str.__str__(normal))


def pipeline_name(name: object) -> str:
    """Check a pipeline's name: free text of 1 to 200 characters on one line.

    Raises:
        DefinitionError: It is not text, is blank, too long, or cannot be written as UTF-8.
    """
    if not isinstance(name, str):
        raise DefinitionError(f"Pipeline name must be text, not {type(name).__name__} ({name!r}).")
    normal = unicodedata.normalize("NFC", name)
    if not normal.strip():
        raise DefinitionError("Pipeline name cannot be empty. Write a name such as 'reviews'.")
    if len(normal) > 200:
        raise DefinitionError(f"Pipeline name has {len(normal)} characters; at most 200 are allowed.")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in normal):
        raise DefinitionError(
            f"Pipeline name {normal!a} has a control character or half a surrogate pair. Leave it out."
        )
    return normal


def storage_id(name: str) -> str:
    """The id under which a pipeline is stored: a readable slug and a hash of the whole name.

    Two kernels that use the same name get the same id; two names never share one.
    """
    normal = pipeline_name(name)
    slug = re.sub(r"[^A-Za-z0-9]+", "-", normal).strip("-")[:40]
    mark = hashlib.sha256(normal.encode()).hexdigest()[:12]
    return f"{slug or 'pipeline'}-{mark}"


def safe_id(value: object, what: str = "id") -> str:
    """Return ``value`` if it may become part of a path, a query or a key.

    Raises:
        DefinitionError: It does not match ``[A-Za-z0-9_-]{1,64}``.
    """
    if isinstance(value, str) and _SAFE_ID.match(value):
        return value
    raise DefinitionError(
        f"{what} {value!a} is not allowed. Use 1 to 64 of A-Z, a-z, 0-9, '_' and '-'; "
        "Pipeline.id is such an id for any pipeline name."
    )


def id_of(pipeline: object) -> str:
    """The storage id that the id or the name of a pipeline stands for: what can be no id is a name.

    Raises:
        DefinitionError: It can be neither.
    """
    return pipeline if isinstance(pipeline, str) and _SAFE_ID.match(pipeline) else storage_id(pipeline)  # type: ignore[arg-type]


def places_of(pipeline: object) -> tuple[str, ...]:
    """The storage ids under which something of a pipeline may be stored, for its id or its name.

    A text that can be an id may be a name, too: what is stored under it as an id counts first.

    Raises:
        DefinitionError: It can be neither.
    """
    first = id_of(pipeline)
    return (first, storage_id(first)) if first == pipeline else (first,)
