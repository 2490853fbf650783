"""What a step returned is what its readers get, live, cached and in a later session, types included."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
import round_trip_values
from hypothesis import HealthCheck, given, settings
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from round_trip_child import typed

from tagent_nb import Pipeline, PipelineExecutor, PipelineResult, PipelineStep, ResultCache
from tagent_nb.engine import schemas_of
from tagent_nb.pipeline import PythonBody
from tagent_nb.serde import StoredValue, classes, from_tree, to_tree
from tagent_nb.serde import value as codec

CHILD = Path(__file__).parents[1] / "round_trip_child.py"


def write(folder: Path, **modules: str) -> None:
    """The user's modules; two underscores in a name stand for a folder."""
    for name, text in modules.items():
        file = folder / f"{name.replace('__', '/').replace('Init', '__init__')}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(dedent(text))


def session(folder: Path, mode: str, seed: int) -> dict[str, Any]:
    """One session of the script in ``folder``."""
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(CHILD), str(folder), mode]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def check(folder: Path) -> dict[str, Any]:
    """Run the script, and again later: all values are equal. Returns what the first session said."""
    first, later = session(folder, "run", 1), session(folder, "later", 2)
    for name, value in first["first"].items():
        assert first["cached"][name] == value, name
        assert later["recorded"][name] == value, name
        assert later["first"][name] == value, name
    assert set(later["steps"].values()) == {"cached"}, later["steps"]
    assert later["warnings"] == []
    return first


MYLIB = """
from __future__ import annotations
from dataclasses import dataclass, field
from enum import Enum, Flag, IntEnum, StrEnum
from typing import NamedTuple

@dataclass(frozen=True, slots=True)
class Row:
    text: str
    n: float = 0.0

class Kind(Enum):
    GOOD = "good"
    BAD = "bad"

class Pair(NamedTuple):
    a: int
    b: Row

def make():
    from mylib import deep
    return deep.Deep([Row("deep")], deep.Deep.Mood.HAPPY)
"""

DEEP = """
from dataclasses import dataclass
from enum import Enum

@dataclass
class Deep:
    rows: list
    mood: "Deep.Mood"

    class Mood(Enum):
        HAPPY = 1
        SAD = 2
"""

SCHEMAS = """
from __future__ import annotations
from typing import Annotated, Any, Generic, Literal, TypeVar
from pydantic import BaseModel, BeforeValidator, Field, RootModel, field_validator

T = TypeVar("T")

class Invoice(BaseModel):
    lines: list[Line]
    tags: Tags
    shape: Annotated[Circle | Square, Field(discriminator="kind")]
    more: Line | None = None
    by_name: dict[str, Line] = {}
    _calls: int = 0

    def model_post_init(self, context: Any) -> None:
        self.lines.append(Line(itemPrice=1))

class Line(BaseModel):
    price: float = Field(alias="itemPrice")

    @field_validator("price")
    @classmethod
    def halved(cls, value: float) -> float:
        return value / 2

class Tags(RootModel[list[Annotated[str, BeforeValidator(lambda text: text + "!")]]]):
    pass

class Circle(BaseModel):
    kind: Literal["circle"] = "circle"
    radius: float

class Square(BaseModel):
    kind: Literal["square"] = "square"
    side: float

class Res(BaseModel, Generic[T]):
    item: T
    n: int = 0

class Item(BaseModel):
    name: str

class Answer(BaseModel):
    text: str
    n: float = 0
"""

OTHER = """
from dataclasses import dataclass
from pydantic import BaseModel

class Answer(BaseModel):
    text: str
    n: int = 0

@dataclass
class Item:
    name: str
"""

SCRIPT = """
import mylib
import other
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from enum import Enum, Flag, IntEnum, StrEnum, auto
from http import HTTPStatus
from pydantic import BaseModel, RootModel, create_model
from schemas import Answer as A, Circle, Invoice, Item, Line, Res, Square
from typing import NamedTuple, Optional
from tagent_nb import Pipeline, PipelineStep
from tagent_nb.pipeline.python_body import PythonBody

pipeline = Pipeline("round trip")

class Outer:
    class Color(Enum):
        RED = "red"
        SCARLET = "red"
        BLUE = "blue"

class Level(IntEnum):
    LOW = 1
    HIGH = 2

class Mode(StrEnum):
    FAST = "fast"

class Rights(Flag):
    READ = auto()
    WRITE = auto()

BOTH = Rights.READ | Rights.WRITE

class Strange(Enum):
    TEXT = ["a"]
    NOT_A_NUMBER = float("nan")

@dataclass
class Holder:
    color: Outer.Color
    levels: "dict[Level, Mode]"
    status: HTTPStatus = HTTPStatus.OK

class Dot(NamedTuple):
    x: int
    y: Outer.Color = Outer.Color.BLUE

    def far(self):
        return self.x > 3

Made = create_model("Dynamic", x=(int, ...))

def lines(*prices):
    return [Line(itemPrice=price) for price in prices]

@pipeline.task
def rows():
    return [mylib.Row("a", 3.0), mylib.Row("b", 1.5)]

@pipeline.task
def passed(rows):
    return {"first": rows[0], "kept": [row for row in rows if row.n > 2]}

@pipeline.task
def by_helper():
    return mylib.make()

@pipeline.task
def named():
    return [mylib.Pair(1, mylib.Row("x")), Dot(4), {"k": mylib.Kind.BAD}]

@pipeline.task(output_schema=Invoice)
def invoice():
    more, named = lines(2, 6)
    shape = Square(side=2)
    return Invoice(lines=lines(4, 8), tags=["x"], shape=shape, more=more, by_name={"a": named})

@pipeline.task
def invoices():
    return [Invoice(lines=[], tags=[], shape=Circle(radius=1))] * 2

@pipeline.task
def enums():
    return [Outer.Color.RED, Outer.Color.SCARLET, Level.HIGH, Mode.FAST, BOTH, Rights(0),
            Strange.TEXT, Strange.NOT_A_NUMBER, HTTPStatus.NOT_FOUND]

@pipeline.task
def enum_places():
    return {"held": Holder(Outer.Color.BLUE, {Level.LOW: Mode.FAST}), "set": {Level.LOW, Level.HIGH},
            "keys": {Outer.Color.RED: 1, Level.LOW: 2, Mode.FAST: 3, 2: 4},
            "counted": Counter([Level.LOW, Level.LOW]), "more": defaultdict(list, {Mode.FAST: [Level.LOW]}),
            "queue": deque([Outer.Color.RED], maxlen=3), "ordered": OrderedDict([(Outer.Color.RED, Dot(1))])}

@pipeline.task
def generics():
    item = Item(name="i")
    return [Res[Item](item=item), Res[int](item=1), Res[float](item=1.0), Res[list[Item]](item=[item]),
            Res[Res[Item]](item=Res[Item](item=item)), RootModel[list[int]]([1]), Res(item=item),
            Res[other.Item](item=other.Item("o")),
            RootModel[dict[str, Optional[Item]]]({"a": item, "b": None})]

@pipeline.task
def aliased():
    return [A(text="3", n=3.0), other.Answer(text="3", n=3), Made(x=1)]

@pipeline.task(output_schema=other.Answer)
def whole():
    return other.Answer(text="whole", n=3)

@pipeline.task(output_schema=A)
def part():
    return A(text="part", n=3.0)

@pipeline.task
def views():
    d = {"a": mylib.Row("a"), "b": mylib.Row("b")}
    return [d.keys(), d.values(), d.items(), OrderedDict(d).values()]

@pipeline.task(map_over="rows")
def mapped(item):
    return A(text=item.text, n=item.n) if item.n > 2 else mylib.Pair(1, item)

@pipeline.task(map_over="values")
def each(item):
    return Res[type(item)](item=item)

@pipeline.task
def values():
    return {"a": 1, "b": 2}.values()

@pipeline.task
def tuples():
    import pandas as pd
    return list(pd.DataFrame({"a": [1], "b c": ["x"]}).itertuples())

def by_closure():
    @dataclass
    class Inner:
        row: mylib.Row

    @pipeline.task
    def closed():
        return Inner(mylib.Row("c"))

by_closure()

cell = '''
from late import Late
import late_package.sub
[Late(1.0), late_package.sub.Sub("x"), Res[Late](item=Late(2.0))]
'''
if __name__ == "script":
    pass
namespace = {**globals()}
pipeline.put(PipelineStep("late", "late", body=PythonBody.from_cell("late", cell)))
"""

LATE = """
from pydantic import BaseModel
class Late(BaseModel):
    x: float
    def __init__(self, x=None, **more):
        super().__init__(x=x, **more)
"""

SUB = """
from dataclasses import dataclass
@dataclass
class Sub:
    text: str
"""


def test_values_of_all_kinds_of_classes_come_back_in_a_script_and_in_a_later_session(tmp_path: Path) -> None:
    write(tmp_path, mylib__Init=MYLIB, mylib__deep=DEEP, schemas=SCHEMAS, other=OTHER, script=SCRIPT)
    write(tmp_path, late=LATE, late_package__Init="", late_package__sub=SUB)
    problems = check(tmp_path)
    assert problems["warnings"] == []


DRAWN = """
import round_trip_values as values
from tagent_nb import Pipeline

pipeline = Pipeline("drawn")

@pipeline.task
def drawn():
    return values.draw(150)

@pipeline.task(map_over="drawn")
def each(item):
    return item
"""


def test_any_value_is_the_same_live_from_the_cache_and_in_a_later_session(tmp_path: Path) -> None:
    write(tmp_path, script=DRAWN)
    problems = check(tmp_path)
    assert problems["warnings"] == []


def _known() -> dict[str, type]:
    return {name: kind for name, kind in vars(round_trip_values).items() if isinstance(kind, type)}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(round_trip_values.values)
def test_any_value_is_the_same_when_it_is_read_and_its_digest_too(value: Any) -> None:
    stored = StoredValue.of(value)
    back = StoredValue.from_blob(stored.blob, stored.digest, _known()).value
    assert typed(back) == typed(value)
    assert codec.digest(back) == codec.digest(value) == stored.digest


# -- in a notebook ------------------------------------------------------------------------------


class Notebook:
    """Cells in one namespace, and sessions over the same storage and cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pipeline = Pipeline("notebook")
        self.namespace: dict[str, Any] = {}
        self.restart()

    def restart(self) -> None:
        """Another kernel: it has neither names nor classes of the one before."""
        self.namespace.clear()
        self.namespace["__name__"] = "__main__"
        gc.collect()
        classes._live.clear()

    def cell(self, source: str) -> None:
        exec(dedent(source), self.namespace)

    def step(self, name: str, source: str = "", **options: Any) -> None:
        body = PythonBody.from_cell(name, dedent(source)) if source else None
        self.pipeline.put(PipelineStep(name, options.pop("goal", name), body=body, **options))

    def executor(self, **options: Any) -> PipelineExecutor:
        return PipelineExecutor(
            self.pipeline,
            storage=str(self.folder / "runs"),
            cache=ResultCache(self.folder / "cache"),
            namespace=self.namespace,
            **options,
        )

    def run(self, **options: Any) -> PipelineResult:
        result = self.executor(**options).run()
        assert result.success, [step.error for step in result.steps.values()]
        return result

    def recorded(self) -> PipelineResult:
        return asyncio.run(self.executor().load_result())


@pytest.fixture
def notebook(tmp_path: Path) -> Notebook:
    return Notebook(tmp_path)


def answers(*texts: str) -> FunctionModel:
    """A model that answers these texts, one after the other."""
    left = iter(texts)

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if info.output_tools:
            return ModelResponse(parts=[ToolCallPart(info.output_tools[0].name, json.loads(next(left)))])
        return ModelResponse(parts=[TextPart(next(left))])

    return FunctionModel(answer)


@pytest.mark.parametrize(
    ("first", "second", "text", "other"),
    [
        ("label: str", "score: float", '{"label": "good"}', '{"score": 0.5}'),
        ("n: float", "n: int", '{"n": 3.0}', '{"n": 3}'),
        ("n: int", "n: float", '{"n": 3}', '{"n": 3.0}'),
        ("n: float = 1", "n: float | None = None", '{"n": 3.0}', '{"n": null}'),
        ("items: list[int]", "items: set[int]", '{"items": [1, 2]}', '{"items": [1, 2]}'),
    ],
)
def test_two_schemas_of_one_name_each_read_the_values_of_their_own_step(
    notebook: Notebook, first: str, second: str, text: str, other: str
) -> None:
    schema = "from pydantic import BaseModel\nclass Result(BaseModel):\n    "

    def define() -> None:
        notebook.cell(schema + first)
        notebook.step("classify", output_schema=notebook.namespace["Result"], model=answers(text))
        notebook.cell(schema + second)
        notebook.step("rate", output_schema=notebook.namespace["Result"], model=answers(other))

    define()
    live = {name: typed(value) for name, value in notebook.run().step_outputs.items()}
    for result in (notebook.run(), notebook.recorded()):
        assert {name: typed(value) for name, value in result.step_outputs.items()} == live
        assert type(result.step_outputs["classify"]) is notebook.pipeline.get_step("classify").output_schema
        assert type(result.step_outputs["rate"]) is notebook.pipeline.get_step("rate").output_schema
    notebook.restart()
    define()
    for result in (notebook.recorded(), notebook.run()):
        assert {name: typed(value) for name, value in result.step_outputs.items()} == live
        assert type(result.step_outputs["classify"]) is notebook.pipeline.get_step("classify").output_schema


def test_two_schemas_of_one_name_each_read_the_items_of_their_own_mapped_step(notebook: Notebook) -> None:
    def define() -> None:
        for name, kind, text in (("exact", "int", '{"n": 3}'), ("rough", "float", '{"n": 3.0}')):
            notebook.cell(f"from pydantic import BaseModel\nclass Result(BaseModel):\n    n: {kind}")
            schema = notebook.namespace["Result"]
            options: dict[str, Any] = {"map_over": "load", "goal": f"{name} {{{{ item }}}}"}
            notebook.step(name, output_schema=schema, model=answers(text, text), **options)

    notebook.step("load", "[1, 2]")
    define()
    notebook.run()
    notebook.restart()
    define()
    result = notebook.run()
    assert [typed(value.n) for value in result.step_outputs["exact"]] == ["builtins.int(3)"] * 2
    assert [typed(value.n) for value in result.step_outputs["rough"]] == ["builtins.float(3.0)"] * 2
    assert {step.status.value for step in result.steps.values()} == {"cached"}


def test_a_dataclass_beside_a_schema_of_its_name(notebook: Notebook) -> None:
    def define() -> None:
        notebook.cell("from pydantic import BaseModel\nclass Point(BaseModel):\n    x: float")
        notebook.step(
            "model", output_schema=notebook.namespace["Point"], goal="p", model=answers('{"x": 1.0}')
        )
        notebook.cell("from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int")
        notebook.step("data", "[Point(1), {Point(2).x: Point(3)}]")

    define()
    live = {name: typed(value) for name, value in notebook.run().step_outputs.items()}
    notebook.restart()
    define()
    result = notebook.run()
    assert {name: typed(value) for name, value in result.step_outputs.items()} == live
    assert type(result.step_outputs["data"][0]) is notebook.namespace["Point"]


@pytest.mark.parametrize(
    ("source", "loss"),
    [
        (
            "from dataclasses import dataclass\n@dataclass\nclass Local:\n    x: int\n[Local(1)]",
            "Local become dicts",
        ),
        ("from enum import Enum\nclass Local(Enum):\n    A = 1\nLocal.A", "Local become plain values"),
        (
            "import typing\nclass Local(typing.NamedTuple):\n    x: int\n    far = property(len)\nLocal(1)",
            "Local become plain named tuples",
        ),
        (
            "from pydantic import BaseModel\nclass Local(BaseModel):\n    x: int\n{1: Local(x=1)}",
            "become dicts",
        ),
        (
            "from dataclasses import dataclass\n@dataclass\nclass Known:\n    x: int\nKnown(1)",
            "become objects of the class __main__.Known, which has the same fields",
        ),
    ],
)
def test_a_class_that_no_later_session_can_find_is_warned_of_when_its_value_is_stored(
    notebook: Notebook, source: str, loss: str
) -> None:
    notebook.cell("from dataclasses import dataclass\n@dataclass\nclass Known:\n    x: int")
    notebook.step("make", source)
    first = notebook.run()
    [warning] = first.warnings
    assert warning.startswith("Step 'make': its value will not come back as it is when a later session reads")
    assert loss in warning
    again = notebook.run()
    assert again.warnings == []
    if "Known" not in source:
        assert typed(again.step_outputs["make"]) == typed(first.step_outputs["make"])


def test_what_an_object_has_beside_its_fields_is_there_after_a_restart(notebook: Notebook) -> None:
    """Private attributes, what ``__post_init__`` has set; what cannot be stored of it is warned of once."""
    notebook.cell(
        """
        import threading
        from dataclasses import dataclass
        from typing import Any
        from pydantic import BaseModel

        class Model(BaseModel):
            n: int
            _seen: int = 0
            _lock: Any = None

        @dataclass
        class Text:
            raw: str
            def __post_init__(self):
                self.words, self.lock = self.raw.split(), threading.Lock()
        """
    )
    notebook.step("make", "model = Model(n=1)\nmodel._seen, model._lock = 5, threading.Lock()\nmodel")
    notebook.step("texts", "[Text('a b'), Text('c')]")
    notebook.step("each", "(item.words, make._seen)", map_over="texts")
    first = notebook.run()
    assert sorted(first.warnings) == [
        "Step 'make': its value will come back without some attributes, which cannot be stored: "
        "__main__.Model._lock: an object of class _thread.lock cannot be stored. Return plain data, a "
        "dataclass, a pydantic model or a DataFrame. Keep what a later step needs in fields.",
        "Step 'texts': its value will come back without some attributes, which cannot be stored: "
        "__main__.Text.lock: an object of class _thread.lock cannot be stored. Return plain data, a "
        "dataclass, a pydantic model or a DataFrame. Keep what a later step needs in fields.",
    ]
    notebook.restart()
    notebook.cell(
        """
        import threading
        from dataclasses import dataclass
        from typing import Any
        from pydantic import BaseModel

        class Model(BaseModel):
            n: int
            _seen: int = 0
            _lock: Any = None

        @dataclass
        class Text:
            raw: str
            def __post_init__(self):
                self.words, self.lock = self.raw.split(), threading.Lock()
        """
    )
    notebook.step("each", "(make._seen, item.words)", map_over="texts")
    again = notebook.run()
    assert {name: step.status.value for name, step in again.steps.items()} == {
        "make": "cached",
        "texts": "cached",
        "each": "completed",
    }
    assert again.step_outputs["each"] == [(5, ["a", "b"]), (5, ["c"])]
    assert again.warnings == []


def test_named_tuples_without_a_class_of_their_own_are_nothing_to_warn_of(notebook: Notebook) -> None:
    source = "import pandas as pd\nlist(pd.DataFrame({'a': [1], 'b c': [2.0]}).itertuples())"
    notebook.step("rows", source)
    notebook.step("each", "item.a", map_over="rows")
    first = notebook.run()
    notebook.restart()
    again = notebook.run()
    assert (first.warnings, again.warnings) == ([], [])
    assert again.step_outputs["rows"][0]._fields == ("Index", "a", "_2")
    assert typed(again.step_outputs["rows"]) == typed(first.step_outputs["rows"])
    assert again.step_outputs["each"] == [1]


def test_an_edited_docstring_runs_no_validator_when_history_is_read(notebook: Notebook) -> None:
    schema = """
        from pydantic import BaseModel, Field, field_validator
        class Score(BaseModel):
            '''{0}'''
            percent: float = Field(1.0, description="{0}", ge={1})

            @field_validator("percent")
            @classmethod
            def fraction(cls, value):
                ran.append(value)
                return value / 100
    """
    notebook.cell("ran = []" + dedent(schema.format("old", 0)))
    notebook.step("score", "Score(percent=50)")
    notebook.run()
    for words, least in (("new", 0), ("newer", -1)):
        notebook.restart()
        notebook.cell("ran = []" + dedent(schema.format(words, least)))
        value = notebook.recorded().step_outputs["score"]
        assert (type(value), value.percent, notebook.namespace["ran"]) == (
            notebook.namespace["Score"],
            0.5,
            [],
        )


def test_a_class_whose_fields_changed_takes_only_what_it_would_hold_as_it_is(notebook: Notebook) -> None:
    notebook.cell("from pydantic import BaseModel\nclass Answer(BaseModel):\n    n: float")
    notebook.step("make", "Answer(n=3)")
    notebook.run()
    for fields, fits in (
        ("n: int", False),
        ("n: float | None", True),
        ("m: float", False),
        ("n: str", False),
    ):
        notebook.restart()
        notebook.cell(f"from pydantic import BaseModel\nclass Answer(BaseModel):\n    {fields}")
        value = notebook.recorded().step_outputs["make"]
        assert type(value) is (notebook.namespace["Answer"] if fits else dict), fields
        assert typed(value["n"] if type(value) is dict else value.n) == "builtins.float(3.0)"


CHANGED = """
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar
T = TypeVar("T")
class Odd(type):
    def __instancecheck__(cls, value): raise RuntimeError("asked")
class Asked(metaclass=Odd): pass
class Sized(Protocol):
    def size(self) -> int: ...
class Pair(NamedTuple):
    {pair}: int
@dataclass
class Box(Generic[T]):
    item: {item}
@dataclass
class Answer:
    x: {x}
    y: {y} = 0
"""
BEFORE = {"pair": "a", "item": "T", "x": "Any", "y": "int"}


def cell_of(notebook: Notebook, parts: dict[str, str]) -> None:
    """Annotations that are no texts, unlike those of this file."""
    exec(compile(CHANGED.format(**parts), "<cell>", "exec", dont_inherit=True), notebook.namespace)


@pytest.mark.parametrize(
    ("value", "after", "fits"),
    [
        ("Box(3)", {"item": "int"}, True),
        ("Box('a')", {"item": "int"}, False),
        ("Answer(Box(3))", {"x": "Box[int]"}, True),
        ("Answer(3)", {"x": "Box[int]"}, False),
        ("Answer(3)", {"x": "T"}, True),
        ("Answer(None)", {"x": "None", "y": "'not.there'"}, True),
        ("Answer(3)", {"x": "None", "y": "'not.there'"}, False),
        ("Answer(3)", {"x": "Sized"}, True),
        ("Answer(3)", {"x": "Asked"}, True),
        ("Answer(3)", {"x": "Asked | int"}, True),
    ],
)
def test_a_changed_annotation_takes_what_it_describes_and_what_no_one_can_judge(
    notebook: Notebook, value: str, after: dict[str, str], fits: bool
) -> None:
    """Judging runs none of the user's code that could fail it: such annotations take what was recorded."""
    cell_of(notebook, BEFORE)
    notebook.step("make", value)
    name = value.partition("(")[0]
    notebook.run()
    notebook.restart()
    cell_of(notebook, BEFORE | after)
    back = notebook.recorded().step_outputs["make"]
    assert type(back) is (notebook.namespace[name] if fits else dict)


def test_a_named_tuple_whose_fields_changed_comes_back_as_a_plain_one(notebook: Notebook) -> None:
    cell_of(notebook, BEFORE)
    notebook.step("make", "Pair(1)")
    notebook.run()
    notebook.restart()
    cell_of(notebook, BEFORE | {"pair": "b"})
    back = notebook.recorded().step_outputs["make"]
    assert type(back) is not notebook.namespace["Pair"]
    assert back._asdict() == {"a": 1}


def test_views_of_dicts_are_mapped_over(notebook: Notebook) -> None:
    for view in ("keys", "values", "items"):
        notebook.step(view, f"{{'a': 1, 'b': 2}}.{view}()")
        notebook.step(f"each_{view}", "item", map_over=view)
    notebook.run()
    notebook.restart()
    result = notebook.run()
    assert result.step_outputs["each_keys"] == ["a", "b"]
    assert result.step_outputs["each_values"] == [1, 2]
    assert result.step_outputs["each_items"] == [("a", 1), ("b", 2)]


# -- what code refers to ------------------------------------------------------------------------

HIDDEN = """
from dataclasses import dataclass

@dataclass
class Row:
    n: int

def make(n=1):
    return Row(n)
"""


def forget() -> None:
    """As in a process that has not imported the user's modules."""
    for module in ("front", "hidden"):
        sys.modules.pop(module, None)


@pytest.fixture
def unloaded() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    "front",
    [
        "import hidden\nmake = hidden.make",
        "import hidden as other\ndef make():\n    return other.make()",
        "from hidden import make",
        "import functools, hidden\nmake = functools.partial(hidden.make, 1)",
        "import functools, hidden\n@functools.lru_cache\ndef make():\n    return hidden.Row(1)",
        "import functools, hidden\n@functools.wraps(hidden.make)\ndef make():\n    return hidden.make()",
        "import hidden\nclass Maker:\n    def make(self):\n        return hidden.Row(1)\nmake = Maker().make",
        "import hidden\nclass Maker:\n    def __call__(self):\n        return hidden.Row(1)\nmake = Maker()",
        "def make():\n    import hidden\n    return hidden.Row(1)",
        "def make():\n    from hidden import Row\n    return Row(1)",
        "def make(kind=__import__('hidden').Row):\n    return kind(1)",
        "def make(*, kind=__import__('hidden').Row):\n    return kind(1)",
        "def outer(kind):\n    return lambda: kind(1)\nmake = outer(__import__('hidden').Row)",
    ],
)
def test_classes_are_found_through_what_the_code_refers_to(
    notebook: Notebook, monkeypatch: pytest.MonkeyPatch, front: str
) -> None:
    write(notebook.folder, hidden=HIDDEN, front=front, hollow="class Row: n: int")
    monkeypatch.syspath_prepend(str(notebook.folder))
    notebook.step("rows", "[make(), {make().n: make()}]")
    # One that is loaded already brings nothing.
    notebook.step("imports", "import abc, front\n[front.make(), {1: front.make()}]")
    for name, with_name in (("rows", True), ("imports", False), ("function", False)):
        forget()
        make = importlib.import_module("front").make

        def function(make: Any = make) -> Any:
            return [make(), {1: make()}]

        notebook.pipeline.put(PipelineStep("function", "function", body=PythonBody.from_function(function)))
        notebook.namespace.update({"make": make} if with_name else {})
        schemas = schemas_of(notebook.pipeline, [], notebook.namespace).for_step(name)
        value = [make(), {make().n: make()}]
        tree = to_tree(value)
        assert schemas.loss_of(type(value[0])) == ""
        back = from_tree(tree, schemas)
        assert typed(back) == typed(value)
        assert type(back[0]) is type(value[0])
        notebook.restart()
    forget()
    back = from_tree(tree, schemas_of(notebook.pipeline, [], {}).for_step("imports"))
    assert typed(back) == typed(value)


@pytest.mark.usefixtures("unloaded")
def test_a_module_is_never_loaded_because_a_stored_value_names_it(
    notebook: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that the step does not import, nor one whose import fails."""
    write(notebook.folder, hidden=HIDDEN, broken="raise RuntimeError('no')")
    monkeypatch.syspath_prepend(str(notebook.folder))
    node = {"$t": "data", "name": "Row", "class": "hidden:Row", "shape": "0", "v": {"n": 1}}
    for source in ("1", "import broken\n1", "import json.nothing\n1"):
        notebook.step("rows", source)
        schemas = schemas_of(notebook.pipeline, [], notebook.namespace)
        assert from_tree(node, schemas.for_step("rows")) == {"n": 1}
        assert "hidden" not in sys.modules


def test_what_cannot_be_followed_is_left_out(notebook: Notebook) -> None:
    class Hostile(type):
        def __getattribute__(cls, name: str) -> Any:
            raise RuntimeError(name)

    def unset() -> Any:
        return later()

    notebook.namespace["Bad"] = Hostile("Bad", (), {})
    notebook.namespace["hostile"] = notebook.namespace["Bad"]()
    notebook.namespace["unset"] = unset
    notebook.step("rows", "unset() if False else hostile")
    notebook.step("ask", goal="Ask", tools=[unset], tools_filter=["gone"])
    node = {"$t": "data", "name": "Gone", "class": "nowhere:Gone", "v": {"n": 1}}
    schemas = schemas_of(notebook.pipeline, [], notebook.namespace)
    for step in ("rows", "ask", "other"):
        assert from_tree(node, schemas.for_step(step)) == {"n": 1}
        assert from_tree({**node, "name": "Bad"}, schemas.for_step(step)) == {"n": 1}
    assert (list(schemas), len(schemas)) == (["Bad"], 1)

    def later() -> int:
        return 1


def test_registered_classes_and_their_modules_answer_too(
    notebook: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hidden", module := ModuleType("hidden"))
    exec(
        dedent(HIDDEN) + "from pydantic import BaseModel\nclass Answer(BaseModel):\n    n: int", vars(module)
    )
    schemas = schemas_of(notebook.pipeline, [module.Answer], {})
    back = from_tree(to_tree([module.Answer(n=1), module.Row(2), module.make(3)]), schemas)
    assert back == [module.Answer(n=1), module.Row(2), module.Row(3)]
    assert type(back[1]) is module.Row
    assert schemas["Answer"] is module.Answer
