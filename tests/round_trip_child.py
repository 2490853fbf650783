"""One session of a user's script: ``python round_trip_child.py FOLDER MODE``.

FOLDER has the user's modules. It prints, as JSON, each step's value with the types of all its parts, and
the warnings. MODE ``run`` runs twice in one process, the second time from the cache; ``later`` runs again and
reads the recorded run.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from tagent_nb import PipelineExecutor, PipelineResult, ResultCache, open_storage


def typed(value: Any) -> str:
    """A value as text that names the class of each of its parts."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, Enum):
        return f"{name}({value.name}={typed(value.value)})"
    if hasattr(kind, "model_fields"):
        inside = {**value.__dict__, **(value.__pydantic_extra__ or {})}
        unset = sorted(inside.keys() - value.model_fields_set)
        return f"{name}({typed(inside)}, unset {unset})"
    if dataclasses.is_dataclass(kind):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
        return f"{name}({typed(parts)})"
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return f"{kind.__qualname__}({typed(value._asdict())})"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{typed(key)}: {typed(part)}" for key, part in value.items())
        if isinstance(value, Counter):
            inner = ", ".join(sorted(inner.split(", ")))
        factory = value.default_factory if isinstance(value, defaultdict) else None
        return f"{name}({{{inner}}}{factory or ''})"
    if isinstance(value, set | frozenset):
        return f"{name}({sorted(map(typed, value))})"
    if isinstance(value, list | tuple | deque) or name.startswith("builtins.dict_"):
        return f"{name}([{', '.join(map(typed, value))}])"
    if name.startswith("pandas.") and name.endswith("DataFrame"):
        columns = [typed(value.iloc[:, place]) for place in range(value.shape[1])]
        return f"{name}({typed(value.index)}, {typed(value.columns)}, {columns})"
    if name.startswith("pandas.") and name.endswith("Series"):
        return f"{name}({typed(value.index)}, {list(map(typed, value))}, {value.dtype!r}, {value.name!r})"
    if name.startswith("pandas.") and name.endswith("Index"):
        frequency = getattr(value, "freq", None)
        return f"{name}({list(value)}, {value.dtype!r}, {list(value.names)}, {frequency})"
    return f"{name}({value!r})"


assert OrderedDict  # a kind of Mapping, as defaultdict and Counter are


def values_of(result: PipelineResult) -> dict[str, str]:
    """The values of all steps, items of mapped ones included."""
    assert result.success, [step.error for step in result.steps.values()]
    return {name: typed(result.step_outputs[name]) for name in result.step_outputs}


def main() -> None:
    """Do what the command line says."""
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    sys.path.insert(0, str(folder))
    import script

    storage, cache = open_storage(str(folder / "runs")), ResultCache(folder / "cache")
    executor = PipelineExecutor(
        script.pipeline,
        storage=storage,
        cache=cache,
        namespace=getattr(script, "namespace", None),
        model=getattr(script, "model", None),
    )
    report: dict[str, Any] = {}
    if mode == "later":
        earliest = asyncio.run(executor.history())[0]
        report["recorded"] = values_of(asyncio.run(executor.load_result(earliest.run_id)))
    first = executor.run()
    report["first"], report["warnings"] = values_of(first), list(first.warnings)
    report["steps"] = {name: step.status.value for name, step in first.steps.items()}
    if mode == "run":
        again = executor.run()
        report["cached"] = values_of(again)
        report["steps"] = {name: step.status.value for name, step in again.steps.items()}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
