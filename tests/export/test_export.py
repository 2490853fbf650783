"""A pipeline that was exported is the same pipeline, and its module runs by itself."""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from IPython.core.interactiveshell import InteractiveShell
from pydantic import BaseModel
from pydantic_ai.models.test import TestModel

from tagent_nb import (
    Condition,
    DataExists,
    DefinitionError,
    ExecutionMode,
    IsEmpty,
    IsEqualTo,
    IsGreaterThan,
    Pipeline,
    PipelineExecutor,
    PipelineStep,
    PipelineValidationError,
    ResultCache,
    export_module,
    tool,
)
from tagent_nb.export import is_own
from tagent_nb.pipeline import pipeline_to_dict
from tagent_nb.runners.tools.registry import forget_tool


class Sentiment(BaseModel):
    """What someone feels."""

    label: Literal["good", "bad"]


def good(value: Sentiment) -> None:
    assert value.label == "good"


def cell(name: str, code: str, **options: Any) -> PipelineStep:
    return PipelineStep.from_cell(name, code, python=True, **options)


def one_cell(code: str, **options: Any) -> Pipeline:
    return Pipeline("p").put(cell("a", code, **options))


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Imports the text of a module from a file."""
    before = set(sys.modules)

    def imported(text: str) -> Any:
        file = tmp_path / f"exported_{len(list(tmp_path.iterdir()))}.py"
        file.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield imported
    for name in set(sys.modules) - before:
        del sys.modules[name]


def script(file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run an exported module as its user would."""
    return subprocess.run(
        [sys.executable, str(file), *words], cwd=file.parent, capture_output=True, text=True, timeout=120
    )


def refused(pipeline: Pipeline, namespace: dict[str, Any] | None = None) -> str:
    with pytest.raises(DefinitionError) as caught:
        export_module(pipeline, namespace)
    return str(caught.value)


# -- the same pipeline ------------------------------------------------------------------------


def test_every_option_comes_back(load: Callable[[str], Any]) -> None:
    pipeline = Pipeline(
        "my 'reviews'", 'what "they" say', model="test", default_mode=ExecutionMode.CONCURRENT
    )
    pipeline.constraint("be\nbrief", "be kind").share(limit=3, words=["a", "b"])
    pipeline.put(cell("load", "# rows\n[1, 2]", timeout=2.5, execution_mode=ExecutionMode.CONCURRENT))
    pipeline.put(cell("text", "s = '''a\\n\"\"\"'''\ns + 'b'").with_(goal="A text"))
    pipeline.step(
        "classify",
        'Say {{ load }}\nor "nothing"',
        constraints=["one word"],
        depends_on=["text:weak", "absent:optional"],
        output_schema=Sentiment,
        when=(IsGreaterThan("load[0]", 0) & ~IsEmpty("text")) | IsEqualTo("text", {"a": (1, None)}),
        settings={"temperature": 0.0, "stop": ["\n"]},
        max_retries=1,
        retry_count=1,
        output_retries=0,
        output_mode="prompted",
        instructions="You are\nterse.",
        checks=[good],
        agent="plan",
        max_replans=1,
        execution_mode=ExecutionMode.SERIAL,
        model="openai:gpt-5-mini",
        cache=False,
    )
    pipeline.step(
        "each",
        "Say {{ load }}.",
        map_over="load",
        min_success=0.5,
        max_failures=20,
        fresh_for="1h",
        flatten=True,
        rows_per_call=20,
        retry_on=["Refused", ValueError],
        when="text == 'b'",
        tools_filter=[],
        budget=0.5,
    )
    pipeline.step("vote", "Say yes or no.", samples=3)
    pipeline.step(
        "sum_up",
        "Sum up.",
        reduce_over="each",
        group_by="load.0",
        combine="Join\n{{ each }}",
        reduce_tokens=2000,
    )
    module = load(export_module(pipeline))
    assert pipeline_to_dict(module.pipeline) == pipeline_to_dict(pipeline)
    assert module.Sentiment is Sentiment


def test_what_holds_for_the_whole_pipeline_comes_back(load: Callable[[str], Any]) -> None:
    pipeline = Pipeline("p", final="a", instructions='You are\n"terse".', timeout=2.5)
    pipeline.step("a", "g").step("b", "g")
    assert pipeline_to_dict(load(export_module(pipeline)).pipeline) == pipeline_to_dict(pipeline)


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "two\nlines",
        'ends with "',
        'two\nlines and "',
        'two\nlines and """',
        'two\nlines and """"',
        'some """ inside\nthe text',
        "back\\slash\nand \\n",
        "tab\tand\nnothing",
        "bell\x07\nand return\r\n",
        "half \ud800 of a pair\nand a line",
        "\n\nleading\n",
        "quotes ''' \"\"\" both\n",
    ],
)
def test_goals_come_back_letter_for_letter(load: Callable[[str], Any], text: str) -> None:
    pipeline = Pipeline("p", model="test").step("a", text)
    source = export_module(pipeline).encode("utf-8").decode("utf-8")
    assert load(source).pipeline.get_step("a").goal == text


def task(limit: int = 3) -> int:
    """A step of this module."""
    return limit


def test_functions_come_back_with_their_options(load: Callable[[str], Any]) -> None:
    pipeline = Pipeline("functions")

    @pipeline.task(max_retries=0, name="rows", goal="Get rows")
    def first() -> list[int]:
        """Other text."""
        return [1, 2]

    @pipeline.task
    async def second(rows: list[int]) -> int:
        return len(rows)

    pipeline.task(second, name="again")  # type: ignore[call-arg]
    pipeline.task(name="mine")(task)
    module = load(export_module(pipeline))
    assert pipeline_to_dict(module.pipeline) == pipeline_to_dict(pipeline)
    assert PipelineExecutor(module.pipeline).run()["again"] == 2
    text = export_module(pipeline)
    assert text.count("async def second") == 1
    assert "import task" in text


def test_a_pipeline_that_was_read_from_json_is_exported_from_its_source(load: Callable[[str], Any]) -> None:
    pipeline = Pipeline("json")

    @pipeline.task
    def first() -> int:
        return BASE + 1

    again = Pipeline.from_json(pipeline.to_json())
    module = load(export_module(again, {"BASE": 4}))
    assert PipelineExecutor(module.pipeline, namespace=vars(module)).run()["first"] == 5


BASE = 4


# -- what steps refer to ------------------------------------------------------------------------


NOTEBOOK = '''
import functools
import math as m
from collections import Counter
from math import floor
from pathlib import Path
from typing import Optional
from pydantic import BaseModel, field_validator

FOLDER = Path("data")
LIMIT = 3
Maybe = Optional[int]

@functools.cache
def twice(value):
    return 2 * value

double = twice
triple = lambda value: 3 * value

class Inner(BaseModel):
    number: Maybe = None

class Answer(BaseModel):
    """What comes out."""
    inner: "Inner"
    text: str = "x"

    @field_validator("text")
    @classmethod
    def check(cls, value):
        return value.strip()

def sums(values):
    return Answer(inner=Inner(number=double(sum(values)) + LIMIT), text=f" {floor(2.5)} ")
'''


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    interactive = InteractiveShell.instance()
    interactive.reset(new_session=False)
    yield interactive
    interactive.reset(new_session=False)


def test_what_cells_of_a_notebook_define_goes_along(shell: InteractiveShell, tmp_path: Path) -> None:
    """Helpers, their helpers, classes, aliases, constants and imports; nothing else."""
    shell.run_cell("class Answer: pass")  # an earlier try
    shell.run_cell(NOTEBOOK).raise_error()
    shell.run_cell("def broken(")
    shell.run_cell("def other():\n    class Answer:\n        other: int\n    return Answer").raise_error()
    shell.run_cell("unused = object()\ndef unneeded(): return unused").raise_error()
    pipeline = Pipeline("notebook")
    pipeline.put(cell("numbers", "[m.floor(triple(1)), len(str(FOLDER)), *Counter('aab').values()]"))
    pipeline.put(cell("LIMIT", "LIMIT + 1"))
    pipeline.put(cell("result", "sums(numbers)", output_schema=shell.user_ns["Answer"]))
    text = export_module(pipeline, shell.user_ns)
    assert "unneeded" not in text
    assert text.count("class Answer") == 1
    (tmp_path / "exported.py").write_text(text, encoding="utf-8")
    done = script(tmp_path / "exported.py")
    assert done.returncode == 0, done.stderr
    assert re.search(r"result +completed +Answer\(inner=Inner\(number=2[0-9]\), text='2'\)", done.stdout)


def test_annotations_that_were_text_stay_text(shell: InteractiveShell, load: Callable[[str], Any]) -> None:
    source = (
        "from __future__ import annotations\nfrom pydantic import BaseModel\n"
        "class Later(BaseModel):\n    other: Other | None = None\n"
        "class Other(BaseModel):\n    number: int\n"
        "Later.model_rebuild()\n"
    )
    shell.run_cell(source).raise_error()
    pipeline = one_cell("1", output_schema=shell.user_ns["Other"])
    text = export_module(pipeline, shell.user_ns)
    assert "\nfrom __future__ import annotations\n" in text
    assert load(text).Other(number=1).number == 1
    shell.run_cell("def typed(x: Nowhere): return x").raise_error()
    assert "from __future__ import annotations" in export_module(one_cell("typed(1)"), shell.user_ns)


def test_values_are_written_as_they_are(load: Callable[[str], Any]) -> None:
    shared = [1]
    values = {
        "number": 1.5,
        "nothing": None,
        "data": b"\x00",
        "words": {"a", "b"},
        "empty": set(),
        "deep": {"a": [(1, "x"), {2: "long " * 30}], "b": [shared, shared]},
        "when": datetime(2024, 5, 1, tzinfo=UTC),
        "pattern": re.compile(r"a+\d"),
        "kind": Literal["a", "b"],
        "place": Path("a") / "b",
    }
    module = load(export_module(one_cell("\n".join(values)), values))
    assert {name: getattr(module, name) for name in values} == values


def test_what_a_notebook_has_built_in_is_imported(load: Callable[[str], Any]) -> None:
    text = export_module(one_cell("display(1)\nprint(len([]))\nnowhere"))
    assert "from IPython.display import display" in text
    load(text)


def test_names_of_the_module_give_way_to_the_users(load: Callable[[str], Any]) -> None:
    module = load(export_module(one_cell("pipeline + main"), {"pipeline": 1, "main": 2}))
    assert PipelineExecutor(module.pipeline_, namespace=vars(module)).run()["a"] == 3


# -- tools --------------------------------------------------------------------------------------


def test_tools_are_registered_again(load: Callable[[str], Any], shell: InteractiveShell) -> None:
    shell.run_cell(
        "import tagent_nb\n"
        "from tagent_nb import tool\n"
        "@tool\ndef decorated(word: str) -> str:\n    'Look it up.'\n    return word\n"
        "@tagent_nb.tool(timeout=1)\ndef limited(word: str) -> str:\n    'Look it up.'\n    return word\n"
        "def bare(word: str) -> str:\n    'Look it up.'\n    return word\n"
        "def own(word: str) -> str:\n    'Look it up.'\n    return word\n"
        "tagent_nb.tool(timeout=2.5, side_effect=True)(bare)\n"
    ).raise_error()
    tool(imported_tool)
    try:
        pipeline = Pipeline("tools", model="test").step("ask", "Ask.", tools=[shell.user_ns["own"]])
        pipeline.step("alone", "Ask.", tools_filter=[])
        text = export_module(pipeline, shell.user_ns)
        assert "\ntagent_nb.tool(timeout=2.5, side_effect=True)(bare)\n" in text
        assert "tagent_nb.tool(imported_tool)" in text
        assert "tagent_nb.tool(decorated)" not in text
        module = load(text)
        assert module.pipeline.get_step("ask").tools == [module.own]
    finally:
        for name in ("decorated", "limited", "bare", "imported_tool"):
            forget_tool(name)


def imported_tool(word: str) -> str:
    """Look it up."""
    return word


# -- what cannot be written -----------------------------------------------------------------------


class Odd(Condition):
    def evaluate(self, values: Any) -> bool:
        return True

    def references(self) -> Any:
        return ()

    def describe(self) -> str:
        return "odd"

    def to_dict(self) -> dict[str, Any]:
        return {}


def make_closure() -> Callable[[], int]:
    held = 3

    def closure() -> int:
        return held

    return closure


def test_all_that_cannot_be_written_is_reported_at_once() -> None:
    loop: list[Any] = []
    loop.append(loop)
    made = type("Made", (BaseModel,), {"__annotations__": {"x": int}, "__module__": "__main__"})
    lock = threading.Lock()
    pipeline = Pipeline("p", model="test").share(lock=lock)
    pipeline.put(cell("a", "client, loop, closure(), bound(), huge, get_ipython(), sys, inline(), partly(1)"))
    pipeline.put(cell("b", "1", when=Odd(), output_schema=made))
    pipeline.put(cell("c", "1", when=DataExists("b") & IsEqualTo("b", lock)))
    pipeline.step("d", "x", model=TestModel(), settings={"client": lock})
    pipeline.step("e", "x", tools_filter=["nowhere"])
    pipeline.step("f", "x", checks=[lambda value: True])
    names = {
        "client": lock,
        "loop": loop,
        "closure": make_closure(),
        "bound": eval("lambda: 1"),
        "huge": "x" * 30_000,
        "sys": 1,
        "inline": lambda: 1,
        "partly": functools.partial(print, 1),
    }
    message = refused(pipeline, names)
    for part in (
        "Pipeline 'p' cannot be written as a module:",
        "  - client: a value of type _thread.lock cannot be written as Python; make it in a Python step",
        "  - loop: a value of type list cannot be written",
        "  - closure: it uses 'held' of the function around it",
        "  - bound: its source is not known; define it with def",
        "  - inline: its source is not known; define it with def",
        "  - huge: 30,002 characters are too many for a module",
        "  - get_ipython: only a notebook has it",
        "  - sys: two different things have this name",
        "  - partly: a value of type functools.partial cannot be written",
        "  - Made: its source is not known; define the class",
        "  - shared lock: a value of type",
        "  - step b, when: a condition of the class Odd cannot be written",
        "  - step c, when: a value of type _thread.lock",
        "  - step d, model: a model object (TestModel) cannot be written; name it by a string",
        "  - step d, settings: a value of type dict cannot be written",
        "  - step e, tools_filter: Step 'e': tools_filter names 'nowhere', which is no tool.",
        "  - step f, checks: <lambda> has no name; write it with def",
    ):
        assert part in message


def test_a_secret_stands_in_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_API_KEY", "sk-0123456789abcdef")
    pipeline = one_cell("len(key)")
    with pytest.raises(DefinitionError) as caught:
        export_module(pipeline, {"key": "sk-0123456789abcdef"})
    assert "read it where it is used: os.environ['SHOP_API_KEY']" in str(caught.value)
    assert "sk-0123456789abcdef" not in str(caught.value)


def test_functions_that_cannot_be_moved_are_reported() -> None:
    pipeline = Pipeline("p")
    pipeline.task(name="a")(make_closure())
    pipeline.task(name="b")(lambda: 1)
    message = refused(pipeline)
    assert "step a: it uses 'held' of the function around it" in message
    assert "step b: " in message


def two(number: int) -> Callable[[], int]:
    if number == 1:

        def same() -> int:
            return 1

    else:

        def same() -> int:
            return 2

    return same


def test_two_functions_of_one_name_are_reported() -> None:
    pipeline = Pipeline("p")
    pipeline.task(name="a")(two(1))
    pipeline.task(name="b")(two(2))
    assert "step b: there are two functions 'same'; rename one of them" in refused(pipeline)


def test_a_lambda_with_a_name_of_its_own_is_still_no_step() -> None:
    pipeline = Pipeline("p")
    function = lambda: 1  # noqa: E731
    pipeline.task(name="a")(function)
    assert "step a: a lambda has no name; write it with def" in refused(pipeline)


def test_a_repr_that_says_something_else_is_not_trusted() -> None:
    class Sly(datetime):
        def __repr__(self) -> str:
            return "datetime.datetime(2000, 1, 1)"

    Sly.__module__ = "datetime"

    class Broken(datetime):
        def __repr__(self) -> str:
            return "<broken>"

    Broken.__module__ = "datetime"
    message = refused(one_cell("a1, b1"), {"a1": Sly(2024, 1, 1), "b1": Broken(2024, 1, 1)})
    assert "  - a1: a value of type datetime." in message
    assert "  - b1: a value of type datetime." in message


def test_a_pipeline_with_problems_is_refused() -> None:
    with pytest.raises(PipelineValidationError):
        export_module(Pipeline("empty"))


def test_a_model_object_is_left_to_anyone_who_runs_the_module() -> None:
    text = export_module(Pipeline("p", model=TestModel()).step("a", "x"))
    assert "# The notebook used a model object (TestModel): give --model." in text
    assert "pipeline = tagent_nb.Pipeline('p')" in text


# -- the module, run ------------------------------------------------------------------------------


def test_the_module_runs_by_itself(tmp_path: Path) -> None:
    pipeline = Pipeline("script").put(cell("load", "[1, 2]"))
    pipeline.step("ask", "Say {{ load }}.")
    file = tmp_path / "exported.py"
    file.write_text(export_module(pipeline), encoding="utf-8")
    help_text = script(file, "--help").stdout
    assert "Run the pipeline 'script'." in help_text
    without = script(file)
    assert (without.returncode, without.stdout) == (1, "")
    assert "Step 'ask' has no model" in without.stderr
    assert "Traceback" not in without.stderr
    done = script(file, "--model", "test", "--storage", "kept")
    assert done.returncode == 0, done.stderr
    assert "ask" in done.stdout
    assert (tmp_path / "kept").is_dir()
    again = script(file, "--model", "test", "--storage", "kept", "--resume")
    assert again.returncode == 0, again.stderr


def test_a_module_that_fails_says_where(tmp_path: Path) -> None:
    file = tmp_path / "exported.py"
    file.write_text(export_module(one_cell("1 / 0", max_retries=0)), encoding="utf-8")
    done = script(file)
    assert done.returncode == 1
    assert "a: ZeroDivisionError" in done.stderr


def test_a_module_goes_on_with_what_the_notebook_has_cached_and_recorded(
    shell: InteractiveShell, tmp_path: Path
) -> None:
    """Exporting changes no fingerprint: of cells, goals, helpers, schemas and tools."""
    shell.run_cell(NOTEBOOK).raise_error()
    pipeline = Pipeline("shared", model="test")
    pipeline.put(cell("numbers", "# rows\n[LIMIT, triple(2)]"))
    pipeline.put(cell("result", "sums(numbers)", output_schema=shell.user_ns["Answer"]))
    pipeline.step("ask", "Say {{ result.text }}\nand no more.", output_schema=shell.user_ns["Inner"])
    file = tmp_path / "exported.py"
    file.write_text(export_module(pipeline, shell.user_ns), encoding="utf-8")
    run = PipelineExecutor(
        pipeline,
        storage=tmp_path / ".tagent/runs",
        cache=ResultCache(tmp_path / ".tagent/cache"),
        namespace=shell.user_ns,
    ).run()
    assert run.success
    done = script(file)
    assert re.findall(r"^(\w+) +cached ", done.stdout, re.MULTILINE) == ["numbers", "result", "ask"]
    resumed = script(file, "--resume", run.run_id)
    assert resumed.returncode == 0, resumed.stderr


def test_a_module_is_known_until_someone_changes_it() -> None:
    text = export_module(one_cell("1"))
    assert is_own(text)
    assert not is_own(text + "# mine\n")
    assert not is_own("print(1)\n")
    assert export_module(one_cell("1")) == text


def test_a_module_runs_on_the_rows_of_a_file(tmp_path: Path) -> None:
    """``python exported.py --input rows.csv``"""
    pipeline = Pipeline("p").put(cell("load", "raise RuntimeError('not asked')", max_retries=0))
    pipeline.put(cell("total", "int(load['stars'].sum())"))
    (tmp_path / "exported.py").write_text(export_module(pipeline), encoding="utf-8")
    (tmp_path / "rows.csv").write_text("stars\n2\n40\n", encoding="utf-8")
    for words in (["--input", "rows.csv"], ["--input", "load=rows.csv", "--resume"]):
        done = script(tmp_path / "exported.py", *words)
        assert done.returncode == 0, done.stderr
        assert re.search(r"total +completed +42", done.stdout)
    done = script(tmp_path / "exported.py", "--input", "laod=rows.csv")
    assert done.returncode == 1
    assert "Did you mean 'load'?" in done.stderr
