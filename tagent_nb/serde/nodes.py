"""What a tree consists of, and what makes its parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

TAG = "$t"
"""The key that marks a tagged value. A user's dict with this key is tagged itself."""

Node = dict[str, Any]


def parts_of(node: Mapping[str, Any]) -> list[Any]:
    """The parts of a node that has a list of them; a ``TypeError`` for anything else."""
    parts = node["v"]
    if not isinstance(parts, list):
        raise TypeError("its parts are no list")
    return parts


class Walk(Protocol):
    """One walk over one value, as those see it that make nodes for it. The
    :class:`~tagent_nb.serde.encoder.Encoder` is one.

    Attributes:
        identity: Whether it leaves out what does not belong to a value's identity.
        same: Whether its tree can be changed into that of a walk with ``identity`` afterwards.
    """

    identity: bool
    same: bool

    def enter(self, depth: int, parts: int) -> None:
        """Count one container, its depth and its parts."""

    def tree(self, value: Any, depth: int = 0) -> Any:
        """The tree of a value."""

    def items(self, value: Iterable[Any], depth: int) -> list[Any]:
        """The trees of all items."""

    def pairs(self, value: Mapping[Any, Any], depth: int, *, ordered: bool = False) -> list[Any]:
        """The trees of all keys and values."""
