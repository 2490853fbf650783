"""Values of a step's own: what it changes in place must reach nobody else."""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import is_dataclass
from typing import Any

from tagent_nb.pipeline.foreign import ends_program

_FROZEN = frozenset({type(None), bool, int, float, complex, str, bytes, range})
_CONTAINERS = (list, dict, set, tuple, bytearray, deque)


def own_copy(value: Any) -> Any:
    """A deep copy of what steps usually give one another, to be changed at will.

    Containers, pandas and NumPy objects, pydantic models and dataclasses are copied. All else, such as a
    connection or a trained model, is the same object, and so is what cannot be copied.
    """
    if type(value) in _FROZEN:
        return value
    try:
        return copy.deepcopy(value) if _is_data(value) else value
    except BaseException as error:  # what is inside may have its own idea of copies, as a lock has
        if ends_program(error):
            raise
        return value


def _is_data(value: Any) -> bool:
    kind = type(value)
    return (
        isinstance(value, _CONTAINERS)
        or kind.__module__.partition(".")[0] in ("pandas", "numpy")
        or hasattr(kind, "model_fields")
        or (is_dataclass(value) and not isinstance(value, type))
    )
