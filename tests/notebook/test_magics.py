"""The magics in a shell: what they do, and that each mistake is one clear message."""

from __future__ import annotations

import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from pydantic_ai.models.test import TestModel

import tagent_nb
from tagent_nb import PipelineExecutor
from tagent_nb.errors import RunFailedError
from tagent_nb.events import RunPaused
from tagent_nb.notebook import extension
from tagent_nb.notebook.display import Picture
from tagent_nb.notebook.magics.explain import MAX_RUNS
from tagent_nb.notebook.magics.registry import magic_functions, register
from tagent_nb.notebook.session import Session
from tagent_nb.notebook.shell.cells import DELETED, Cells
from tagent_nb.pipeline import Budget, ExecutionMode, Limit, PipelineStep, Price
from tagent_nb.results import PipelineResult
from tagent_nb.runners.tools.registry import forget_tool
from tagent_nb.storage.policy import Retention

CELL_MAGICS = ("tagent_ask", "tagent_step")


class Notebook:
    """A shell with the magics on a session of its own, and what its cells displayed."""

    def __init__(self, folder: Path) -> None:
        self.shell = InteractiveShell.instance()
        self.shell.reset(new_session=False)
        self.session = Session(self.shell.user_ns, folder)
        register(self.shell, self.session, Cells(self.shell))
        self.published = CapturingDisplayPublisher()
        self.shell.display_pub = self.published

    def __call__(self, line: str, body: str | None = None) -> Any:
        """Run a line magic, or with ``body`` a cell magic."""
        name, _, rest = line.partition(" ")
        if body is None:
            return self.shell.run_line_magic(name, rest)
        return self.shell.run_cell_magic(name, rest, body)

    @property
    def shown(self) -> list[str]:
        """The plain text of all that was displayed."""
        return [output["data"]["text/plain"] for output in self.published.outputs]

    def python(self, name: str, code: str, options: str = "") -> None:
        """Define a Python step."""
        self(f"tagent_step {name} --python {options}", code)

    def noting(self, name: str, code: str, options: str = "") -> None:
        """Define a Python step that notes each of its runs in a file."""
        self.python(name, f"with open('effects', 'a') as file:\n    file.write('{name}')\n{code}", options)

    def effects(self, line: str) -> str:
        """Run a magic; return which steps ran, in order."""
        Path("effects").unlink(missing_ok=True)
        self(line)
        return Path("effects").read_text() if Path("effects").exists() else ""


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    monkeypatch.chdir(tmp_path)
    before = InteractiveShell.instance().display_pub
    yield Notebook(tmp_path / ".tagent")
    InteractiveShell.instance().display_pub = before


def refused(book: Notebook, line: str, body: str | None = None) -> str:
    """The message with which a magic refuses."""
    with pytest.raises(UsageError) as caught:
        book(line, body)
    return str(caught.value)


# -- %tagent_pipeline ---------------------------------------------------------------------


def test_a_pipeline_is_made_changed_and_listed(book: Notebook) -> None:
    book("tagent_pipeline my reviews --model test --description 'what they say' --concurrent --constraint x")
    pipeline = book.session.pipeline
    assert (pipeline.name, pipeline.model, pipeline.description) == ("my reviews", "test", "what they say")
    assert pipeline.default_mode is ExecutionMode.CONCURRENT
    assert pipeline.global_constraints == ["x"]
    book("tagent_pipeline my reviews --serial --constraint a --constraint b --no-cache --max-concurrency 3")
    assert pipeline.default_mode is ExecutionMode.SERIAL
    assert pipeline.global_constraints == ["a", "b"]
    assert (book.session.workspace.cached, book.session.workspace.max_concurrency) == (False, 3)
    book("tagent_pipeline other --storage runs-here --keep-last 3")
    assert book.session.workspace.storage.retention == Retention(3)
    assert Path("runs-here").exists() or book.session.workspace.storage is not None
    book("tagent_pipeline")
    listing = book.shown[-1].splitlines()
    assert listing[0].startswith("2 pipelines;")
    assert listing[1] == "my reviews  0 steps  test  what they say"
    assert listing[2] == "▸  other  0 steps"


def test_listing_before_there_is_a_pipeline_tells_how_to_begin(book: Notebook) -> None:
    book("tagent_pipeline")
    assert book.shown == ["0 pipelines; %tagent_pipeline NAME makes one current, or a new one"]


def test_a_step_can_be_taken_out(book: Notebook) -> None:
    book("tagent_pipeline reviews")
    book.python("load", "1")
    assert "Did you mean 'load'?" in refused(book, "tagent_pipeline --remove laod")
    book("tagent_pipeline --remove load")
    assert len(book.session.pipeline) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tagent_pipeline a --concurrent --serial", "exclude each other"),
        ("tagent_pipeline a --max-concurrency 0", "max_concurrency must be 1 or more"),
        ("tagent_pipeline a --max-concurrency many", "invalid int value: 'many'"),
        ("tagent_pipeline $nowhere", "NAME is '$nowhere', but there is no variable 'nowhere'"),
        ("tagent_pipeline a --model {nowhere}", "--model is '{nowhere}', but there is no variable 'nowhere'"),
        ("tagent_pipeline --remove a", "There is no pipeline yet"),
        ("tagent_pipeline --modle x", "Did you mean '--model'?"),
    ],
)
def test_mistakes_in_a_pipeline_line(book: Notebook, line: str, message: str) -> None:
    assert message in refused(book, line)
    assert book.session.workspaces == {} or len(book.session.pipeline) == 0


# -- %%tagent_step ------------------------------------------------------------------------


SCHEMA = "from pydantic import BaseModel\nclass Sentiment(BaseModel):\n    label: str"


def test_a_cell_with_all_options_becomes_a_step(book: Notebook) -> None:
    book.shell.run_cell(SCHEMA)
    book.shell.run_cell("def lookup(word: str) -> str:\n    'Look it up.'\n    return word")
    book.shell.run_cell("def sane(value): ...\ndef kind(value): ...\ndef brief(value): ...")
    book("tagent_pipeline reviews --model test")
    book.python("load", "[1]")
    book(
        "tagent_step classify --output-schema Sentiment --map-over load --min-success 0.5 "
        "--depends-on extra:weak,more:optional --depends-on load --constraint 'be short' --constraint kind "
        "--when 'load' --model openai:gpt --tools lookup,search* --timeout 2.5 --max-retries 1 --concurrent "
        "--check sane,kind --check brief --plan --max-replans 1 --budget '0.5 USD, 20 requests' "
        "--setting max_tokens=200 --setting temperature=0.5 --max-failures 0.1 --fresh-for 2h "
        "--retry-on ValueError,OSError --retry-on sqlite3.OperationalError "
        "--samples 3 --flatten "
        "--no-cache   # a comment",
        "Say whether {{ load }} is good.\n",
    )
    step = book.session.pipeline.get_step("classify")
    assert step.goal == "Say whether {{ load }} is good."
    assert step.output_schema is book.shell.user_ns["Sentiment"]
    assert (step.map_over, step.min_success, step.when, step.model) == ("load", 0.5, "load", "openai:gpt")
    assert [str(dependency) for dependency in step.dependencies] == ["extra:weak", "more:optional", "load"]
    assert step.max_failures == 0.1
    assert step.fresh_for == 7200
    assert step.retry_on == ["ValueError", "OSError", "sqlite3.OperationalError"]
    assert (step.samples, step.flatten) == (3, True)
    assert step.constraints == ["be short", "kind"]
    assert step.settings == {"max_tokens": 200, "temperature": 0.5}
    assert step.tools_filter == ["lookup", "search*"]
    assert step.tools == [book.shell.user_ns["lookup"]]
    assert (step.agent, step.max_replans) == ("plan", 1)
    assert step.checks == [book.shell.user_ns[name] for name in ("sane", "kind", "brief")]
    assert (step.timeout, step.max_retries, step.cache) == (2.5, 1, False)
    assert step.budget == Budget(usd=0.5, requests=20)
    assert step.execution_mode is ExecutionMode.CONCURRENT
    assert book.shown[-1].startswith("classify: agent step; reads extra (weak, not defined yet)")


def test_batches_are_an_option(book: Notebook) -> None:
    book("tagent_pipeline reviews --model test")
    book.python("load", "[1]")
    for words, batch in (("--batch", True), ("--batch then-live", "then-live")):
        book(f"tagent_step classify --map-over load {words}", "Say whether {{ load }} is good.\n")
        assert book.session.pipeline.get_step("classify").batch == batch


def test_a_step_of_a_cell_may_make_the_final_output(book: Notebook) -> None:
    """``--final`` on a step: the card says so, and the result has the value as ``final_output``."""
    book("tagent_pipeline sums")
    book.python("load", "[1, 2]")
    book("tagent_step total --python --final", "sum(load)\n")
    assert "final output" in book.shown[-1]
    assert book.session.pipeline.final_step == "total"
    book("tagent_run")
    assert book.shell.user_ns["result"].final_output == 3


def test_a_step_takes_the_mode_of_its_pipeline_unless_it_says(book: Notebook) -> None:
    book("tagent_pipeline reviews --concurrent")
    book.python("a", "1")
    book.python("b", "1", "--serial")
    modes = [step.execution_mode for step in book.session.pipeline.steps]
    assert modes == [ExecutionMode.CONCURRENT, ExecutionMode.SERIAL]


def test_running_the_cell_again_replaces_the_step_in_its_place(book: Notebook) -> None:
    book("tagent_pipeline reviews")
    book.python("a", "1")
    book.python("b", "a")
    book.python("a", "2")
    assert [step.name for step in book.session.pipeline.steps] == ["a", "b"]
    assert book("tagent_run")["b"] == 2


STEP = "tagent_step"


def test_rows_per_call_is_an_option_of_a_step(book: Notebook) -> None:
    book("tagent_pipeline reviews --model test")
    book("tagent_step each --map-over load --rows-per-call 20", "Say {{ load }}.")
    assert book.session.pipeline.get_step("each").rows_per_call == 20


MISTAKES: list[tuple[str, str, str]] = [
    (f"{STEP}", "go", "the step has no name. Write: %%tagent_step NAME"),
    (f"{STEP} a", "", "the cell body is empty"),
    (f"{STEP} a", "  \n \n", "the cell is empty"),
    (f"{STEP} a --python", "\n", "the cell is empty"),
    (f"{STEP} a --python", "# only a comment", "'a'"),
    (f"{STEP} a --python", "1 +", "a"),
    (f"{STEP} ../../x", "go", "is not an identifier"),
    (f"{STEP} /etc/passwd", "go", "is not an identifier"),
    (f"{STEP} a.b", "go", "is not an identifier"),
    (f"{STEP} -rf", "go", "there is no option -rf"),
    (f"{STEP} {'a' * 65}", "go", "at most 64 are allowed"),
    (f"{STEP} class", "go", "is reserved"),
    (f"{STEP} item", "go", "is reserved"),
    (f"{STEP} \uff41bc", "go", "Write 'abc'"),
    (f"{STEP} a\u202eb", "go", "is not an identifier"),
    (f"{STEP} a --output-schema Sentimnt", "go", "Did you mean 'Sentiment'?"),
    (f"{STEP} a --setting 200", "go", "Write: --setting max_tokens=200"),
    (f"{STEP} a --python --setting seed=1", "1", "a Python step asks no model. Leave --setting out"),
    (f"{STEP} a --output-schema os", "go", "There is no schema 'os'"),
    (f"{STEP} a --output-schema answer", "go", "is of type int, not a pydantic model"),
    (f"{STEP} a --python --plan", "1", "a Python step asks no model. Leave --plan"),
    (f"{STEP} a --plan --max-replans -1", "go", "max_replans"),
    (f"{STEP} a --retry-on ValueEror", "go", "Did you mean 'ValueError'?"),
    (f"{STEP} a --check sain", "go", "There is no function 'sain'. Did you mean 'sane'?"),
    (f"{STEP} a --check answer", "go", "'answer' is of type int, not a function"),
    (f"{STEP} a --check sane", "go", "takes neither (value) nor (value, context)"),
    (f"{STEP} a --outputschema Sentiment", "go", "Did you mean '--output-schema'?"),
    (f"{STEP} a \u2014python", "1", "begins with a dash that is not ASCII. Write '--python'."),
    (f"{STEP} a --when 'x", "go", "a quote is not closed"),
    (f"{STEP} a --when load.", "go", "'a'"),
    (f"{STEP} a --python --python", "1", "option --python is given 2 times"),
    (f"{STEP} a --timeout -1", "go", "timeout"),
    (f"{STEP} a --timeout nan", "go", "timeout"),
    (f"{STEP} a --timeout inf", "go", "timeout"),
    (f"{STEP} a --max-retries -1", "go", "max_retries"),
    (f"{STEP} a --min-success 2", "go", "min_success"),
    (f"{STEP} a --max-failures 20", "go", "Add map_over= (--map-over)"),
    (f"{STEP} a --samples 0", "go", "must be a whole number from 1 on, not 0"),
    (f"{STEP} a --samples 3 --python", "1", "a Python step asks no model"),
    (f"{STEP} a --flatten", "go", "Add map_over (--map-over)"),
    (f"{STEP} a --rows-per-call 20", "go", "Add map_over (--map-over)"),
    (f"{STEP} a --map-over b --rows-per-call 0", "go", "whole number from 1 to 1,000"),
    (f"{STEP} a --map-over b --rows-per-call 20 --python", "1", "a Python step asks no model"),
    (f"{STEP} a --map-over b --max-failures -1", "go", "max_failures"),
    (f"{STEP} a --map-over b --max-failures many", "go", "many"),
    (f"{STEP} a --batch", "go", "for steps that run for each row"),
    (f"{STEP} a --map-over b --batch later", "go", "then-live"),
    (f"{STEP} a --depends-on b:sometimes", "go", "Write strong, weak or optional"),
    (f"{STEP} a --concurrent --serial", "go", "exclude each other"),
    (f"{STEP} a b", "go", "there is nothing to do with 'b'"),
    (f"{STEP} a > file", "go", "a magic is no shell command"),
    (f"{STEP} $nowhere", "go", "there is no variable 'nowhere'"),
    (f"{STEP} a", "{{ x.__class__ }}", "a"),
    (f"{STEP} a", "{{ unclosed", "a"),
    (f"{STEP} a", "x" * 1_000_000, "a"),
]


@pytest.mark.parametrize(("line", "body", "message"), MISTAKES, ids=[line[:40] for line, _, _ in MISTAKES])
def test_mistakes_in_a_step_are_one_message_and_define_nothing(
    book: Notebook, line: str, body: str, message: str
) -> None:
    book.shell.run_cell(SCHEMA)
    book.shell.user_ns["answer"] = 42
    book.shell.run_cell("def sane(): ...")
    book("tagent_pipeline reviews")
    text = refused(book, line, body)
    assert message in text
    assert len(text) < 1_500
    assert len(book.session.pipeline) == 0


def test_a_step_before_any_pipeline_says_how_to_begin(book: Notebook) -> None:
    assert (
        refused(book, "tagent_step a", "go") == "There is no pipeline yet. Begin with: %tagent_pipeline NAME"
    )


NAMED = """
from pydantic import BaseModel
from pydantic_ai.models.test import TestModel
class Answer(BaseModel):
    label: str
def sane(value): ...
def look(word: str) -> str:
    'Look it up.'
    return word
mine = TestModel()
"""
EDITS = {
    "output_schema": "class Answer(BaseModel):\n    label: str\n    score: int = 1",
    "check sane": "def sane(value):\n    assert value.label != 'never', 'never'",
    "tool look": "def look(word: str) -> str:\n    'Look there.'\n    return word",
    "model": "mine = TestModel(custom_output_args={'label': 'other'})",
}


def _named(book: Notebook, pipeline: str = "", step: str = "--model mine") -> None:
    book.shell.run_cell(NAMED)
    book(f"tagent_pipeline reviews {pipeline}")
    book(f"tagent_step ask --output-schema Answer --check sane --tools look {step}", "Say something.")


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("where", [{}, {"pipeline": "--model mine", "step": ""}])
def test_an_edit_of_what_a_cell_names_reaches_the_next_plan_and_run(
    book: Notebook, edit: str, where: dict[str, str]
) -> None:
    """Names are looked up at each run, as helpers of Python steps are: the step's cell need not run again."""
    _named(book, **where)
    book("tagent_run")
    book("tagent_plan")
    assert "ask  ↺ cached" in book.shown[-1]
    book.shell.run_cell(EDITS[edit])
    book("tagent_plan")
    assert f"ask  ▸ run  {edit}" in book.shown[-1]
    assert "changed" in book.shown[-1]
    result = book("tagent_run")
    assert f"{edit}" in result.steps["ask"].reason
    assert type(result["ask"]) is book.shell.user_ns["Answer"]
    assert result["ask"].label == ("other" if edit == "model" else "a")
    assert book("tagent_run").steps["ask"].status.value == "cached"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            "del Answer\nclass Answers(BaseModel): ...",
            "--output-schema: There is no schema 'Answer'. Did you mean 'Answers'?",
        ),
        ("Answer = 5", "--output-schema: Schema 'Answer' is of type int, not a pydantic model"),
        ("del sane\ndef same(value): ...", "--check: There is no function 'sane'. Did you mean 'same'?"),
        ("sane = 'text'", "--check: 'sane' is of type str, not a function"),
        ("def sane(): ...", "checks has <function sane"),
        (
            "del look\ndef looks(x): ...",
            "--tools: there is no function 'look' any more. Did you mean 'looks'?",
        ),
        (
            "del mine\nmine2 = TestModel()",
            "--model: there is no model 'mine' any more. Did you mean 'mine2'?",
        ),
        ("mine = 5", "--model: it is of type int, not a model: there is none 'mine' any more."),
    ],
)
def test_a_name_that_is_gone_is_one_error_before_anything_is_asked(
    book: Notebook, cell: str, message: str
) -> None:
    _named(book)
    book.noting("load", "1")
    book("tagent_step more --depends-on load --when False --model test", "Say {{ load }}.")
    book.shell.run_cell(cell)
    for line in ("tagent_run", "tagent_plan", "tagent_run --resume"):
        printed = refused(book, line)
        assert "Pipeline 'reviews' cannot run: 1 problem\n  - Step 'ask': " in printed
        assert message in printed
    assert not Path("effects").exists()
    # All the rest can be looked at, and steps that do not need it run.
    for line in ("tagent_graph", "tagent_status", "tagent_explain ask", "tagent_export book.svg"):
        book(line)
    assert book.effects("tagent_run --until load") == "load"
    book.shell.run_cell(NAMED)
    book("tagent_run --until ask")
    assert book.session.workspace.result.success  # type: ignore[union-attr]


def test_the_model_of_a_pipeline_that_is_gone_keeps_only_those_who_ask_it(book: Notebook) -> None:
    _named(book, pipeline="--model mine", step="--model test")
    book.python("load", "1")
    book.shell.run_cell("del mine")
    assert book("tagent_run").success
    book("tagent_step more", "Say {{ load }}.")
    assert "%tagent_pipeline --model: there is no model 'mine' any more" in refused(book, "tagent_run")
    book("tagent_pipeline reviews --model test")
    assert book("tagent_run").success


def test_what_is_given_as_an_object_stays_that_object(book: Notebook) -> None:
    _named(book)
    first = {name: book.shell.user_ns[name] for name in ("Answer", "sane", "look", "mine")}

    def brief(value: Any) -> None: ...

    book.session.pipeline.check("ask")(brief)
    pipeline = book.session.pipeline
    names = {"output_schema": first["Answer"], "checks": [first["sane"]], "model": first["mine"]}
    own = PipelineStep("own", "go", **names)
    book.session.put(own)
    for cell in EDITS.values():
        book.shell.run_cell(cell)
    assert book.session.pipeline.get_step("own") is own
    # A check that was added in Python to the step of a cell is kept, and the names of the cell are followed.
    ask = pipeline.get_step("ask")
    assert ask.checks == [book.shell.user_ns["sane"], brief]
    assert ask.output_schema is book.shell.user_ns["Answer"]
    assert ask.tools == [book.shell.user_ns["look"]]
    assert ask.model is book.shell.user_ns["mine"]
    # Another step in its place is no step of the cell any more.
    pipeline.put(PipelineStep("ask", "go", output_schema=first["Answer"]))
    assert book.session.pipeline.get_step("ask").output_schema is first["Answer"]
    pipeline.remove("ask")
    assert "ask" not in book.session.workspace.names


def test_tools_that_are_defined_or_registered_later_count(book: Notebook) -> None:
    book("tagent_pipeline reviews --model test")
    book("tagent_step ask --tools later,stamp", "Say something.")
    assert "later" in refused(book, "tagent_run")
    for name in ("later", "stamp"):
        book.shell.run_cell(f"def {name}() -> str:\n    'Say when.'\n    return 'x'")
    assert book("tagent_run").success
    assert book.session.pipeline.get_step("ask").tools == [book.shell.user_ns[n] for n in ("later", "stamp")]
    book.shell.run_cell("from tagent_nb import tool\nlater = tool(later)")
    try:
        assert book.session.pipeline.get_step("ask").tools == [book.shell.user_ns["stamp"]]
        assert book("tagent_run").success
    finally:
        forget_tool("later")


def test_a_run_keeps_what_names_stood_for_when_it_began(book: Notebook) -> None:
    _named(book)
    wait = "import os, time\nwhile not os.path.exists('gate'): time.sleep(0.01)\n1"
    book.python("slow", wait)
    book("tagent_step later --output-schema Answer --model mine", "Say {{ slow }}.")
    first = book.shell.user_ns["Answer"]
    handle = book("tagent_run --background")
    book.shell.run_cell(EDITS["output_schema"])
    book("tagent_graph")
    Path("gate").touch()
    assert type(handle.result(30)["later"]) is first
    assert type(book("tagent_run")["later"]) is book.shell.user_ns["Answer"]


def test_an_export_holds_what_a_name_stands_for_now(book: Notebook) -> None:
    _named(book, step="--model test")
    book.shell.run_cell(EDITS["output_schema"])
    book("tagent_export book.json")
    assert '"score"' in Path("book.json").read_text()


def test_a_field_that_the_schema_lacks_is_an_error_of_the_cell(book: Notebook) -> None:
    book.shell.run_cell(SCHEMA)
    book("tagent_pipeline reviews")
    book("tagent_step classify --output-schema Sentiment", "go")
    assert "Did you mean 'label'?" in refused(book, "tagent_step report", "{{ classify.lable }}")


def test_running_a_cell_again_shows_what_changed(book: Notebook) -> None:
    book("tagent_pipeline reviews")
    book("tagent_step a", "Say {{ b }}\nin a word")
    assert "changed" not in book.shown[-1]
    book("tagent_step a --timeout 5", "Say {{ b }}\nin <two> words")
    assert book.shown[-1].splitlines()[1:] == [
        "changed:",
        "timeout: not set → 5.0",
        "- in a word",
        "+ in <two> words",
    ]
    html = book.published.outputs[-1]["data"]["text/html"]
    assert "+ in &lt;two&gt; words" in html
    book("tagent_step a --timeout 5", "Say {{ b }}\nin <two> words")
    assert book.shown[-1].endswith("\nunchanged")


def test_steps_whose_cell_is_gone_are_marked_and_removed(
    book: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    book("tagent_pipeline reviews")
    book.python("a", "1")
    book.python("b", "2")
    cells = book.shell.find_line_magic("tagent_status").__self__.cells
    monkeypatch.setattr(cells, "gone", {"reviews": {"a": DELETED}}.get)
    book("tagent_status")
    _, first, second = book.shown[-1].splitlines()
    assert first.endswith("⚠ its cell was deleted; %tagent_pipeline --remove a takes the step out")
    assert "⚠" not in second
    assert "⚠ its cell was deleted" in book.published.outputs[-1]["data"]["text/html"]
    book("tagent_pipeline --remove a")
    assert [step.name for step in book.session.pipeline.steps] == ["b"]


# -- %tagent_run --------------------------------------------------------------------------


def test_a_run_gives_its_result_and_leaves_it_in_the_namespace(book: Notebook) -> None:
    book("tagent_pipeline reviews")
    book.python("load", "[1, 2]")
    book.python("total", "sum(load)")
    value = book("tagent_run")
    assert isinstance(value, PipelineResult)
    assert value["total"] == 3
    assert book.shell.user_ns["result"].run_id == value.run_id
    assert "✓ total: completed" in book.shown[-1]


def test_agent_steps_run_on_the_test_model(book: Notebook) -> None:
    book.shell.run_cell(SCHEMA)
    book("tagent_pipeline reviews --model test")
    book("tagent_step classify --output-schema Sentiment", "Classify.")
    assert isinstance(book("tagent_run")["classify"], book.shell.user_ns["Sentiment"])


def test_options_of_a_run_reach_it(book: Notebook) -> None:
    book("tagent_pipeline reviews")
    book.noting("a", "1")
    book.noting("b", "a")
    book.noting("c", "3")
    assert book.effects("tagent_run --until b") == "ab"
    assert book.effects("tagent_run") == "c"
    assert book.effects("tagent_run --force a") == "a"
    assert book.effects("tagent_run --force a,c --max-concurrency 1") == "ac"
    assert book.effects("tagent_run --force") == "abc"
    assert book.effects("tagent_run --no-cache --until a") == "a"
    assert book.effects("tagent_run --offline") == ""


def test_failed_rows_are_tried_again_alone(book: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    book("tagent_pipeline reviews")
    book.python("load", "[1, 2, 3]")
    book.python("each", "1 // (item - bad['row'])", "--map-over load --max-retries 0 --min-success 0.5")
    book.shell.user_ns["bad"] = {"row": 2}
    first = book("tagent_run")
    assert [item is None for item in first["each"]] == [False, True, False]
    book("tagent_plan --retry-failed")
    assert "1 failed item is tried again" in book.shown[-1]
    for line in ("tagent_run --retry-failed each", f"tagent_run --retry-failed --resume {first.run_id}"):
        again = book(line)
        assert again.run_id == first.run_id
        assert again.steps["each"].reason == "1 failed item is tried again"
    assert "step 'load' has no failed rows" in refused(book, "tagent_run --retry-failed load,each")


def test_prices_and_limits_are_set_with_and_without_a_pipeline(book: Notebook) -> None:
    book("tagent_pipeline reviews --price 'openai:a input=1 output=2' --price 'openai:b input=3 output=4'")
    book("tagent_pipeline --limit 'openai concurrency=4 requests=60'")
    assert book.session.prices == {"openai:a": Price(1, 2), "openai:b": Price(3, 4)}
    assert book.session.limits.paces["openai"].limit == Limit(concurrency=4, requests_per_minute=60)
    assert "Write: --limit" in refused(book, "tagent_pipeline --limit openai")


def test_a_run_stops_at_its_budget_and_goes_on_with_a_higher_one(book: Notebook) -> None:
    book("tagent_pipeline reviews --model test --no-cache")
    for name in "abc":
        book(f"tagent_step {name} --max-retries 0", f"Say {name}.")
    book("tagent_run --budget 2 requests")
    assert book.shell.user_ns["result"].failed_steps == ["c"]
    assert "budget: 2 requests of 2 requests spent" in book.shown[-1]
    assert "The budget is used up. %tagent_run --resume --budget AMOUNT goes on" in book.shown[-1]
    book("tagent_run --resume --budget 0.10")
    assert book.shell.user_ns["result"].success
    assert "budget: $0 of $0.10 spent" in book.shown[-1]


@pytest.mark.parametrize("line", ["tagent_run --strict", "tagent_run --resume --strict --on-change rerun"])
def test_a_strict_run_raises_an_error_that_programs_see(book: Notebook, line: str) -> None:
    """A UsageError is printed by IPython, and papermill takes a notebook with one for a good one."""
    book("tagent_pipeline reviews")
    with pytest.raises(RunFailedError, match="Pipeline 'reviews' has no steps"):
        book("tagent_run --strict")
    book.python("load", "1 / 0", "--max-retries 0")
    book("tagent_run")
    with pytest.raises(RunFailedError, match="load: ZeroDivisionError"):
        book(line)
    assert "✗ load: failed" in book.shown[-1]
    assert book.shell.user_ns["result"].failed_steps == ["load"]
    with pytest.raises(UsageError, match="--strict waits for the end of the run, --background does not"):
        book(f"{line} --background")
    book.python("load", "1")
    assert book("tagent_run --strict").success


def test_a_failed_run_is_reported_and_resumed(book: Notebook) -> None:
    book("tagent_pipeline reviews --no-cache")
    book.noting("a", "1")
    code = "import os\nif not os.path.exists('luck'):\n    raise ValueError('no luck')\na + 1"
    book.noting("b", code, "--max-retries 0")
    assert book.effects("tagent_run") == "ab"
    assert not book.shell.user_ns["result"].success
    assert "✗ b: failed" in book.shown[-1]
    assert "ValueError: no luck" in book.shown[-1]
    Path("luck").touch()
    assert book.effects("tagent_run --resume") == "b"
    assert book.shell.user_ns["result"]["b"] == 2


def test_a_resumed_run_refuses_changed_steps_until_it_may_run_them_again(book: Notebook) -> None:
    book("tagent_pipeline reviews --no-cache")
    book.noting("a", "1")
    book.noting("b", "a + 1")
    book("tagent_run")
    book.noting("a", "5")
    assert "--on-change rerun" in refused(book, "tagent_run --resume")
    assert book.effects("tagent_run --resume --on-change rerun") == "ab"
    assert book.shell.user_ns["result"]["b"] == 6


def test_a_background_run_returns_its_handle(book: Notebook) -> None:
    book("tagent_pipeline reviews")
    book.python("a", "5")
    handle = book("tagent_run --background")
    assert handle.result(10)["a"] == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tagent_run --until totl", "Did you mean 'total'?"),
        ("tagent_run --force totl", "Did you mean 'total'?"),
        ("tagent_run --resume", "No run of pipeline 'reviews' is stored"),
        ("tagent_run --resume ../../x", "../../x"),
        ("tagent_run --on-change maybe", "invalid choice: 'maybe'"),
        ("tagent_run --resme", "Did you mean '--resume'?"),
        ("tagent_run total", "do with 'total'. For one step and what it needs write --until total, to run"),
        ("tagent_plan total", "--until total"),
        ("tagent_panel total", "there is nothing to do with 'total'. Text of several words"),
        (
            "tagent_run --model x",
            "there is no option --model. It is an option of %%tagent_ask, %tagent_pipeline",
        ),
        ("tagent_run --dry-run", "in a notebook %tagent_plan."),
        ("tagent_run --step total", "there is no option --step. Options: "),
        ("tagent_run --save x", "It is an option of %tagent_graph"),
        ("tagent_run --max-concurrency 0", "max_concurrency"),
        ("tagent_run --budget much", "A budget of 'much' cannot be read. Write USD (0.10)"),
    ],
)
def test_mistakes_in_a_run_are_one_message(book: Notebook, line: str, message: str) -> None:
    book("tagent_pipeline reviews")
    book.python("total", "1")
    assert message in refused(book, line)


def test_a_pipeline_that_cannot_run_names_all_its_problems(book: Notebook) -> None:
    book("tagent_pipeline reviews --model test")
    assert "has no steps. Write a cell: %%tagent_step NAME" in refused(book, "tagent_run")
    book("tagent_step a --depends-on nothing", "{{ nowhere }}")
    book("tagent_step b --depends-on b", "go")
    text = refused(book, "tagent_run")
    assert "'nowhere'" in text
    assert "'nothing'" in text
    assert "'b'" in text
    book("tagent_graph")
    assert book.shown[-1] == "Graph of reviews: 2 steps"


def test_a_cycle_is_named_by_its_path_and_drawn(book: Notebook) -> None:
    book("tagent_pipeline reviews --model test")
    book("tagent_step a", "{{ b }}")
    book("tagent_step b", "{{ a }}")
    assert "a -> b -> a" in refused(book, "tagent_run")
    book("tagent_graph")
    assert book.shown[-1] == "Graph of reviews: 2 steps"


def test_a_step_without_a_model_is_refused_before_anything_runs(book: Notebook) -> None:
    book("tagent_pipeline reviews")
    book("tagent_step a", "go")
    assert "%tagent_pipeline NAME --model local" in refused(book, "tagent_run")


def test_a_plan_says_what_would_run_and_runs_nothing(book: Notebook) -> None:
    book("tagent_pipeline reviews")
    book.noting("a", "1")
    book.noting("b", "a + 1")
    assert book.effects("tagent_plan") == ""
    assert book.shown[-1].startswith("reviews: 2 steps: ")
    assert "a  ▸ run" in book.shown[-1]
    book("tagent_run")
    assert book.effects("tagent_plan") == ""
    assert "a  ↺ cached" in book.shown[-1]
    book("tagent_plan --force a --until a")
    assert "reviews: 1 step" in book.shown[-1]
    assert "forced" in book.shown[-1]
    book.noting("a", "5")
    book("tagent_plan --resume")
    assert "a  ✗ changed" in book.shown[-1]
    assert "Did you mean" in refused(book, "tagent_plan --until aa")


def test_a_plan_tells_what_a_step_took_before(book: Notebook) -> None:
    book("tagent_pipeline reviews --model test")
    book("tagent_step report", "Say hello.")
    book("tagent_plan")
    assert "?" in book.shown[-1]
    book("tagent_run")
    book("tagent_plan --force")
    assert "$0" in book.shown[-1]


# -- looking at it ------------------------------------------------------------------------


def test_the_graph_is_shown_saved_and_exported(book: Notebook) -> None:
    book("tagent_pipeline reviews")
    book.python("load", "1")
    book("tagent_run")
    book("tagent_graph --save graph.svg")
    data = book.published.outputs[-1]["data"]
    assert "✓" in data["image/svg+xml"]
    assert Path("graph.svg").read_text("utf-8") == data["image/svg+xml"]
    with pytest.raises(UsageError, match=r"must end in \.svg, \.png, \.pdf"):
        book("tagent_graph --save graph.jpg")
    with pytest.raises(UsageError, match="gone/graph.svg cannot be written: No such file"):
        book("tagent_graph --save gone/graph.svg")
    book("tagent_graph --definition")
    assert "✓" not in book.published.outputs[-1]["data"]["image/svg+xml"]
    assert repr(Picture(book.session.pipeline, None)) == "Graph of reviews: 1 step"


def test_status_and_results(book: Notebook) -> None:
    book("tagent_pipeline reviews")
    book.python("load", "[1, 2]")
    assert "has not run yet" in refused(book, "tagent_results")
    book("tagent_status")
    assert "○ load" in book.shown[-1]
    run = book("tagent_run").run_id
    book("tagent_status")
    assert "✓ load" in book.shown[-1]
    table = book("tagent_results")
    assert isinstance(table, pd.DataFrame)
    assert list(table.index) == ["load"]
    assert len(book("tagent_results load")) == 2
    assert len(book(f"tagent_results --run {run}")) == 1
    assert book.shell.user_ns["result"].run_id == run
    assert "Did you mean 'load'?" in refused(book, "tagent_results laod")


def test_results_stand_beside_their_source_and_go_to_a_file(
    book: Notebook, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The options of a step's frame, and a file of the kind that its name says."""
    book("tagent_pipeline reviews")
    book.python("load", "[{'text': 'ab'}, {'text': 'c'}]")
    book.python("letters --map-over load", "{'all': list(load['text']), 'size': {'n': len(load['text'])}}")
    book("tagent_run")
    frame = book("tagent_results letters --source --nested columns --explode all")
    assert list(frame.columns) == ["text", "all", "size.n", "error"]
    assert frame["all"].tolist() == ["a", "b", "c"]
    path = tmp_path / "letters.csv"
    assert book(f"tagent_results letters --source --to {path}") is None
    assert f"Written: {path} (2 rows)" in capsys.readouterr().out
    assert path.read_text().startswith("text,all,size,error\nab,")
    book(f"tagent_results --to {tmp_path / 'steps.xlsx'}")
    assert len(pd.read_excel(tmp_path / "steps.xlsx")) == 2
    assert "which step" in refused(book, "tagent_results --source")
    assert "does not say what kind of file" in refused(book, f"tagent_results --to {tmp_path / 'a.doc'}")
    missing = tmp_path / "no" / "a.csv"
    assert f"{missing} cannot be written" in refused(book, f"tagent_results --to {missing}")


def test_results_of_a_step_with_samples_have_columns_or_rows_for_each(book: Notebook) -> None:
    book("tagent_pipeline votes --model test")
    book("tagent_step guess --samples 2", "Guess\n")
    book("tagent_run")
    columns = ["value", "value_agreement", "value_0", "value_1", "error"]
    assert list(book("tagent_results guess").columns) == columns
    assert len(book("tagent_results guess --samples")) == 2
    assert "which step" in refused(book, "tagent_results --samples")
    assert "goes with neither" in refused(book, "tagent_results guess --samples --source")


def test_status_says_how_the_last_run_stands_also_a_paused_one(book: Notebook) -> None:
    def status() -> str:
        book("tagent_status")
        return book.shown[-1].splitlines()[0]

    began, gate = threading.Event(), threading.Event()
    book.shell.user_ns.update(began=began, gate=gate)
    book("tagent_pipeline reviews")
    book.python("load", "1")
    assert status() == "reviews: 1 step"
    book.python("slow", "began.set()\ngate.wait(30)\nload")
    book.python("bad", "slow / 0", "--max-retries 0")
    handle = book("tagent_run --background")
    try:
        assert began.wait(30)
        assert status() == "reviews: 3 steps; last run: running, 1 of 3 steps"
        paused = threading.Event()
        handle.executor.subscribe(lambda event: paused.set() if isinstance(event, RunPaused) else None)
        handle.pause()
        assert paused.wait(30)
        assert status() == "reviews: 3 steps; last run: paused, 1 of 3 steps"
        book("tagent_pipeline")
        assert "paused" in book.shown[-1]
    finally:
        gate.set()
        handle.resume()
    handle.result()
    assert status() == "reviews: 3 steps; last run: failed, 2 of 3 steps, 1 failed"
    book("tagent_pipeline")
    assert "has run" in book.shown[-1]


def test_explain_passes_over_a_damaged_run(book: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest can be read, and so can the one to compare it with."""
    book("tagent_pipeline numbers")
    for body in ("1", "2", "3"):
        book.python("load", body)
        book("tagent_run")
    middle = book("tagent_history").index[1][-8:]
    (journal,) = (book.session.folder / "runs").rglob(f"*{middle}.journal")
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 1
    journal.write_bytes(bytes(data))
    later = Notebook(book.session.folder)
    later("tagent_pipeline numbers")
    later.python("load", "3")
    capsys.readouterr()
    later("tagent_explain load")
    assert "code changed" in capsys.readouterr().out


def test_explain_says_in_words_why_a_step_ran(book: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    def explained(step: str) -> str:
        capsys.readouterr()
        book(f"tagent_explain {step}")
        return capsys.readouterr().out

    book("tagent_pipeline reviews")
    book.python("load", "# rows\n[1, 2]")
    book.python("total", "sum(load)")
    assert explained("load") == "load has not run yet.\n"
    book("tagent_run")
    assert "There is no earlier run to compare with." in explained("load")
    book.python("load", "# other comment\n[1, 2]")
    book("tagent_run")
    assert explained("load").startswith("load: not run: the answer was in the cache")
    assert "Nothing that it depends on differs" in explained("load")
    book.python("load", "# other comment\n[2, 1]")
    book("tagent_run")
    text = explained("load")
    assert text.startswith("load: ran")
    assert "- [1, 2]" in text
    assert "+ [2, 1]" in text
    assert "load changed" in explained("total") or "input" in explained("total")
    book.python("load", "sorted([2, 1])")
    assert "It has been defined anew since" in explained("load")
    book("tagent_run")
    assert explained("total").startswith("total: not run: the answer was in the cache")
    assert refused(book, "tagent_explain") == "%tagent_explain: which step? Write: %tagent_explain STEP"
    assert "Did you mean 'total'?" in refused(book, "tagent_explain totl")


def test_explain_names_a_file_that_has_changed(book: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    file = book.session.folder.parent / "d.csv"
    file.write_text("1")
    book("tagent_pipeline reviews")
    book.shell.user_ns["file"] = str(file)
    book.python("load", "open(file).read()")
    book("tagent_run")
    file.write_text("2")
    book("tagent_run")
    capsys.readouterr()
    book("tagent_explain load")
    printed = capsys.readouterr().out
    assert printed.startswith("load: ran (file d.csv changed)")
    assert "- file d.csv changed" in printed


def test_explain_says_what_cannot_be_compared(book: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    """A step that reads a connection does not see that it leads elsewhere."""
    book("tagent_pipeline reviews")
    book.shell.user_ns["lines"] = iter([1, 2])
    book.python("load", "next(lines)")
    book("tagent_run")
    capsys.readouterr()
    book("tagent_explain load")
    printed = capsys.readouterr().out
    assert (
        "Changes inside of lines (builtins.list_iterator) are not noticed: only its type counts." in printed
    )


def test_explain_says_which_texts_for_pandas_cannot_be_seen(
    book: Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    book("tagent_pipeline reviews")
    book.python("load", "import pandas as pd\npd.DataFrame({'stars': [1, 5]})")
    book.python("words", "'stars > 1'")
    book.python("use", "len(load.query(words)) + len(load.query('stars > 1'))")
    book("tagent_run")
    capsys.readouterr()
    book("tagent_explain use")
    printed = capsys.readouterr().out
    assert printed.count("Names behind @") == 1
    assert "Names behind @ in the text of load.query(words) are not noticed" in printed


def test_explain_tells_other_ends_of_a_step(book: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    book("tagent_pipeline reviews")
    book.python("load", "raise ValueError('no')", "--max-retries 0")
    book.python("after", "load")
    book("tagent_run")
    book("tagent_explain load")
    book("tagent_explain after")
    printed = capsys.readouterr().out
    assert "load: ran and failed: ValueError: no" in printed
    assert "after: skipped: step 'load' failed" in printed


def test_explain_compares_with_the_last_run_in_which_the_step_had_a_value(
    book: Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    book("tagent_pipeline reviews")
    book.python("load", "1")
    first = book("tagent_run").run_id
    book.python("load", "raise ValueError('no')", "--max-retries 0")
    book("tagent_run")
    book.python("load", "2")
    book("tagent_run")
    book("tagent_explain load")
    assert f"Different from run {first}:" in capsys.readouterr().out


def test_explain_tells_of_agent_steps(book: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    book("tagent_pipeline reviews --model test")
    for goal in ("Say yes.", "Say no."):
        book("tagent_step ask", goal)
        book("tagent_run")
    capsys.readouterr()
    book("tagent_explain ask")
    printed = capsys.readouterr().out
    assert printed.startswith("ask: ran")
    assert "- Say yes." in printed
    assert "+ Say no." in printed


def test_explain_compares_this_kernels_last_run_though_others_have_run_since(
    book: Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    """However many: it is no longer among the newest, which are looked at first."""
    book("tagent_pipeline reviews")
    book.python("load", "1")
    first = book("tagent_run").run_id
    book.python("load", "2")
    book("tagent_run")
    elsewhere = PipelineExecutor(book.session.pipeline, storage=book.session.workspace.storage)
    for _ in range(MAX_RUNS + 1):
        elsewhere.run()
    capsys.readouterr()
    book("tagent_explain load")
    assert f"Different from run {first}:" in capsys.readouterr().out


def test_explain_reads_recorded_runs_in_a_new_kernel(
    book: Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    book("tagent_pipeline reviews")
    book.python("load", "1")
    book("tagent_run")
    later = Notebook(book.session.folder)
    later("tagent_pipeline reviews")
    later.python("load", "1")
    later("tagent_explain load")
    assert "load: ran" in capsys.readouterr().out


def test_explain_names_the_run_in_which_a_step_or_items_failed(
    book: Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    def explained(notebook: Notebook, step: str) -> str:
        capsys.readouterr()
        notebook(f"tagent_explain {step}")
        return capsys.readouterr().out

    book("tagent_pipeline reviews")
    book.python("load", "[1, 2, 3]")
    book("tagent_run")
    book.python("each", "1 // (item - bad)", "--map-over load --max-retries 0 --min-success 0.5")
    book.python("one", "1 // (bad - 2)", "--max-retries 0")
    book.shell.user_ns["bad"] = 2
    first = book("tagent_run").run_id
    assert "There is no earlier run to compare with." in explained(book, "each")
    book("tagent_run --no-cache")
    text = explained(book, "each")
    assert "each: ran (the last time 1 of 3 items failed)" in text
    assert f"Nothing that it depends on differs from run {first}, in which 1 of 3 items failed." in text
    book.shell.user_ns["bad"] = 4
    book("tagent_run")
    text = explained(book, "one")
    assert "one: ran (the last time it failed (ZeroDivisionError" in text
    later = Notebook(book.session.folder)
    later("tagent_pipeline reviews")
    later.python("one", "1 // (bad - 2)")
    text = explained(later, "one")
    assert "it failed (ZeroDivisionError: integer division or modulo by zero)." in text
    assert "no earlier run" not in text


# -- all of them --------------------------------------------------------------------------


def all_magics() -> list[tuple[str, Callable[..., Any]]]:
    return sorted(magic_functions().items())


def test_the_current_pipeline_has_one_panel(
    book: Notebook, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "%tagent_pipeline NAME" in refused(book, "tagent_panel")
    book("tagent_pipeline reviews")
    book.python("load", "1")
    for _ in range(2):
        assert book("tagent_panel") is None
        assert len(book.session.workspace.watches) == 1
        assert "A panel needs a notebook." in capsys.readouterr().out  # this shell has no front end
    monkeypatch.setattr(book.shell, "kernel", object(), raising=False)
    book("tagent_panel")
    assert capsys.readouterr().out == ""
    assert len(book.session.workspace.watches) == 1


def test_the_magics_of_the_design_are_there() -> None:
    assert [name for name, _ in all_magics()] == [
        "tagent_approve",
        "tagent_ask",
        "tagent_cache",
        "tagent_compare",
        "tagent_explain",
        "tagent_export",
        "tagent_fork",
        "tagent_graph",
        "tagent_history",
        "tagent_memory",
        "tagent_nest",
        "tagent_panel",
        "tagent_pipeline",
        "tagent_plan",
        "tagent_results",
        "tagent_run",
        "tagent_status",
        "tagent_step",
    ]


@pytest.mark.parametrize("name", [name for name, _ in all_magics()])
def test_each_has_help_and_refuses_what_it_does_not_know(
    book: Notebook, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    body = "go" if name in CELL_MAGICS else None
    assert book(f"{name} --help", body) is None
    printed = capsys.readouterr().out
    assert f"%{name}" in printed
    assert "--help" in printed
    assert book.shown == []
    assert "there is no option --nonsense" in refused(book, f"{name} --nonsense", body)


@pytest.mark.parametrize("name", [name for name, _ in all_magics()])
def test_a_question_mark_shows_what_it_does_and_its_options(
    book: Notebook, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.core.page.page", lambda text, *rest, **more: shown.append(text))
    percent = "%%" if name in CELL_MAGICS else "%"
    book.shell.run_cell(f"{percent}{name}?").raise_error()
    (text,) = (page["text/plain"] if isinstance(page, dict) else page for page in shown)
    assert magic_functions()[name].__doc__.split("\n")[0][:30] in text
    assert "--help" in text


def test_loading_twice_and_unloading(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = InteractiveShell.instance()
    transformers = list(shell.input_transformers_post)
    tagent_nb.load_ipython_extension(shell)
    tagent_nb.load_ipython_extension(shell)
    assert len(shell.input_transformers_post) == len(transformers) + 1
    assert shell.find_line_magic("tagent_run").__self__.session is tagent_nb.current()
    tagent_nb.unload_ipython_extension(shell)
    tagent_nb.unload_ipython_extension(shell)
    assert shell.input_transformers_post == transformers
    assert shell.find_line_magic("tagent_run") is None
    assert extension._installed == {}


def test_the_notebook_is_loaded_only_when_it_is_asked_for() -> None:
    code = "import sys, tagent_nb; sys.exit('IPython' in sys.modules or 'ipywidgets' in sys.modules)"
    import subprocess

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


TEXTS = ["--combine", "--constraint", "--instructions"]


@pytest.mark.parametrize("option", TEXTS)
@pytest.mark.parametrize("joint", [" ", "="])
def test_a_text_of_a_step_keeps_its_braces_whatever_variables_there_are(
    book: Notebook, option: str, joint: str
) -> None:
    book("tagent_pipeline demo")
    book.shell.user_ns.update(n=7, load="no", rows=[1, 2])
    text = "Merge {{ load }}, {n} and $n into {1: 2}"
    over = " --reduce-over rows" if option == "--combine" else ""
    book(f"tagent_step total{over} {option}{joint}{shlex.quote(text)}", "Sum {{ rows }}")
    step = book.session.pipeline.get_step("total")
    assert text in (step.combine, step.instructions, *step.constraints)


def test_a_condition_keeps_its_braces(book: Notebook) -> None:
    book("tagent_pipeline demo")
    book.shell.user_ns.update(n=7, rows=[1])
    book("tagent_step total --map-over rows --when \"{'a': 7}['a'] == {7: n}[7]\"", "Sum {{ rows }}")
    assert book.session.pipeline.get_step("total").when == "{'a': 7}['a'] == {7: n}[7]"


def test_rules_of_a_pipeline_and_of_a_question_keep_their_braces(book: Notebook) -> None:
    book.shell.user_ns.update(n=7, model=TestModel(custom_output_text="yes"))
    book("tagent_pipeline demo --constraint '{n} $n' --instructions '{{ n }}'")
    assert book.session.pipeline.global_constraints == ["{n} $n"]
    assert book.session.pipeline.instructions == "{{ n }}"
    book("tagent_ask said --model {'mod' + 'el'} --constraint '{n}'", "Is it?")
    assert book.shell.user_ns["said"] == "yes"


def test_other_options_of_a_step_take_values_of_variables(book: Notebook) -> None:
    book("tagent_pipeline demo")
    book.shell.user_ns.update(name="total", many=3)
    name = "sum"
    assert name  # a variable of the caller goes before one of the notebook, as in all magics
    book.shell.run_cell_magic("tagent_step", "$name --max-retries {many + 1} --timeout=$many", "Count")
    step = book.session.pipeline.get_step("sum")
    assert (step.max_retries, step.timeout) == (4, 3)
