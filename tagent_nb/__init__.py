"""Agent pipelines that live in a notebook: one cell a step, cached, resumable, a DataFrame at the end.

``import tagent_nb`` loads none of its packages: each public name is fetched from its module when it is first
used.
"""

from typing import Any

from tagent_nb.lazy_face import face

__version__ = "0.1.0"

_load, _names, _public = face(
    __name__,
    {
        "cache": "ResultCache",
        "engine": (
            "AgentResult PipelineExecutor PipelineMemory PipelineMemoryManager PipelineStateMachine Plan "
            "RunHandle StepMemoryEntry StepPlan run_agent"
        ),
        "errors": (
            "BudgetExceededError CorruptRecordError CycleError DefinitionError EncodeError "
            "FormatVersionError IllegalTransitionError LeaseLostError MissingExtraError MissingKeyError "
            "ModelError NotStoredError OfflineMissError OutputValidationError PipelineValidationError "
            "RejectedError ResumeConflictError RetryableError RunCancelledError RunError RunFailedError "
            "RunInProgressError StepError StepTimeoutError StorageError StorageUnavailableError "
            "TagentError TemplateError UnknownModelError UnknownStepError"
        ),
        "events": (
            "ApprovalGiven ApprovalRequested BatchCancelled BatchPrepared BatchSubmitted CallRecorded Event "
            "FactLearned InputTaken MemorySaved Observer RunContinued RunFinished RunPaused RunResumed "
            "RunStarted RunUnpaused SharedDataSaved StepCached StepCancelled StepEvent StepFailed "
            "StepFinished StepGoesOn StepProgress StepRetried StepSkipped StepStarted StepStreamed "
            "StepUnblocked StepWaiting TokenUsage Warned"
        ),
        "export": "export_module feed",
        "notebook": "current",
        "pipeline": (
            "And ApprovalRequest Approved Budget Condition Contains DataExists Dependency DependencyType "
            "Edited ExecutionMode IsEmpty IsEqualTo IsGreaterThan IsLessThan Limit Not Or Phase Pipeline "
            "PipelineScheduler PipelineStep Price Rejected Share StepStatus Task TaskBasedStateMachine "
            "TaskStatus"
        ),
        "results": "ItemResult PipelineResult StepResult",
        "runners": "StepContext StepRunner step_context tool tools_from",
        "storage": (
            "BackupInfo FileStorageBackend MemoryStorageBackend RecordStoreBackend RedisStorageBackend "
            "RestoreInfo RunInfo SQLiteStorageBackend StorageBackend open_storage register_storage"
        ),
    },
)
__all__ = [*_public, "__version__", "load_ipython_extension", "unload_ipython_extension"]


def __getattr__(name: str) -> Any:
    try:
        return _load(name)
    except AttributeError:
        from tagent_nb.foreign_words import foreign_name

        foreign = foreign_name(name)
        if foreign:
            # Of an AttributeError, ``from tagent_nb import ...`` would show nothing.
            raise ImportError(foreign, name=__name__) from None
        raise


def __dir__() -> list[str]:
    return sorted({*_names(), *__all__})


def _notebook() -> Any:
    """By name, as all packages are found from here: importing this one imports none of them."""
    from importlib import import_module

    return import_module(f"{__name__}.notebook")


def load_ipython_extension(shell: Any) -> None:
    """What ``%load_ext tagent_nb`` does: register the magics."""
    _notebook().load_ipython_extension(shell)


def unload_ipython_extension(shell: Any) -> None:
    """What ``%unload_ext tagent_nb`` does."""
    _notebook().unload_ipython_extension(shell)
