"""A name that is no step but a variable is an input: taken when a run begins, compared by value, recorded."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from kernels import Kernel
from pydantic import BaseModel
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from tagent_nb import (
    DefinitionError,
    InputTaken,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    PipelineStep,
    PipelineValidationError,
    ResultCache,
    ResumeConflictError,
    StepStatus,
)
from tagent_nb.cli import main
from tagent_nb.display import definition_table, step_card
from tagent_nb.export import export_module
from tagent_nb.graph import LiveGraph, live_style, to_dot, to_svg
from tagent_nb.notebook.magics.explain import explain_step
from tagent_nb.notebook.magics.tables import plan_table
from tagent_nb.notebook.panel.details import details_html
from tagent_nb.notebook.session import Session


def cell(name: str, code: str, **options: Any) -> PipelineStep:
    return PipelineStep.from_cell(name, code, python=True, **options)


def frame() -> pd.DataFrame:
    return pd.DataFrame({"text": ["Great", "Bad"], "stars": [5, 1]}, index=["a", "b"])


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline("reviews").put(cell("each", "item['stars'] * 10", map_over="df"))


@pytest.fixture
def session(tmp_path: Path) -> Session:
    made = Session({"df": frame(), "topic": "cats", "pd": pd, "limit": 3}, tmp_path / ".tagent")
    made.use("reviews", model="test")
    return made


# -- where a step may name one ------------------------------------------------------------------------


def test_a_step_maps_over_a_variable_as_over_a_step_that_returns_it(pipeline: Pipeline) -> None:
    result = PipelineExecutor(pipeline, namespace={"df": frame()}).run()
    made = Pipeline("other").put(cell("df", "frame()")).put(cell("each", "item['stars'] * 10", map_over="df"))
    same = PipelineExecutor(made, namespace={"frame": frame}).run()
    assert result["each"] == same["each"] == [50, 10]
    pd.testing.assert_frame_equal(result.output_frame("each"), same.output_frame("each"))
    pd.testing.assert_frame_equal(result.inputs["df"], frame())
    assert list(result.steps) == ["each"]


class Review(BaseModel):
    text: str
    stars: int


VALUES = {
    "a list": ["x", "y"],
    "a dict": {"a": 1},
    "text": "cats",
    "a number": 3,
    "nothing": None,
    "false": False,
    "a model": Review(text="Great", stars=5),
    "models": [Review(text="Great", stars=5)],
    "a frame": frame(),
    "a column": frame()["stars"],
}


@pytest.mark.parametrize("kind", VALUES)
def test_every_kind_of_data_is_an_input(kind: str) -> None:
    flow = Pipeline("flow")

    @flow.task
    def same(value: Any) -> Any:
        return value

    value_read = PipelineExecutor(flow, namespace={"value": VALUES[kind]}).run()["same"]
    assert type(value_read) is type(VALUES[kind])
    assert repr(value_read) == repr(VALUES[kind])


def test_goal_condition_parameter_dependency_and_field_name_inputs() -> None:
    prompts: list[str] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        prompts.append(str(messages))
        return ModelResponse(parts=[TextPart("fine")])

    model = FunctionModel(answer)
    flow = Pipeline("flow", model=model).step("ask", "Write about {{ topic }} and {{ settings.mood }}.")
    flow.put(cell("some", "1", when="rows | length > 1 and settings.mood == 'glad'"))
    flow.put(cell("never", "1", when="rows | length > 2"))
    flow.put(cell("cell", "topic.upper()", depends_on=["topic"]))
    flow.put(cell("maybe", "1", depends_on=["rows:optional", "gone:optional"]))

    @flow.task
    def count(rows: list[int], limit: int = 7) -> int:
        return len(rows) + limit

    space = {"topic": "cats", "rows": [1, 2], "settings": {"mood": "glad"}, "limit": 99}
    result = PipelineExecutor(flow, namespace=space).run()
    assert result.success
    assert "<data>cats</data> and <data>glad</data>" in prompts[0]
    assert (result["some"], result["cell"]) == (1, "CATS")
    assert result.steps["never"].status is StepStatus.SKIPPED
    # A default is a value: only what is given as an input comes before it.
    assert result["count"] == 9
    assert PipelineExecutor(flow, namespace=space).run(inputs={"limit": 1})["count"] == 3
    assert flow.inputs_of("maybe") == []
    assert set(result.inputs) == {"topic", "settings", "rows"}


def test_values_are_given_to_the_pipeline_to_a_run_or_found_as_variables(pipeline: Pipeline) -> None:
    """The nearest counts: the run's own, then the pipeline's, then a variable."""
    space = {"df": frame().head(0)}
    pipeline.give(df=frame())
    executor = PipelineExecutor(pipeline, namespace=space)
    assert executor.run()["each"] == [50, 10]
    assert executor.run(inputs={"df": [{"stars": 2}]})["each"] == [20]
    del pipeline.inputs["df"]
    assert executor.run()["each"] == []
    assert PipelineExecutor(Pipeline("p", inputs={"x": 2}).put(cell("double", "x * 2"))).run()["double"] == 4


def test_a_pipeline_of_a_notebook_runs_in_an_executor_of_ones_own(session: Session) -> None:
    session.put(cell("each", "item['stars']", map_over="df"))
    assert PipelineExecutor(session.pipeline).run()["each"] == [5, 1]
    both = PipelineExecutor(session.pipeline, namespace={"df": [{"stars": 7}]}).run()
    assert both["each"] == [7]


def test_a_cell_reads_what_is_an_input_and_else_the_notebook_itself(session: Session) -> None:
    calls: list[int] = []
    session.namespace["calls"] = calls  # type: ignore[index]
    session.put(cell("note", "calls.append(len(df))\ndf['new'] = 1\nlen(df.columns)"))
    assert session.pipeline.inputs_of("note") == []
    session.put(cell("each", "item['stars']", map_over="df"))
    assert session.pipeline.inputs_of("note") == ["df"]
    result = session.start().result()
    assert (calls, result["note"], result["each"]) == ([2], 3, [5, 1])
    assert list(session.namespace["df"].columns) == ["text", "stars"]


# -- what is none -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (pd, "is a module"),
        (frame, "is a function"),
        (len, "is a function"),
        (functools.partial(frame), "is a function"),
        ("".join, "is a function"),
        (Review(text="", stars=1).model_dump, "is a method"),
        (Review, "is a class"),
    ],
)
def test_code_is_no_input(value: Any, what: str) -> None:
    flow = Pipeline("flow").put(cell("each", "1", map_over="thing"))
    with pytest.raises(PipelineValidationError, match=f"The variable 'thing' {what}, so it is no input"):
        PipelineExecutor(flow, namespace={"thing": value}).run()


@pytest.mark.parametrize("name", ["In", "Out", "exit", "quit", "get_ipython", "_", "_1"])
def test_what_ipython_defines_is_no_input(name: str) -> None:
    flow = Pipeline("flow").put(cell("each", "1", map_over=name))
    with pytest.raises(PipelineValidationError, match=f"depends on unknown step '{name}' in its map_over"):
        PipelineExecutor(flow, namespace={name: [1]}).run()


def test_a_misspelt_name_is_reported_over_steps_variables_and_inputs(session: Session) -> None:
    session.namespace["reviews"] = frame()  # type: ignore[index]
    session.put(cell("load", "1"))
    session.put(cell("each", "1", map_over="reveiws"))
    session.put(cell("more", "1", map_over="laod"))
    with pytest.raises(PipelineValidationError) as caught:
        session.start().result()
    assert "'reveiws' in its map_over. Did you mean 'reviews'? Add a step or a variable" in str(caught.value)
    assert "unknown step 'laod' in its map_over. Did you mean 'load'?" in str(caught.value)
    flow = Pipeline("flow", inputs={"topic": 1}).put(cell("each", "1", map_over="tpoic"))
    assert "Did you mean 'topic'?" in flow.validate()[0]
    assert "pass inputs={'tpoic': ...}" in flow.validate()[0]


UNSTORABLE: dict[str, Callable[[], Any]] = {
    "a generator": lambda: (number for number in [1]),
    "a file": lambda: Path(__file__).open(encoding="utf-8"),  # noqa: SIM115
    "a lock": threading.Lock,
    "an object": lambda: SimpleNamespace(client=threading.Lock()),
}


@pytest.mark.parametrize("kind", UNSTORABLE)
def test_what_cannot_be_stored_is_refused_with_variable_step_and_remedy(kind: str) -> None:
    flow = Pipeline("flow").put(cell("each", "1", map_over="things")).put(cell("more", "things"))
    with pytest.raises(PipelineValidationError) as caught:
        PipelineExecutor(flow, namespace={"things": UNSTORABLE[kind]()}).run()
    (problem,) = caught.value.errors
    assert problem.startswith("Step 'each' (and 1 more) reads 'things' as an input, a value of type ")
    assert "which cannot be stored with the run: things" in problem
    assert problem.endswith("or make it in a Python step.")


def test_inputs_that_no_one_reads_or_that_are_steps_are_refused(pipeline: Pipeline) -> None:
    executor = PipelineExecutor(pipeline, namespace={"df": frame()})
    with pytest.raises(DefinitionError, match="no step of pipeline 'reviews' reads 'dff'. Did you mean 'df'"):
        executor.run(inputs={"dff": 1})
    with pytest.raises(DefinitionError, match="'each' is a step of pipeline 'reviews'"):
        executor.start(inputs={"each": 1})
    with pytest.raises(DefinitionError, match="inputs must be a dict of values by name"):
        executor.run(inputs=[1])
    with pytest.raises(DefinitionError, match=r"Pipeline\(inputs=\): the name 'item' is reserved"):
        Pipeline("p", inputs={"item": 1})
    with pytest.raises(DefinitionError, match=r"give\(\): the name '__x' starts with"):
        pipeline.give(__x=1)
    with pytest.raises(DefinitionError, match="Steps read as inputs: nothing"):
        PipelineExecutor(Pipeline("p").put(cell("a", "1"))).run(inputs={"x": 1})


def test_a_goal_that_cannot_be_read_is_reported_as_ever(tmp_path: Path) -> None:
    flow = Pipeline("flow", model="test").step("bad", "{{ df").put(cell("each", "item", map_over="df"))
    flow.put(cell("code", "df"))
    executor = PipelineExecutor(flow, storage=tmp_path, namespace={"df": [1]})
    for resume in (False, True):
        with pytest.raises(PipelineValidationError, match="Step 'bad', goal line 1"):
            executor.run(resume=resume)


def test_a_long_list_is_taken_whole(pipeline: Pipeline) -> None:
    flow = Pipeline("flow").put(cell("count", "len(rows)", depends_on=["rows"]))
    rows = list(range(200_000))
    assert PipelineExecutor(flow).run(inputs={"rows": rows})["count"] == len(rows)
    flow.give(rows=[1])
    assert "inputs input:rows (list, 1 item)" in step_card(flow, flow.get_step("count")).text


# -- steps come first ---------------------------------------------------------------------------------


def test_a_step_of_the_name_wins_from_then_on_and_the_card_says_so(session: Session) -> None:
    each = session.put(cell("each", "item['stars']", map_over="df"))
    assert session.start().result()["each"] == [5, 1]
    step = session.put(cell("df", "[{'stars': 3}]"))
    assert session.pipeline.inputs_of("each") == []
    assert session.start().result()["each"] == [3]
    for defined in (step, each):
        assert (
            "hint: df is the step of that name, not the variable: rename one"
            in step_card(session.pipeline, defined).text
        )
    session.pipeline.remove("df")
    assert session.start().result()["each"] == [5, 1]
    pipeline = Pipeline("given", inputs={"a": 1}).put(cell("a", "2"))
    assert "a is the step of that name, not the input" in step_card(pipeline, pipeline.get_step("a")).text


# -- what is seen of them -----------------------------------------------------------------------------


def test_cards_status_plan_and_explain_name_the_input(session: Session) -> None:
    session.put(cell("each", "item['stars']", map_over="df"))
    session.put(PipelineStep("ask", "About {{ topic }}."))
    card = step_card(session.pipeline, session.pipeline.get_step("each"))
    assert "inputs input:df (DataFrame, 2 rows)" in card.text
    assert "input:df (DataFrame, 2 rows)" in card.html
    assert "inputs input:topic (str)" in definition_table(session.pipeline).text
    plan = session.plan()
    assert plan.inputs == {"df": "DataFrame, 2 rows", "topic": "str"}
    assert "  reads input:df (DataFrame, 2 rows), input:topic (str)" in repr(plan)
    assert "It reads input:df (DataFrame, 2 rows)" in plan_table(plan).text
    session.start().result()
    session.namespace["df"] = frame().head(1).assign(stars=4)  # type: ignore[index]
    plan = session.plan()
    assert "input df changed" in plan["each"].why
    assert plan["ask"].action == "cached"
    session.start().result()
    text = explain_step(session, "each")
    assert "input df changed" in text
    assert "It read input:df (DataFrame, 1 row), as taken when the run began." in text


def test_graphs_show_inputs_with_a_shape_of_their_own(session: Session) -> None:
    session.put(cell("each", "item['stars']", map_over="df"))
    session.put(PipelineStep("ask", "About {{ topic }} and {{ df }}."))
    dot = to_dot(session.pipeline).source
    assert dot.count("shape=note") == 2
    svg = to_svg(session.pipeline)
    assert "◇ df" in svg
    assert "df (input) → ask" in svg
    assert 'class="tagent-input"' in svg
    live = LiveGraph(session.pipeline)
    assert "◇ topic" in live.svg
    assert list(live.nodes.values()) == [("each",), ("ask",)]
    assert ".g .tagent-input" in live_style(".g")
    # A finished run is drawn with the inputs that it took, whatever has become of the variables.
    result = session.start()
    result.result()
    session.namespace.clear()  # type: ignore[attr-defined]
    memory = result.executor.memory
    assert memory is not None
    assert "◇ df" in to_svg(memory.pipeline, memory.steps)  # type: ignore[arg-type]
    assert "? df" in to_svg(session.pipeline)


def test_details_show_what_the_run_took(session: Session) -> None:
    session.put(PipelineStep("ask", "About {{ topic }}."))
    session.put(PipelineStep("each", "About {{ df.text }}.", map_over="df"))
    before = details_html(session.pipeline, "ask", {})
    assert "topic: (nothing yet)" in before
    result = session.start().result()
    inputs = result.steps, "", {}, {}, session.workspace.executor.memory.inputs  # type: ignore[union-attr]
    assert "About &lt;data&gt;cats&lt;/data&gt;" in details_html(session.pipeline, "ask", *inputs)
    assert "topic: cats" in details_html(session.pipeline, "ask", *inputs)
    assert "About &lt;data&gt;Great&lt;/data&gt;" in details_html(session.pipeline, "each", *inputs)


def test_results_hold_inputs_and_keep_them_as_json(pipeline: Pipeline, tmp_path: Path) -> None:
    result = PipelineExecutor(pipeline, storage=tmp_path).run(inputs={"df": [{"stars": 1}]})
    assert PipelineResult.from_json(result.to_json()).inputs == {"df": [{"stars": 1}]}
    assert PipelineResult.from_pickle(result.to_pickle()).inputs["df"] == [{"stars": 1}]
    taken = next(event for event in result.events if isinstance(event, InputTaken))
    assert taken.name == "df"
    events = result.events_frame()
    assert events["detail"][events["event"] == "InputTaken"].tolist() == ["df = [{'stars': 1}]"]


def test_the_state_machine_takes_inputs_for_no_steps(pipeline: Pipeline) -> None:
    result = PipelineExecutor(pipeline, namespace={"df": frame()})
    result.run()
    assert result.memory is not None
    assert result.memory.step_results["each"].dependencies_used == []


# -- a run sees the value of its beginning --------------------------------------------------------------


def test_a_run_sees_the_values_as_they_were_when_it_was_started(session: Session) -> None:
    """Neither another value for the name nor a change in place reaches a run, however late its steps read."""
    gate = threading.Event()
    session.namespace["gate"] = gate  # type: ignore[index]
    df = session.namespace["df"]
    session.namespace["notes"] = {"a": [1]}  # type: ignore[index]
    session.put(cell("wait", "gate.wait()"))
    session.put(cell("each", "item['stars']", map_over="df", depends_on=["wait"]))
    session.put(cell("notes_of", "notes['a']", depends_on=["wait", "notes"]))
    handle = session.start()
    df["stars"] = 0
    session.namespace["notes"]["a"].append(2)
    session.namespace["df"] = []  # type: ignore[index]
    gate.set()
    result = handle.result()
    assert (result["each"], result["notes_of"]) == ([5, 1], [1])
    direct = PipelineExecutor(session.pipeline, namespace={"df": df, "notes": {"a": []}, "gate": gate})
    gate.clear()
    handle = direct.start()
    df["stars"] = 9
    gate.set()
    assert handle.result()["each"] == [0, 0]


def test_a_step_that_changes_what_it_got_changes_it_for_no_one(session: Session) -> None:
    session.put(cell("spoil", "df['stars'] = 0\n0", depends_on=["df"]))
    session.put(cell("each", "item['stars']", map_over="df", depends_on=["spoil"]))
    result = session.start().result()
    assert result["each"] == [5, 1]
    assert result.inputs["df"]["stars"].tolist() == [5, 1]


# -- cache and resume -----------------------------------------------------------------------------------


def test_a_value_counts_by_what_it_holds(tmp_path: Path) -> None:
    flow = Pipeline("flow", model="test").step("ask", "About {{ df.text }}.")
    flow.put(cell("each", "item['stars']", map_over="df"))
    cache = ResultCache(tmp_path / "cache")

    def states(df: pd.DataFrame) -> dict[str, str]:
        result = PipelineExecutor(flow, cache=cache).run(inputs={"df": df})
        return {name: step.status.value for name, step in result.steps.items()}

    assert states(frame()) == {"ask": "completed", "each": "completed"}
    assert states(frame()) == {"ask": "cached", "each": "cached"}
    other = frame()
    other.loc["b", "stars"] = 2
    assert states(other) == {"ask": "cached", "each": "completed"}


def _half(storage: Path, namespace: Mapping[str, Any], **options: Any) -> PipelineResult:
    """A run whose second step fails until ``fails`` is false."""
    flow = Pipeline("half").put(cell("first", "len(df)", depends_on=["df"]))
    flow.put(cell("second", "assert not fails\nfirst + df['stars'].sum()", max_retries=0))
    flow.put(cell("third", "notes", depends_on=["notes", "second"], max_retries=0))
    return PipelineExecutor(flow, storage=storage, namespace=namespace).run(**options)


def test_a_resumed_run_has_the_inputs_it_recorded(tmp_path: Path) -> None:
    first = _half(tmp_path, {"df": frame(), "notes": [1], "fails": True})
    assert first.failed_steps == ["second"]
    again = _half(tmp_path, {"fails": False}, resume=True)
    assert (again["first"], again["second"], again["third"]) == (2, 8, [1])
    assert again.steps["first"].attempts == 1
    same = _half(tmp_path, {"df": frame(), "notes": [1], "fails": False}, resume=True)
    assert same.success
    kept = [event.name for event in same.events if isinstance(event, InputTaken)]
    assert kept == ["df", "notes"]


def test_a_resumed_run_without_its_inputs_says_what_is_missing(tmp_path: Path) -> None:
    _half(tmp_path, {"df": frame(), "notes": [1], "fails": True})
    flow = Pipeline("half").put(cell("first", "len(df)", depends_on=["df"]))
    flow.put(cell("new", "1", map_over="ntoes"))
    executor = PipelineExecutor(flow, storage=tmp_path, namespace={"notes": 1})
    with pytest.raises(PipelineValidationError, match="unknown step 'ntoes'.*Did you mean 'notes'"):
        executor.run(resume=True)
    with pytest.raises(PipelineValidationError, match="unknown step 'ntoes'"):
        asyncio.run(executor.plan(resume=True))


def test_a_changed_input_is_refused_on_resume_or_taken_anew(tmp_path: Path) -> None:
    _half(tmp_path, {"df": frame(), "notes": [1], "fails": True})
    changed = {"df": frame().head(1), "notes": [1], "fails": False}
    with pytest.raises(ResumeConflictError) as caught:
        _half(tmp_path, changed, resume=True)
    assert caught.value.changed["first"] == ["input df changed"]
    assert caught.value.changed["second"] == ["input df changed since the run began"]
    assert "third" not in caught.value.changed
    assert "then df = result.inputs['df']" in str(caught.value)
    rerun = _half(tmp_path, changed, resume=True, on_change="rerun")
    assert (rerun["first"], rerun["second"], rerun["third"]) == (1, 6, [1])
    assert len(rerun.inputs["df"]) == 1
    later = _half(tmp_path, {"fails": False}, resume=rerun.run_id)
    assert len(later.inputs["df"]) == 1


# -- secrets ------------------------------------------------------------------------------------------


def test_an_input_that_holds_a_secret_is_reported_or_refused(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "sk-secret-1234567890")
    inputs = {"df": [{"stars": 1, "key": "sk-secret-1234567890"}]}
    warned = PipelineExecutor(pipeline, storage=tmp_path / "a").run(inputs=inputs)
    assert any(
        "Input 'df' holds the value of the environment variable MY_API_KEY" in warning
        for warning in warned.warnings
    )
    assert warned.success
    harmless = PipelineExecutor(pipeline, storage=tmp_path / "harmless").run(inputs={"df": [{"stars": 1}]})
    assert harmless.success
    assert harmless.warnings == []
    strict = PipelineExecutor(pipeline, storage=tmp_path / "b", secret_values="fail")
    with pytest.raises(DefinitionError, match="Input 'df' holds .*Nothing was stored or run"):
        strict.run(inputs=inputs)
    assert b"sk-secret" not in b"".join(
        path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file()
    )
    for quiet in (
        PipelineExecutor(pipeline, storage=tmp_path / "c", secret_values="ignore"),
        PipelineExecutor(pipeline),
    ):
        assert not any("Input" in warning for warning in quiet.run(inputs=inputs).warnings)


# -- definitions elsewhere ------------------------------------------------------------------------------


def test_json_and_pickle_keep_what_was_given_and_not_the_notebook(session: Session) -> None:
    flow = Pipeline("flow", inputs={"topic": "cats"}).step("ask", "About {{ topic }}.")
    again = Pipeline.from_json(flow.to_json())
    assert again == flow
    assert again != Pipeline("flow").step("ask", "About {{ topic }}.")
    session.put(PipelineStep("ask", "About {{ topic }}."))
    copy = Pipeline.from_pickle(session.pipeline.to_pickle())
    assert copy.variables is None
    assert copy.inputs == {}
    assert "inputs={'topic': ...}" in copy.validate()[0]


def test_an_exported_module_holds_plain_inputs_and_names_the_others(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.put(cell("each", "item['stars'] * limit", map_over="df", depends_on=["limit"]))
    session.put(cell("name", "topic", depends_on=["topic"]))
    text = export_module(session.pipeline, session.namespace)
    assert "pipeline.give(limit=3)" in text
    assert "pipeline.give(topic='cats')" in text
    assert "# The input df (DataFrame, 2 rows) does not stand here. Give it: --input df=FILE" in text
    monkeypatch.chdir(tmp_path)
    Path("flow.py").write_text(text, encoding="utf-8")
    frame().to_csv("rows.csv", index=False)
    assert main(["run", "flow.py", "--input", "rows.csv", "--json", "out.json"]) == 0
    result = PipelineResult.from_json(Path("out.json").read_text(encoding="utf-8"))
    assert (result["each"], result["name"]) == ([15, 3], "cats")


def test_the_command_line_takes_variables_of_a_script_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "from tagent_nb import Pipeline, PipelineStep\nflow = Pipeline('flow')\n"
    code += "flow.put(PipelineStep.from_cell('each', 'item', python=True, map_over='rows'))\n"
    Path("flow.py").write_text(f"{code}rows = [1, 2]\n", encoding="utf-8")
    assert main(["run", "flow.py"]) == 0
    made = Pipeline("flow").put(cell("each", "item + rows", map_over="rows"))
    Path("flow.json").write_text(made.to_json(), encoding="utf-8")
    assert main(["run", "flow.json"]) == 1
    assert "unknown step 'rows' in its map_over" in capsys.readouterr().err
    Path("rows.json").write_text("[1, 2]", encoding="utf-8")
    assert main(["run", "flow.json", "--input", "rows=rows.json"]) == 0
    made.give(rows=[5])
    Path("flow.json").write_text(made.to_json(), encoding="utf-8")
    assert main(["run", "flow.json"]) == 0


# -- in a kernel ----------------------------------------------------------------------------------------


def test_the_first_act_in_a_notebook_maps_over_a_frame(tmp_path: Path) -> None:
    """Also when the kernel is killed half-way, and the next one does not have the variable."""
    book = Kernel(tmp_path)
    try:
        book.run("import pandas as pd\ndf = pd.DataFrame({'n': range(5)})\n%tagent_pipeline reviews")
        note = "with open('items', 'a') as file:\n    file.write(f\"{item['n']}\\n\")\n"
        wait = "import os, time\nwhile item['n'] == 3 and not os.path.exists('gate'):\n    time.sleep(0.01)\n"
        step = f"{note}{wait}item['n'] * 2"
        card = book.run(f"%%tagent_step double --python --map-over df\n{step}")
        assert "input:df (DataFrame, 5 rows)" in card
        assert "input:df" in book.run("%tagent_status")
        book.send("%tagent_run --max-concurrency 1")
        items = tmp_path / "items"
        book.until(lambda: items.exists() and "3" in items.read_text().split())
        book.until_recorded(3)
        book.kill()
        (tmp_path / "gate").touch()
        book = Kernel(tmp_path)
        book.run("%tagent_pipeline reviews")
        book.run(f"%%tagent_step double --python --map-over df\n{step}")
        assert "✓ double: completed" in book.run("%tagent_run --resume")
        assert "[0, 2, 4, 6, 8] 5" in book.run("print(result['double'], len(result.inputs['df']))")
        ran = items.read_text().split()
        # Rows that had ended just before may not have been recorded yet, and run again.
        assert set(ran) == set("01234")
        assert (ran.count("3"), ran.count("4")) == (2, 1)
    finally:
        book.close()
