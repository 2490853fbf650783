"""Every exception that tagent-nb raises on purpose.

The tree (two names after ``:`` mean that the built-in is a base as well)::

    TagentError
    ├── DefinitionError : ValueError        a step or pipeline is not written right
    │   ├── PipelineValidationError         all problems of a pipeline at once
    │   ├── CycleError                      steps that wait for each other
    │   ├── TemplateError                   a goal or condition cannot be read or rendered
    │   └── UnknownStepError : KeyError     a name that the pipeline does not have
    ├── RunError                            something went wrong while a pipeline ran
    │   ├── IllegalTransitionError          a state machine was asked for a forbidden step
    │   ├── RunInProgressError              the pipeline is running already
    │   ├── RunCancelledError               the run was stopped by its user
    │   ├── RunFailedError                  what ``%tagent_run --strict`` raises
    │   ├── StepError                       a step cannot succeed, however often it is tried
    │   │   ├── StepTimeoutError : TimeoutError   one attempt took longer than ``timeout``
    │   │   ├── OutputValidationError : ValueError  an answer does not match its schema
    │   │   ├── BudgetExceededError         the budget of the run or the step is used up
    │   │   ├── RejectedError               a person refused what the step gave
    │   │   ├── OfflineMissError            ``offline=True`` and the answer is not cached
    │   │   └── RetryableError              a failure that another attempt may mend
    │   └── ResumeConflictError             recorded steps no longer match their definition
    ├── ModelError                          a model cannot be used
    │   ├── UnknownModelError : ValueError  no such provider or model name
    │   ├── MissingKeyError                 the provider's key is not set
    │   └── MissingExtraError : ImportError an optional package is not installed
    ├── EncodeError : TypeError             a value that cannot be stored, with the path to it
    └── StorageError                        state could not be written or read
        ├── NotStoredError : KeyError       no such pipeline or run
        ├── CorruptRecordError              stored bytes are damaged
        ├── FormatVersionError              stored by a newer version of tagent-nb
        ├── StorageUnavailableError         the folder, file or server cannot be used
        └── LeaseLostError                  another process carries this run on

Messages name the thing, the place and the remedy. Nothing in this module imports from the package.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class TagentError(Exception):
    """Base of every error that tagent-nb raises on purpose."""

    def __str__(self) -> str:
        # KeyError would show the repr of its message; all of ours read as sentences.
        return str(self.args[0]) if self.args else type(self).__name__


class DefinitionError(TagentError, ValueError):
    """A step or a pipeline is not written right."""


class PipelineValidationError(DefinitionError):
    """A pipeline with one or more problems; ``errors`` holds one sentence for each."""

    def __init__(self, pipeline: str, errors: Sequence[str]) -> None:
        self.pipeline = pipeline
        self.errors = list(errors)
        lines = "\n".join(f"  - {error}" for error in self.errors)
        count = "1 problem" if len(self.errors) == 1 else f"{len(self.errors)} problems"
        super().__init__(f"Pipeline {pipeline!r} cannot run: {count}\n{lines}")


class CycleError(DefinitionError):
    """Steps that wait for each other; ``path`` starts and ends with the same name."""

    def __init__(self, path: Sequence[str]) -> None:
        self.path = list(path)
        super().__init__(
            f"Circular dependency: {' -> '.join(self.path)}. "
            "Remove one of these dependencies, so that one of the steps can start first."
        )


class TemplateError(DefinitionError):
    """A goal or a condition that cannot be read or rendered."""


class UnknownStepError(DefinitionError, KeyError):
    """A step name that the pipeline does not have."""


class RunError(TagentError):
    """Something went wrong while a pipeline ran."""


class IllegalTransitionError(RunError):
    """A state machine was asked for a transition that its phase does not allow."""


class RunInProgressError(RunError):
    """The same executor is running already."""


class RunCancelledError(RunError):
    """The run was stopped by its user; it can be resumed."""


class RunFailedError(RunError):
    """A run with ``--strict`` did not end with success, or was refused: what else the cell says is skipped.

    Also a question of :func:`~tagent_nb.run_agent` that got no answer.

    Args:
        message: What kept it from success.
        result: The result; ``None`` if there is none, since the run was refused or interrupted.
    """

    def __init__(self, message: str, result: object = None) -> None:
        self.result = result
        super().__init__(message)

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the frames are ours and say nothing. It counts as an error all the same."""
        return [f"{type(self).__name__}: {self}"]


class StepError(RunError):
    """A step failed in a way that another attempt cannot mend (but see the two that say so)."""


class StepTimeoutError(StepError, TimeoutError):
    """One attempt of a step took longer than its ``timeout`` (seconds). Another may be faster."""


class OutputValidationError(StepError, ValueError):
    """A step's answer does not match its ``output_schema``."""


class RejectedError(StepError):
    """A person refused what a step gave.

    Args:
        message: The reason of the rejection.
        retry: Whether another try was requested.
    """

    def __init__(self, message: str, *, retry: bool = False) -> None:
        self.retry = retry
        super().__init__(message)


class OfflineMissError(StepError):
    """The run is offline and the step's answer is not in the cache."""


class BudgetExceededError(StepError):
    """A call would exceed the budget of its run or its step. Resumed with a higher one, the run goes on.

    Args:
        message: Who, what is spent, the limit and the remedy.
        step: The step that wanted to call.
        measure: ``"usd"``, ``"tokens"`` or ``"requests"``.
        spent: What was spent before.
        limit: Most that may be spent.
    """

    def __init__(
        self, message: str, *, step: str = "", measure: str = "usd", spent: float = 0.0, limit: float = 0.0
    ) -> None:
        self.step = step
        self.measure = measure
        self.spent = spent
        self.limit = limit
        super().__init__(message)


class RetryableError(StepError):
    """A failure that another attempt may mend.

    Args:
        message: What happened.
        retry_after: Seconds that the other side asked to wait, or ``None``.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class ResumeConflictError(RunError):
    """Recorded steps no longer match their definition; ``changed`` maps step to what changed."""

    def __init__(self, message: str, changed: dict[str, list[str]]) -> None:
        self.changed = changed
        super().__init__(message)


class ModelError(TagentError):
    """A model cannot be used."""


class UnknownModelError(ModelError, ValueError):
    """No such provider or model name."""


class MissingKeyError(ModelError):
    """The provider's key is not set."""


class MissingExtraError(ModelError, ImportError):
    """An optional package is not installed."""


class EncodeError(TagentError, TypeError):
    """A value that cannot be stored; ``path`` leads to it, as in ``output.items[3].fn``."""

    def __init__(self, path: str, what: str) -> None:
        self.path = path
        self.what = what
        super().__init__(f"{path}: {what}")


class StorageError(TagentError):
    """State could not be written or read."""


class NotStoredError(StorageError, KeyError):
    """No such pipeline, run or value in this storage."""


class CorruptRecordError(StorageError):
    """Stored bytes are damaged; nothing was changed."""


class FormatVersionError(StorageError):
    """Stored by a newer version of tagent-nb; nothing was changed."""


class StorageUnavailableError(StorageError):
    """The folder, file or server cannot be used now."""


class LeaseLostError(StorageError):
    """Another process carries this run on; what this one recorded until then is kept."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A hint such as ``" Did you mean 'load'?"``, or an empty string when nothing is close."""
    from difflib import get_close_matches  # not in what a light import loads

    close = get_close_matches(str(name), [str(k) for k in names], n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
