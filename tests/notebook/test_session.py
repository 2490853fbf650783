"""The objects behind the magics: pipelines, runs, results, and what options name."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

import tagent_nb
from tagent_nb.errors import DefinitionError, NotStoredError, PipelineValidationError, RunInProgressError
from tagent_nb.events import Event
from tagent_nb.notebook.session import Session
from tagent_nb.pipeline import ExecutionMode, Pipeline, PipelineStep, StepStatus
from tagent_nb.storage import MemoryStorageBackend


class Sentiment(BaseModel):
    label: str


@pytest.fixture
def session(tmp_path: Path) -> Session:
    namespace: dict[str, Any] = {"Sentiment": Sentiment, "module": SimpleNamespace(Inner=Sentiment), "n": 3}
    return Session(namespace, tmp_path / ".tagent")


def cell(name: str, code: str, **options: Any) -> PipelineStep:
    return PipelineStep.from_cell(name, code, python=True, **options)


def test_a_session_begins_without_a_pipeline_and_says_how_to_get_one(session: Session) -> None:
    with pytest.raises(DefinitionError, match="Begin with: %tagent_pipeline NAME"):
        _ = session.pipeline
    assert repr(session) == "<Session: pipelines none; current None>"


def test_names_switch_between_pipelines_and_options_not_given_stay(session: Session) -> None:
    first = session.use(
        "a",
        model="test",
        description="d",
        default_mode=ExecutionMode.CONCURRENT,
        max_concurrency=2,
        cached=False,
    )
    second = session.use("b")
    assert session.pipeline is second
    assert session.use("a") is first
    space = session.workspace
    assert (first.model, first.description, first.default_mode) == ("test", "d", ExecutionMode.CONCURRENT)
    assert (space.max_concurrency, space.cached) == (2, False)
    session.use("a", model="other", cached=True)
    assert (first.model, space.cached) == ("other", True)
    assert repr(session) == "<Session: pipelines a, b; current a>"


def test_a_deleted_pipeline_leaves_the_current_one_current_unless_it_was_that(session: Session) -> None:
    for name in ("first", "second", "third"):
        session.use(name)
    session.delete("first")
    assert (list(session.workspaces), session.pipeline.name) == (["second", "third"], "third")
    session.delete("third")
    assert (list(session.workspaces), session.pipeline.name) == (["second"], "second")


def test_what_is_not_allowed_changes_nothing(session: Session) -> None:
    session.use("a")
    with pytest.raises(DefinitionError, match="max_concurrency"):
        session.use("b", max_concurrency=0)
    with pytest.raises(DefinitionError, match="empty"):
        session.use(" ")
    assert list(session.workspaces) == ["a"]


def test_runs_go_to_the_folder_beside_the_notebook(session: Session, tmp_path: Path) -> None:
    session.use("a")
    session.put(cell("load", "1"))
    session.start().result()
    assert (tmp_path / ".tagent" / "runs").is_dir()
    assert session.cache.stats().entries == 1


def test_one_storage_is_shared_by_pipelines_and_another_can_be_given(
    session: Session, tmp_path: Path
) -> None:
    session.use("a")
    first = session.workspace.storage
    session.use("b")
    assert session.workspace.storage is first
    session.use("b", storage=str(tmp_path / "other"))
    assert session.workspace.storage is not first
    memory = MemoryStorageBackend()
    session.use("c", storage=memory)
    assert session.workspace.storage is memory
    session.namespace.update(mine=memory, runs=7)  # type: ignore[attr-defined]
    assert session.storage("mine") is memory
    assert (session.storage("runs"), session.storage(None)) == ("runs", None)


def test_a_recording_is_named_and_taken_back(session: Session) -> None:
    session.use("a", recording="calls.json")
    session.use("a", model="test")
    assert session.workspace.recording == "calls.json"
    session.use("a", recording="none")
    assert session.workspace.recording is None


class Watching:
    """What a watcher of one run received."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.outcomes: list[Any] = []

    def __call__(self, event: Event, /) -> None:
        self.events.append(event)

    def end(self, outcome: Any) -> None:
        self.outcomes.append(outcome)


def test_a_run_gives_its_result_and_its_states(session: Session) -> None:
    session.use("a", cached=False)
    session.put(cell("load", "[1, 2]"))
    session.put(cell("total", "sum(load) + n"))
    assert session.result is None
    assert session.workspace.states() is None
    seen: list[Any] = []
    watching = Watching()
    handle = session.start(observers=[seen.append], watches=[lambda: watching], max_concurrency=1)
    result = handle.result()
    assert result["total"] == 6
    assert watching.outcomes == [result]
    assert watching.events == seen
    assert type(seen[-1]).__name__ == "RunFinished"
    assert session.result is not None
    assert session.result.run_id == result.run_id
    states = session.workspace.states()
    assert states is not None
    assert {name: state.status for name, state in states.items()} == {
        "load": StepStatus.COMPLETED,
        "total": StepStatus.COMPLETED,
    }


def test_a_redefined_step_has_no_state_until_the_next_run(session: Session) -> None:
    session.use("a")
    session.put(cell("load", "1"))
    session.start().result()
    session.put(cell("load", "2"))
    assert session.workspace.states() == {}
    assert session.start().result()["load"] == 2
    assert "load" in (session.workspace.states() or {})


def test_a_refused_run_keeps_the_last_result(session: Session) -> None:
    session.use("a")
    session.put(cell("load", "1"))
    first = session.start().result()
    session.put(PipelineStep("report", "{{ nowhere }}"))
    watching = Watching()
    session.workspace.watches.append(lambda: watching)
    with pytest.raises(PipelineValidationError):
        session.start().result()
    assert isinstance(watching.outcomes[0], PipelineValidationError)
    session.workspace.watches.clear()
    assert session.result is not None
    assert session.result.run_id == first.run_id
    with pytest.raises(PipelineValidationError):
        session.start().result()


def test_a_pipeline_runs_once_at_a_time_and_others_beside_it(session: Session) -> None:
    gate = threading.Event()
    session.namespace["gate"] = gate  # type: ignore[index]
    session.use("a", cached=False)
    session.put(cell("wait", "gate.wait(10)"))
    slow = session.workspace
    handle = session.start()
    assert slow.running
    with pytest.raises(RunInProgressError, match="press Stop"):
        session.start()
    with pytest.raises(RunInProgressError, match="storage"):
        session.use("a", storage=MemoryStorageBackend())
    with pytest.raises(RunInProgressError, match="is running"):
        session.adopt(Pipeline("a"))
    session.use("b")
    session.put(cell("quick", "5"))
    assert session.start().result()["quick"] == 5
    gate.set()
    assert handle.result(10)["wait"] is True
    assert not slow.running


def test_a_pipeline_made_in_python_can_be_adopted(session: Session) -> None:
    session.use("a")
    storage = session.workspace.storage
    made = Pipeline("a").put(cell("load", "1"))
    space = session.adopt(made)
    assert session.pipeline is made
    assert space.storage is storage
    other = session.adopt(Pipeline("b"))
    assert other.storage is storage
    assert session.pipeline.name == "b"


def test_the_last_result_comes_from_storage_in_a_new_kernel(session: Session) -> None:
    session.use("a")
    session.put(PipelineStep.from_cell("load", "{'label': 'x'}", python=True, output_schema=Sentiment))
    with pytest.raises(NotStoredError, match="'a' has not run yet. Run it with %tagent_run"):
        session.last_result()
    first = session.start().result()
    assert session.last_result().run_id == first.run_id
    later = Session({"Sentiment": Sentiment}, session.folder)
    later.use("a")
    result = later.last_result()
    assert result.run_id == first.run_id
    assert result["load"] == Sentiment(label="x")
    assert later.stored_result(first.run_id).run_id == first.run_id


def test_schemas_are_found_by_name_in_the_namespace_and_in_steps(session: Session) -> None:
    assert session.schema("Sentiment") is Sentiment
    assert session.schema("module.Inner") is Sentiment
    assert session.schemas() == {"Sentiment": Sentiment}

    class Hidden(BaseModel):
        x: int

    session.use("a")
    session.put(PipelineStep("b", "go", output_schema=Hidden))
    assert session.schemas()["Hidden"] is Hidden


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Sentimnt", "There is no schema 'Sentimnt'. Did you mean 'Sentiment'?"),
        ("module.Nothing", "There is no schema 'module.Nothing'."),
        ("n", "Schema 'n' is of type int, not a pydantic model. Write: class n\\(pydantic.BaseModel\\)"),
        ("Path", "Schema 'Path' is the class Path"),
    ],
)
def test_a_schema_that_is_none_says_what_to_write(session: Session, name: str, message: str) -> None:
    session.namespace["Path"] = Path  # type: ignore[index]
    with pytest.raises(DefinitionError, match=message):
        session.schema(name)


def test_a_model_option_may_name_a_model_object(session: Session) -> None:
    model = SimpleNamespace(model_name="fake")
    session.namespace["mine"] = model  # type: ignore[index]
    assert session.model("mine") is model
    assert session.model("n") == "n"
    assert session.model("openai:gpt") == "openai:gpt"
    assert session.model(None) is None


def test_current_is_one_session_and_needs_no_notebook() -> None:
    code = "import tagent_nb; a = tagent_nb.current(); assert a is tagent_nb.current(); print(a)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "<Session: pipelines none; current None>"
    assert isinstance(tagent_nb.current(), Session)


def test_an_approver_that_is_none_is_refused_when_it_is_set(tmp_path: Path) -> None:
    session = Session(folder=tmp_path)
    with pytest.raises(DefinitionError, match="approver must be a function .*, not 'yes'"):
        session.approver = "yes"  # type: ignore[assignment]
    assert session.approver is None
    session.approver = "wait"
    assert session.approver == "wait"
