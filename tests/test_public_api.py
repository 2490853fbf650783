"""The public names: all there, none by accident, and cheap until they are used."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tagent_nb
from tests.stubs import faces, stub

ROOT = Path(tagent_nb.__file__).parents[1]


def words(text: str) -> list[str]:
    return text.split()


ERRORS = words(
    """
    BudgetExceededError CorruptRecordError CycleError DefinitionError EncodeError FormatVersionError
    IllegalTransitionError LeaseLostError MissingExtraError MissingKeyError ModelError
    NotStoredError OfflineMissError OutputValidationError PipelineValidationError
    RejectedError ResumeConflictError RetryableError RunCancelledError RunError RunFailedError
    RunInProgressError StepError StepTimeoutError StorageError StorageUnavailableError TagentError
    TemplateError UnknownModelError UnknownStepError
    """
)
EVENTS = words(
    """
    ApprovalGiven ApprovalRequested BatchCancelled BatchPrepared BatchSubmitted CallRecorded
    Event FactLearned InputTaken MemorySaved Observer RunResumed RunContinued RunFinished RunPaused RunStarted
    RunUnpaused
    SharedDataSaved StepCached StepCancelled StepEvent StepFailed StepFinished StepGoesOn StepProgress
    StepRetried StepSkipped StepStarted StepStreamed StepUnblocked StepWaiting Warned
    """
)
DEFINITIONS = words(
    """
    And Budget Condition Contains DataExists Dependency DependencyType ExecutionMode IsEmpty IsEqualTo
    IsGreaterThan IsLessThan Limit Not Or Pipeline PipelineStep Price Share StepContext StepRunner StepStatus
    step_context tool tools_from
    """
)
RUNS = words(
    """
    ApprovalRequest Approved Edited Rejected
    ItemResult Phase PipelineExecutor PipelineMemory PipelineMemoryManager PipelineResult
    PipelineScheduler PipelineStateMachine Plan ResultCache RunHandle StepMemoryEntry StepPlan StepResult
    AgentResult run_agent Task TaskBasedStateMachine TaskStatus TokenUsage current export_module feed
    """
)
STORAGE = words(
    """
    BackupInfo FileStorageBackend MemoryStorageBackend RecordStoreBackend RedisStorageBackend RestoreInfo
    RunInfo SQLiteStorageBackend StorageBackend open_storage register_storage
    """
)
MODULE = ["__version__", "load_ipython_extension", "unload_ipython_extension"]


def fresh(code: str) -> str:
    """What ``code`` prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_are_pinned() -> None:
    """A name that comes or goes is a decision, written here and in the changelog."""
    assert sorted(tagent_nb.__all__) == sorted([*ERRORS, *EVENTS, *DEFINITIONS, *RUNS, *STORAGE, *MODULE])


@pytest.mark.parametrize("name", tagent_nb.__all__)
def test_every_public_name_can_be_imported_and_says_what_it_is(name: str) -> None:
    value = getattr(tagent_nb, name)
    if name != "__version__":
        assert value.__doc__


def test_type_checkers_see_the_same_names_as_the_lazy_lookup() -> None:
    """Each package has one table of what others import from it; its stub is made from that table, and each
    name is there."""
    tables = faces()
    assert {path.parent.name for path in tables} >= {"tagent_nb", "pipeline", "storage", "engine", "runners"}
    for path, table in tables.items():
        assert path.with_suffix(".pyi").read_text(encoding="utf-8") == stub(path, table), (
            f"{path.parent.name}: run python -m tests.stubs"
        )
        package = importlib.import_module(".".join(path.parent.relative_to(ROOT).parts))
        names = {name for names in table.values() for name in names}
        assert names <= set(package.__all__)
        for name in names:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="has no attribute 'nothing_of_this_name'"):
            _ = package.nothing_of_this_name
        assert names <= set(dir(package))


def test_every_error_and_event_that_exists_is_public() -> None:
    for room, base, public in (("errors", "TagentError", ERRORS), ("events", "Event", EVENTS)):
        module = importlib.import_module(f"tagent_nb.{room}")
        kinds = {
            name
            for name, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, getattr(module, base)) and name[0] != "_"
        }
        assert kinds <= set(public)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Pipelin'"):
        tagent_nb.Pipelin  # noqa: B018


def test_dir_lists_the_public_names() -> None:
    """Completion in a notebook knows names that were not fetched yet."""
    assert set(tagent_nb.__all__) <= set(dir(tagent_nb))


HEAVY = words(
    "IPython anywidget diskcache graphviz ipywidgets jinja2 numpy pandas pyarrow pydantic pydantic_ai redis"
)


def test_import_loads_nothing_heavy() -> None:
    loaded = fresh("import sys, tagent_nb; print(*sys.modules)").split()
    assert {name.partition(".")[0] for name in loaded}.isdisjoint(HEAVY)


def test_defining_a_pipeline_loads_no_pandas_notebook_or_agent_library() -> None:
    """What a definition needs (a schema, a template) may be loaded; what only a run needs may not."""
    code = (
        "import sys, tagent_nb\n"
        "p = tagent_nb.Pipeline('p').step('a', 'Say hello').step('b', 'Repeat {{ a }}')\n"
        "assert p.validate() == [], p.validate()\n"
        "print(*sys.modules)"
    )
    loaded = {name.partition(".")[0] for name in fresh(code).split()}
    assert loaded.isdisjoint(
        {"IPython", "ipywidgets", "pandas", "pyarrow", "pydantic_ai", "diskcache", "redis"}
    )


def test_the_package_is_typed() -> None:
    assert (Path(tagent_nb.__file__).parent / "py.typed").is_file()


def test_the_package_can_be_looked_at_without_its_extras() -> None:
    """``from tagent_nb import *``, ``help`` and ``inspect.getmembers`` need no extra."""
    program = (
        "import sys; sys.modules.update(redis=None, distributed=None, xllamacpp=None, mcp=None)\n"
        "import inspect, pydoc, tagent_nb\n"
        "from tagent_nb import *\n"
        "assert {name for name, _ in inspect.getmembers(tagent_nb)} >= set(tagent_nb.__all__)\n"
        "assert 'PipelineExecutor' in pydoc.render_doc(tagent_nb)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
