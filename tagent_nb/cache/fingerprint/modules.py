"""Where code comes from: the user, an installed package, or Python itself."""

from __future__ import annotations

import functools
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

_OWN = __name__.partition(".")[0]
_CYTHON = "_cython_"
"""Compiled packages share their kinds of functions in a module of such a name, which has no file."""

_HEAP_TYPE = 1 << 9


def is_user_module(name: str | None) -> bool:
    """Whether a module is the user's own: neither installed, nor of Python, nor of this package.

    It need not be loaded, and is not loaded here.
    """
    if name is None or name == "__main__":
        return True
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top == _OWN or top.startswith(_CYTHON):
        return False
    module = sys.modules.get(name) or sys.modules.get(top)
    file = getattr(module, "__file__", None)
    if file and isinstance(file, str):  # as most have
        return not _is_installed(file)
    places = files_of(top) if module is None else _places(module)
    return not any(map(_is_installed, places))


@functools.lru_cache(maxsize=4096)
def _is_installed(place: str) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(place).parts)


def _places(module: ModuleType) -> list[str]:
    file = getattr(module, "__file__", None)
    return [str(path) for path in ([file] if file else getattr(module, "__path__", ()))]


def files_of(top: str) -> list[str]:
    """Files and folders of a module that is not loaded."""
    try:
        spec = find_spec(top)
    except ValueError:  # other code put a module without a spec in its place
        return []
    if spec is None:
        return []
    places = spec.submodule_search_locations or ([spec.origin] if spec.origin else [])
    return list(places)


def is_user_class(kind: type) -> bool:
    """Whether a class is the user's own."""
    if kind.__module__ == "builtins":
        # What exec defines in a namespace without __name__ says it is built in.
        return bool(kind.__flags__ & _HEAP_TYPE)
    # Of some compiled classes it is a descriptor.
    return isinstance(kind.__module__, str) and is_user_module(kind.__module__)


@functools.lru_cache(maxsize=1024)
def package_version(top: str) -> str:
    """The version of the installed package that brings the module ``top``; ``"unknown"`` without one.

    Asked of the installation, not of the module: a step that imports a package itself must have
    the same fingerprint before and after that import.
    """
    from importlib import metadata

    try:
        return metadata.version(top)
    except metadata.PackageNotFoundError:
        owners = metadata.packages_distributions().get(top, ())
        return ", ".join(sorted({metadata.version(owner) for owner in owners})) or "unknown"


def package_of(module: object) -> str:
    """The installed package that brings a module; empty for Python's own modules and for this package."""
    top = module.partition(".")[0] if isinstance(module, str) else ""
    return "" if top in sys.stdlib_module_names or top == _OWN or top.startswith(_CYTHON) else top


def name_of(thing: Any) -> str:
    """The module and name of a function, class or type, as in ``"statistics.mean"``.

    What this package defines is named by the module in which it was when fingerprints first named it, and by
    the package alone where it came later: fingerprints must not change when modules of ours move.
    """
    module, name = getattr(thing, "__objclass__", thing).__module__, thing.__qualname__
    if isinstance(module, str) and module.partition(".")[0] == _OWN and module not in _FIXED:
        first = _FIRST_MODULE.get(name.partition(".")[0])
        module = f"{_OWN}.{first}" if first else _OWN
    return f"{module}.{name}"


_FIXED = (f"{_OWN}.errors", f"{_OWN}.events")
_FIRST_MODULE = {
    name: module
    for module, names in {
        "cache.store": "ResultCache",
        "engine.entries": "StepMemoryEntry",
        "engine.executor": "PipelineExecutor",
        "engine.export": "export_module",
        "engine.handle": "RunHandle",
        "engine.inputs": "feed",
        "engine.memory": "PipelineMemory",
        "engine.plan": "Plan StepPlan",
        "engine.question": "AgentResult run_agent",
        "engine.state": "PipelineMemoryManager PipelineStateMachine",
        "notebook.session": "current",
        "pipeline.approval": "ApprovalRequest Approved Edited Rejected",
        "pipeline.budget": "Budget Share",
        "pipeline.conditions": "And Condition Contains DataExists IsEmpty IsEqualTo IsGreaterThan IsLessThan "
        "Not Or",
        "pipeline.kinds": "Dependency DependencyType ExecutionMode StepStatus",
        "pipeline.limits": "Limit",
        "pipeline.models": "Pipeline",
        "pipeline.prices": "Price",
        "pipeline.result": "ItemResult PipelineResult StepResult",
        "pipeline.scheduler": "PipelineScheduler",
        "pipeline.state_machine": "Phase Task TaskBasedStateMachine TaskStatus",
        "pipeline.step": "PipelineStep",
        "steps.base": "StepContext StepRunner",
        "steps.remembering": "remember",
        "steps.tools": "step_context tool",
        "steps.toolsets": "tools_from",
        "storage.archive": "BackupInfo",
        "storage.backend": "StorageBackend",
        "storage.file": "FileStorageBackend",
        "storage.memory": "MemoryStorageBackend",
        "storage.open": "open_storage register_storage",
        "storage.recording": "RecordStoreBackend",
        "storage.records": "RunInfo",
        "storage.redis": "RedisStorageBackend",
        "storage.restoring": "RestoreInfo",
        "storage.sqlite": "SQLiteStorageBackend",
    }.items()
    for name in names.split()
}
