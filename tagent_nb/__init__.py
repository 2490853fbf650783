"""Agent pipelines that live in a notebook: one cell a step, cached, resumable, a DataFrame at the end.

``import tagent_nb`` loads none of its rooms: each public name is fetched from its room when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tagent_nb.cache.store import ResultCache
    from tagent_nb.engine.entries import StepMemoryEntry
    from tagent_nb.engine.executor import PipelineExecutor
    from tagent_nb.engine.export import export_module
    from tagent_nb.engine.handle import RunHandle
    from tagent_nb.engine.inputs import feed
    from tagent_nb.engine.memory import PipelineMemory
    from tagent_nb.engine.plan import Plan, StepPlan
    from tagent_nb.engine.question import AgentResult, run_agent
    from tagent_nb.engine.state import PipelineMemoryManager, PipelineStateMachine
    from tagent_nb.errors import (
        BudgetExceededError,
        CorruptRecordError,
        CycleError,
        DefinitionError,
        EncodeError,
        FormatVersionError,
        IllegalTransitionError,
        LeaseLostError,
        MissingExtraError,
        MissingKeyError,
        ModelError,
        NotStoredError,
        OfflineMissError,
        OutputValidationError,
        PipelineValidationError,
        RejectedError,
        ResumeConflictError,
        RetryableError,
        RunCancelledError,
        RunError,
        RunFailedError,
        RunInProgressError,
        StepError,
        StepTimeoutError,
        StorageError,
        StorageUnavailableError,
        TagentError,
        TemplateError,
        UnknownModelError,
        UnknownStepError,
    )
    from tagent_nb.events import (
        ApprovalGiven,
        ApprovalRequested,
        CallRecorded,
        Event,
        FactLearned,
        InputTaken,
        MemorySaved,
        Observer,
        RunContinued,
        RunFinished,
        RunPaused,
        RunStarted,
        RunUnpaused,
        SharedDataSaved,
        StepCached,
        StepCancelled,
        StepEvent,
        StepFailed,
        StepFinished,
        StepGoesOn,
        StepProgress,
        StepRetried,
        StepSkipped,
        StepStarted,
        StepStreamed,
        StepWaiting,
        TokenUsage,
        Warned,
    )
    from tagent_nb.notebook.session import current
    from tagent_nb.pipeline.approval import ApprovalRequest, Approved, Edited, Rejected
    from tagent_nb.pipeline.budget import Budget, Share
    from tagent_nb.pipeline.conditions import (
        And,
        Condition,
        Contains,
        DataExists,
        IsEmpty,
        IsEqualTo,
        IsGreaterThan,
        IsLessThan,
        Not,
        Or,
    )
    from tagent_nb.pipeline.limits import Limit
    from tagent_nb.pipeline.models import (
        Dependency,
        DependencyType,
        ExecutionMode,
        Pipeline,
        PipelineStep,
        StepStatus,
    )
    from tagent_nb.pipeline.prices import Price
    from tagent_nb.pipeline.result import ItemResult, PipelineResult, StepResult
    from tagent_nb.pipeline.scheduler import PipelineScheduler
    from tagent_nb.pipeline.state_machine import Phase, Task, TaskBasedStateMachine, TaskStatus
    from tagent_nb.steps.base import StepContext, StepRunner
    from tagent_nb.steps.tools import step_context, tool
    from tagent_nb.steps.toolsets import tools_from
    from tagent_nb.storage.archive import BackupInfo
    from tagent_nb.storage.backend import StorageBackend
    from tagent_nb.storage.file import FileStorageBackend
    from tagent_nb.storage.memory import MemoryStorageBackend
    from tagent_nb.storage.open import open_storage, register_storage
    from tagent_nb.storage.recording import RecordStoreBackend
    from tagent_nb.storage.records import RunInfo
    from tagent_nb.storage.redis import RedisStorageBackend
    from tagent_nb.storage.restoring import RestoreInfo
    from tagent_nb.storage.sqlite import SQLiteStorageBackend

__version__ = "0.1.0"

_ROOMS = {
    "errors": (
        "BudgetExceededError",
        "CorruptRecordError",
        "CycleError",
        "DefinitionError",
        "Edited",
        "EncodeError",
        "FormatVersionError",
        "IllegalTransitionError",
        "LeaseLostError",
        "MissingExtraError",
        "MissingKeyError",
        "ModelError",
        "NotStoredError",
        "OfflineMissError",
        "OutputValidationError",
        "PipelineValidationError",
        "RejectedError",
        "ResumeConflictError",
        "RetryableError",
        "RunCancelledError",
        "RunError",
        "RunFailedError",
        "RunInProgressError",
        "StepError",
        "StepTimeoutError",
        "StorageError",
        "StorageUnavailableError",
        "TagentError",
        "TemplateError",
        "UnknownModelError",
        "UnknownStepError",
    ),
    "events": (
        "ApprovalGiven",
        "ApprovalRequested",
        "CallRecorded",
        "Event",
        "FactLearned",
        "InputTaken",
        "MemorySaved",
        "Observer",
        "RunContinued",
        "RunFinished",
        "RunPaused",
        "RunStarted",
        "RunUnpaused",
        "SharedDataSaved",
        "StepCached",
        "StepCancelled",
        "StepEvent",
        "StepFailed",
        "StepFinished",
        "StepGoesOn",
        "StepProgress",
        "StepRetried",
        "StepSkipped",
        "StepStarted",
        "StepStreamed",
        "StepWaiting",
        "TokenUsage",
        "Warned",
    ),
    "pipeline.limits": ("Limit",),
    "pipeline.models": (
        "Dependency",
        "DependencyType",
        "ExecutionMode",
        "Pipeline",
        "PipelineStep",
        "StepStatus",
    ),
    "pipeline.prices": ("Price",),
    "pipeline.result": (
        "ItemResult",
        "PipelineResult",
        "StepResult",
    ),
    "pipeline.approval": ("ApprovalRequest", "Approved", "Edited", "Rejected"),
    "pipeline.budget": ("Budget", "Share"),
    "pipeline.conditions": (
        "And",
        "Condition",
        "Contains",
        "DataExists",
        "IsEmpty",
        "IsEqualTo",
        "IsGreaterThan",
        "IsLessThan",
        "Not",
        "Or",
    ),
    "pipeline.scheduler": ("PipelineScheduler",),
    "pipeline.state_machine": (
        "Phase",
        "Task",
        "TaskBasedStateMachine",
        "TaskStatus",
    ),
    "steps.base": (
        "StepContext",
        "StepRunner",
    ),
    "steps.tools": ("step_context", "tool"),
    "steps.toolsets": ("tools_from",),
    "cache.store": ("ResultCache",),
    "storage.backend": ("StorageBackend",),
    "storage.recording": ("RecordStoreBackend",),
    "storage.records": ("RunInfo",),
    "storage.file": ("FileStorageBackend",),
    "storage.memory": ("MemoryStorageBackend",),
    "storage.open": ("open_storage", "register_storage"),
    "storage.redis": ("RedisStorageBackend",),
    "storage.archive": ("BackupInfo",),
    "storage.restoring": ("RestoreInfo",),
    "storage.sqlite": ("SQLiteStorageBackend",),
    "engine.executor": ("PipelineExecutor",),
    "engine.export": ("export_module",),
    "engine.inputs": ("feed",),
    "engine.handle": ("RunHandle",),
    "engine.entries": ("StepMemoryEntry",),
    "engine.memory": ("PipelineMemory",),
    "engine.plan": (
        "Plan",
        "StepPlan",
    ),
    "engine.question": ("AgentResult", "run_agent"),
    "engine.state": (
        "PipelineMemoryManager",
        "PipelineStateMachine",
    ),
    "notebook.session": ("current",),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "AgentResult",
    "And",
    "ApprovalGiven",
    "ApprovalRequest",
    "ApprovalRequested",
    "Approved",
    "BackupInfo",
    "Budget",
    "BudgetExceededError",
    "CallRecorded",
    "Condition",
    "Contains",
    "CorruptRecordError",
    "CycleError",
    "DataExists",
    "DefinitionError",
    "Dependency",
    "DependencyType",
    "Edited",
    "EncodeError",
    "Event",
    "ExecutionMode",
    "FactLearned",
    "FileStorageBackend",
    "FormatVersionError",
    "IllegalTransitionError",
    "InputTaken",
    "IsEmpty",
    "IsEqualTo",
    "IsGreaterThan",
    "IsLessThan",
    "ItemResult",
    "LeaseLostError",
    "Limit",
    "MemorySaved",
    "MemoryStorageBackend",
    "MissingExtraError",
    "MissingKeyError",
    "ModelError",
    "Not",
    "NotStoredError",
    "Observer",
    "OfflineMissError",
    "Or",
    "OutputValidationError",
    "Phase",
    "Pipeline",
    "PipelineExecutor",
    "PipelineMemory",
    "PipelineMemoryManager",
    "PipelineResult",
    "PipelineScheduler",
    "PipelineStateMachine",
    "PipelineStep",
    "PipelineValidationError",
    "Plan",
    "Price",
    "RecordStoreBackend",
    "RedisStorageBackend",
    "Rejected",
    "RejectedError",
    "RestoreInfo",
    "ResultCache",
    "ResumeConflictError",
    "RetryableError",
    "RunCancelledError",
    "RunContinued",
    "RunError",
    "RunFailedError",
    "RunFinished",
    "RunHandle",
    "RunInProgressError",
    "RunInfo",
    "RunPaused",
    "RunStarted",
    "RunUnpaused",
    "SQLiteStorageBackend",
    "Share",
    "SharedDataSaved",
    "StepCached",
    "StepCancelled",
    "StepContext",
    "StepError",
    "StepEvent",
    "StepFailed",
    "StepFinished",
    "StepGoesOn",
    "StepMemoryEntry",
    "StepPlan",
    "StepProgress",
    "StepResult",
    "StepRetried",
    "StepRunner",
    "StepSkipped",
    "StepStarted",
    "StepStatus",
    "StepStreamed",
    "StepTimeoutError",
    "StepWaiting",
    "StorageBackend",
    "StorageError",
    "StorageUnavailableError",
    "TagentError",
    "Task",
    "TaskBasedStateMachine",
    "TaskStatus",
    "TemplateError",
    "TokenUsage",
    "UnknownModelError",
    "UnknownStepError",
    "Warned",
    "__version__",
    "current",
    "export_module",
    "feed",
    "load_ipython_extension",
    "open_storage",
    "register_storage",
    "run_agent",
    "step_context",
    "tool",
    "tools_from",
    "unload_ipython_extension",
]


def __getattr__(name: str) -> Any:
    room = _HOME.get(name)
    if room is None:
        from tagent_nb.pipeline.foreign_words import foreign_name

        foreign = foreign_name(name)
        if foreign:
            # Of an AttributeError, ``from tagent_nb import ...`` would show nothing.
            raise ImportError(foreign, name=__name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{room}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _extension() -> Any:
    """By name, as all rooms are found from here: whoever imports the package imports no room."""
    from importlib import import_module

    return import_module(f"{__name__}.notebook.extension")


def load_ipython_extension(shell: Any) -> None:
    """What ``%load_ext tagent_nb`` does: register the magics."""
    _extension().load_ipython_extension(shell)


def unload_ipython_extension(shell: Any) -> None:
    """What ``%unload_ext tagent_nb`` does."""
    _extension().unload_ipython_extension(shell)
