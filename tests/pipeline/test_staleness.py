"""An edit that changes what a step may return reaches the step; one that cannot does not run it again."""

# ruff: noqa: E501  # sources of notebooks

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagent_nb import Pipeline, PipelineExecutor, PipelineStep, ResultCache
from tagent_nb.cache import explain, input_components
from tagent_nb.pipeline import PythonBody, missing_names
from tagent_nb.serde import StoredValue
from tagent_nb.templating import Reference

IMPORTS = """
import dataclasses, enum, functools
from typing import *
from pydantic import *
import pandas as pd
"""


class Notebook:
    """Cells of plain Python, steps, and a cache that outlives kernels.

    Args:
        folder: Where the cache is.
        steps: Text of each step by name; with a colon in front, the goal of an agent.
        options: Options of steps by name, as Python text that is read in the notebook.
        shared: The pipeline's shared values, likewise.
    """

    def __init__(
        self,
        folder: Path,
        steps: Mapping[str, str],
        options: Mapping[str, str] | None = None,
        shared: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.steps = folder, steps
        self.options, self.shared = options or {}, shared or {}
        self.outputs: dict[str, Any] = {}

    async def run(self, source: str) -> set[str]:
        """The names of the steps that ran, in a new kernel whose cells have this text."""
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(IMPORTS + source, "<cells>", "exec", dont_inherit=True), space)
        pipeline = Pipeline("edited", model="test")
        for name, value in self.shared.items():
            pipeline.shared_context[name] = eval(value, space)
        for name, text in self.steps.items():
            options = eval(f"dict({self.options.get(name, '')})", space)
            python = not text.startswith(":")
            pipeline.put(PipelineStep.from_cell(name, text.removeprefix(":"), python=python, **options))
        cache = ResultCache(self.folder)
        try:
            result = await PipelineExecutor(pipeline, cache=cache, namespace=space).execute()
        finally:
            cache.close()
        assert result.success, {name: step.error for name, step in result.steps.items()}
        self.outputs = dict(result.step_outputs)
        return {name for name, step in result.steps.items() if step.status.value == "completed"}


async def reached(notebook: Notebook, source: str, before: str, after: str) -> set[str]:
    """The steps that run again after an edit."""
    assert before in source
    assert await notebook.run(source) == set(notebook.steps)
    assert await notebook.run(source) == set()
    ran = await notebook.run(source.replace(before, after))
    assert await notebook.run(source.replace(before, after)) == set()
    return ran


MODEL = """
class R(BaseModel):
    '''Doc.'''
    text: str = Field(description="words")
    note: str | None = None
    @property
    def short(self): return self.text[:3]
def make(text): return R(text=text)
"""
DATA = """
@dataclasses.dataclass
class R:
    '''Doc.'''
    text: str
    @property
    def short(self): return self.text[:3]
def make(text): return R(text)
"""
TUPLE = """
class R(NamedTuple):
    '''Doc.'''
    text: str
    @property
    def short(self): return self.text[:3]
def make(text): return R(text)
"""
HELPED = """
def cut(text): return text[:3]
class Base:
    @functools.cached_property
    def short(self): return cut(self.text)
class R(Base, BaseModel):
    '''Doc.'''
    text: str
def make(text): return R(text=text)
"""
ENUM = """
class R(enum.Enum):
    '''Doc.'''
    abcdef = 1
    uvwxyz = 2
    @property
    def short(self): return self.name[:3]
def make(text): return R[text]
"""


@pytest.mark.parametrize(
    "source", [MODEL, DATA, TUPLE, HELPED, ENUM], ids=["model", "data", "tuple", "base", "enum"]
)
async def test_the_class_of_an_input_counts_for_python_steps(source: str, tmp_path: Path) -> None:
    steps = {
        "load": "make('abcdef')",
        "rows": "[make('abcdef'), make('uvwxyz')]",
        "nested": "{'a': [(make('abcdef'), 1)]}",
        "frame": "pd.DataFrame({'r': [make('abcdef')]}, dtype=object)",
        "use": "load.short",
        "each": "item.short",
        "deep": "nested['a'][0][0].short",
        "cell": "frame['r'][0].short",
        "around": "shared['r'].short",
        "still": "1",
        "after": "use.upper()",
    }
    notebook = Notebook(tmp_path, steps, {"each": "map_over='rows'"}, {"r": "make('uvwxyz')"})
    readers = {"use", "each", "deep", "cell", "around"}
    makers = {"load", "rows", "nested", "frame"}
    assert await reached(notebook, source, "[:3]", "[:2]") == {*makers, *readers, "after"}
    assert notebook.outputs["use"] == "ab"
    assert notebook.outputs["each"] == ["ab", "uv"]
    # Who makes the values may look at a docstring of pydantic's; who only reads them does not.
    assert (await notebook.run(source.replace("'''Doc.'''", "'''Other.'''"))) <= makers
    assert await notebook.run(source.replace("Doc.", "Other.").replace("'''", '"""')) == set()
    assert await notebook.run(source + "\nclass Other:\n    def f(self): return 1\n") == set()


async def test_the_description_of_a_field_does_not_count_for_who_reads_it(tmp_path: Path) -> None:
    steps = {"load": "make('abcdef')", "use": "load.short"}
    assert await reached(Notebook(tmp_path / "a", steps), MODEL, '"words"', '"all words"') == {"load"}
    noted = MODEL.replace(
        'text: str = Field(description="words")', 'text: Annotated[str, Field(description="words")]'
    )
    assert await reached(Notebook(tmp_path / "b", steps), noted, '"words"', '"all words"') == {"load"}
    limited = noted.replace('Field(description="words")', 'Field(description="words", max_length=20)')
    assert await reached(Notebook(tmp_path / "c", steps), limited, "20", "21") == {"load", "use"}


COMPUTED = """
class Part(BaseModel):
    text: str
    @computed_field
    @property
    def short(self) -> str: return self.text[:3]
    def unused(self): return 1
@dataclasses.dataclass
class Holder:
    part: Part
def part(): return Part(text='abcdef')
"""


async def test_what_a_goal_prints_of_a_value_counts(tmp_path: Path) -> None:
    steps = {
        "load": "part()",
        "rows": "[part(), Part(text='uvwxyz')]",
        "holder": "Holder(part())",
        "frame": "pd.DataFrame({'r': [part()]})",
        "whole": ":Say {{ load }}",
        "each": ":Say {{ item }}",
        "each_part": ":{% for one in rows %}{{ one.short }}{% endfor %}",
        "inner": ":Say {{ holder.part }}",
        "deep": ":Say {{ holder }}",
        "table": ":Say {{ frame }}",
        "field": ":Say {{ load.short }}",
        "plain": ":Say {{ load.text }}",
        "still": ":Say hello",
    }
    notebook = Notebook(tmp_path, steps, {"each": "map_over='rows'"})
    readers = {"whole", "each", "each_part", "inner", "deep", "table", "field"}
    makers = {"load", "rows", "holder", "frame"}
    assert await reached(notebook, COMPUTED, "[:3]", "[:2]") == {*makers, *readers}
    assert await notebook.run(COMPUTED.replace("return 1", "return 2")) == makers


async def test_what_a_goal_prints_of_shared_values_counts(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path, {"around": ":Say {{ shared.part }}"}, shared={"part": "[part()]"})
    assert await reached(notebook, COMPUTED, "[:3]", "[:2]") == {"around"}
    assert await notebook.run(COMPUTED.replace("[:3]", "[:2]").replace("return 1", "return 2")) == set()


async def test_all_rows_of_a_frame_count_for_what_a_goal_prints(tmp_path: Path) -> None:
    source = COMPUTED + "def row(n): return Part(text='a' * (4 if n == 250 else 1))\n"
    steps = {
        "frame": "pd.DataFrame({'r': [row(n) for n in range(300)]})",
        "last": ":{{ frame[250].r.short }}",
    }
    assert await reached(Notebook(tmp_path, steps), source, "[:3]", "[:2]") == {"frame", "last"}


async def test_a_computed_field_that_fails_counts_with_its_code(tmp_path: Path) -> None:
    source = COMPUTED.replace("self.text[:3]", "self.text[1 / 0]")
    notebook = Notebook(
        tmp_path, {"load": "part()", "field": ":Say {{ load.text }}{% if false %}{{ load }}{% endif %}"}
    )
    assert await reached(notebook, source, "1 / 0", "2 / 0") == {"load", "field"}
    assert await notebook.run(source.replace("return 1", "return 2")) == {"load", "field"}


async def test_methods_do_not_count_for_a_goal_which_prints_fields(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path, {"load": "make('abcdef')", "say": ":Say {{ load }}"})
    assert await reached(notebook, MODEL, "[:3]", "[:2]") == {"load"}


async def test_classes_in_globals_facts_and_memories_count(tmp_path: Path) -> None:
    source = MODEL + "TABLE = {'a': [R(text='abcdef')]}\n"
    steps = {
        "table": "TABLE['a'][0].short",
        "learn": "context.learn('r', make('abcdef'))",
        "use": "learn\nfacts['r'].short",
        "still": "1",
    }
    assert await reached(Notebook(tmp_path, steps), source, "[:3]", "[:2]") == {"table", "learn", "use"}


def test_two_classes_of_one_name_both_count() -> None:
    def components(first: str, second: str) -> dict[str, str]:
        values = {}
        for name, source in (("one", first), ("two", second)):
            space: dict[str, Any] = {"__name__": "__main__"}
            exec(compile(IMPORTS + source, "<cells>", "exec", dont_inherit=True), space)
            values[name] = StoredValue.of(space["make"]("abcdef"))
        step = PipelineStep.from_cell("use", "one.short + two.short", python=True)
        reads = [Reference("one"), Reference("two")]
        return input_components(reads, values, step=step, namespace={})

    before = components(MODEL, DATA)
    assert components(MODEL, DATA) == before
    for first, second in ((MODEL, DATA.replace("[:3]", "[:2]")), (MODEL.replace("[:3]", "[:2]"), DATA)):
        after = components(first, second)
        assert {name for name in before if before[name] != after[name]} == {"class:R"}


def test_the_classes_of_a_value_are_those_that_its_readers_get() -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(IMPORTS + MODEL + "class E(enum.Enum):\n    A = 1\n", "<cells>", "exec"), space)
    model, kind = space["R"], space["E"]
    value = StoredValue.of({"a": [model(text="$t"), kind.A]})
    assert value.classes == {model, kind}
    stored = StoredValue.of({"a": [model(text="$t"), kind.A]})
    blob = stored.blob
    assert stored.classes == {model, kind}
    assert StoredValue.from_blob(blob, stored.digest, {"R": model, "E": kind}).classes == {model, kind}
    assert StoredValue.from_blob(blob, stored.digest, {"R": model}).classes == {model}
    plain = StoredValue.of([1, '"$t":"model"', {"$t": "model"}])
    assert StoredValue.from_blob(plain.blob, plain.digest).classes == frozenset()
    assert StoredValue.from_blob(b'{"$t":"model"', "0" * 64).classes == frozenset()
    assert StoredValue.of(lambda: 1).classes == frozenset()


# -- names in texts for pandas ----------------------------------------------------------------

LIMITS = """
limit = 2
class settings: limit = 1
words = "stars >= @limit"
def plus(x): return x + pd.eval("1 + limit") + eval("limit")
LABELS = ("a", ("stars >= 1",))
def best(frame): return len(LABELS) - 2 + len(frame.query("stars >= @limit"))
def both(frame): return [len(frame.query(text)) for text in ("stars >= @limit", "stars > @limit")]
def own(frame):
    limit = 1
    return len(frame.query("stars >= @limit"))
def over(frame, limit): return len(frame.query("stars >= @limit"))
"""
STARS = "pd.DataFrame({'stars': [1, 3, 5], 'mail': 'ann@limit'})"


@pytest.mark.parametrize(
    "text",
    [
        "len(load.query('stars >= @limit'))",
        "len(load.query(f'stars >= @limit and stars < {9}'))",
        "len(load.query('stars >= @settings.limit'))",
        "load.eval('stars + @limit').sum()",
        "int(pd.eval('1 + limit'))",
        "(lambda: eval('limit + 1'))()",
        "plus(1)",
        "text = 'stars >= @limit'\nlen(load.query(text))",
        "len(load.query(words))",
        "len(load.query(expr='stars in (@limit, 3)'))",
        "best(load)",
        "def inner():\n    for text in ('stars >= @limit', 'stars > @limit'):\n        least = len(load.query(text))\n    return least\ninner()",
        "both(load)",
        "load.pipe(lambda frame: len(frame.query('stars >= @limit')))",
        "def inner():\n    return len(load.query('stars >= @limit'))\ninner()",
    ],
)
async def test_names_in_texts_for_pandas_count(text: str, tmp_path: Path) -> None:
    source = LIMITS.replace("limit = 1\nwords", "limit = 2\nwords")
    assert await reached(
        Notebook(tmp_path, {"load": STARS, "use": text}), source, "limit = 2", "limit = 4"
    ) == {"use"}


@pytest.mark.parametrize(
    "text",
    [
        "limit = 1\nlen(load.query('stars >= @limit'))",
        "own(load)",
        "over(load, 1)",
        "len(load[load.mail == 'ann@limit'])",
        "'''Of ann@limit.'''\nlen(load.query('stars >= 1'))",
        "limits = [len(load.query('stars >= @limit')) for limit in (1, 2)]\nlen(limits)",
    ],
)
async def test_names_of_a_steps_own_do_not(text: str, tmp_path: Path) -> None:
    assert (
        await reached(Notebook(tmp_path, {"load": STARS, "use": text}), LIMITS, "limit = 2", "limit = 4")
        == set()
    )


async def test_a_text_for_pandas_may_name_a_step(tmp_path: Path) -> None:
    steps = {"load": STARS, "least": "bound", "use": "len(load.query('stars >= @least'))"}
    notebook = Notebook(tmp_path, steps)
    assert await reached(notebook, "bound = 2", "2", "4") == {"least", "use"}
    assert notebook.outputs["use"] == 1


def test_a_function_as_a_step_counts_names_in_texts() -> None:
    async def run() -> int:
        pipeline = Pipeline("functions")

        @pipeline.task
        def use() -> int:
            import pandas as pd

            return len(pd.DataFrame({"stars": [1, 3, 5]}).query("stars >= @LEAST"))

        with tempfile.TemporaryDirectory() as folder:
            cache = ResultCache(Path(folder) / "cache")
            try:
                seen = []
                for value in (2, 2, 4):
                    globals()["LEAST"] = value
                    result = await PipelineExecutor(pipeline, cache=cache).execute()
                    seen.append((result["use"], result.steps["use"].status.value))
            finally:
                cache.close()
        assert seen == [(2, "completed"), (2, "cached"), (1, "completed")]
        return len(seen)

    assert asyncio.run(run()) == 3


@pytest.mark.parametrize(
    ("text", "unseen"),
    [
        ("load.query(words)", ["load.query(words)"]),
        ("load.query(known)", []),
        ("load.query('a > ' + words)", ["load.query('a > ' + words)"]),
        ("load.query('a > ' + '@b')", []),
        ("load.query(f'@{words} > {words}')", ["load.query(f'@{words} > {words}')"]),
        ("load.query(f'{words} > @a')", []),
        ("y: str = 'a'\nx = y if load else 'b'\nload.query(x)", []),
        ("x = [0]\nx[0] = 'a'\nload.query(x[0])", ["load.query(x[0])"]),
        ("load.eval(expr=load.words)", ["load.eval(load.words)"]),
        ("load.query()\neval('1')\nload.sum(words)", []),
        ("from pandas import eval as compute\ncompute('1 +')", []),
    ],
)
def test_what_cannot_be_seen_of_texts_for_pandas(text: str, unseen: list[str]) -> None:
    assert PythonBody.from_cell("step", text).unseen_queries({"known": "a > 1", "load": 1}) == unseen


def test_a_text_with_an_at_sign_names_nothing_that_is_missing() -> None:
    body = PythonBody.from_cell("step", "load.query('mail == \"ann@example.org\"')")
    pipeline = Pipeline("mails")
    pipeline.put(PipelineStep.from_cell("load", "1", python=True))
    pipeline.put(PipelineStep.from_cell("use", body.source, python=True))
    assert body.quoted == {"example"}
    assert missing_names(pipeline, {}) == {}
    rebuilt = PythonBody.from_dict(
        {"kind": "function", "name": "f", "source": "def f(x):\n    return x.query('@y')\n"}
    )
    assert (rebuilt.names, rebuilt.quoted) == ({"y"}, {"y"})
    assert PythonBody.from_function(lambda x: x).unseen_queries({}) == []


def test_the_explanation_says_what_goals_can_print() -> None:
    reasons = explain({"shown:load": "1", "goal": "1"}, {"shown:load": "2", "goal": "1"}, None, None)
    assert reasons == ["what goals can print of load changed, such as computed fields of its classes"]


# -- more kinds of classes, helpers and models --------------------------------------------------

D = "@_dataclass\nclass D:\n    x: int = 1\n    y: int = 2\n"
AB = "class A:\n    def m(self): return 'a'\nclass B:\n    def m(self): return 'b'\n"


@pytest.mark.parametrize(
    ("source", "before", "after", "use", "value"),
    [
        (
            D + "    def _m(self, word): return word\n    m = functools.partialmethod(_m, 'a')\n",
            *("'a'", "'b'", "load.m()", "b"),
        ),
        (
            D + "    def _m(self, *, word): return word\n    m = functools.partialmethod(_m, word='a')\n",
            *("'a'", "'b'", "load.m()", "b"),
        ),
        (AB + D.replace("D:", "D(A, B):"), "D(A, B)", "D(B, A)", "load.m()", "b"),
        (AB + "class D(A, B, BaseModel): x: int = 1\n", "D(A, B,", "D(B, A,", "load.m()", "b"),
        (
            D + "    __match_args__ = ('x', 'y')\n",
            *("('x', 'y')", "('y', 'x')", "match load:\n    case D(a): found = a\nfound", 2),
        ),
        (
            "class D(NamedTuple):\n    x: int = 1\n    y: int = 2\nD.__match_args__ = ('x', 'y')\n",
            *("('x', 'y')", "('y', 'x')", "match load:\n    case D(a): found = a\nfound", 2),
        ),
    ],
    ids=["partial", "partial by keyword", "bases", "bases of a model", "match_args", "match_args of a tuple"],
)
async def test_what_is_beside_the_methods_of_a_class_counts(
    source: str, before: str, after: str, use: str, value: Any, tmp_path: Path
) -> None:
    source = "from dataclasses import dataclass as _dataclass\n" + source
    notebook = Notebook(tmp_path, {"load": "D()", "use": use, "still": "1"})
    assert await reached(notebook, source, before, after) == {"load", "use"}
    assert notebook.outputs["use"] == value


FIRST = "    @field_validator({0})\n    @classmethod\n    def first(cls, text): return text + '1'\n"
SECOND = "    @field_validator({0})\n    @classmethod\n    def second(cls, text): return text + '2'\n"


@pytest.mark.parametrize(
    ("fields", "others", "runs"),
    [("'a'", "'b'", False), ("'a'", "'a'", True), ("'a', 'b'", "'b'", True), ("'a'", "'*'", True)],
)
async def test_the_order_of_validators_counts_where_they_meet(
    fields: str, others: str, runs: bool, tmp_path: Path
) -> None:
    first, second = FIRST.format(fields), SECOND.format(others)
    source = f"class R(BaseModel):\n    a: str\n    b: str = 'b'\n{first}{second}"
    notebook = Notebook(tmp_path, {"ask": ":Say."}, {"ask": "output_schema=R"})
    assert await reached(notebook, source, first + second, second + first) == ({"ask"} if runs else set())


@pytest.mark.parametrize(
    ("source", "use"),
    [
        ("TEXTS = {'a': 'stars >= @limit'}", "len(load.query(TEXTS['a']))"),
        ("TEXTS = ['stars >= @limit']", "len(load.query(TEXTS[0]))"),
        ("class K:\n    text = 'stars >= @limit'", "len(load.query(K.text))"),
        ("def f(frame, text='stars >= @limit'): return len(frame.query(text))", "f(load)"),
        ("def text(): return 'stars >= @limit'", "len(load.query(text()))"),
        (
            "def text(): return 'stars >= @limit'\ndef f(frame): return len(frame.query(text()))",
            "f(load)",
        ),
        ("class cfg: limit = 2\ndef text(): return 'stars >= @cfg.limit'", "len(load.query(text()))"),
    ],
    ids=["table", "list", "class", "default", "helper", "helper of a helper", "attribute"],
)
async def test_names_in_texts_that_come_from_elsewhere_count(source: str, use: str, tmp_path: Path) -> None:
    if "cfg" not in source:
        source += "\nlimit = 2\n"
    notebook = Notebook(tmp_path, {"load": STARS, "use": use})
    assert await reached(notebook, source, "limit = 2", "limit = 4") == {"use"}
    assert notebook.outputs["use"] == 1


@pytest.mark.parametrize(
    "source",
    [
        "limit = 2\ndef text(): return 'ann@limit'\ndef f(frame): return len(text())",
        "limit = 2\ndef text():\n    limit = 1\n    return 'stars >= @limit'\n"
        "def f(frame): return len(frame.query('stars > 1')) + len(text())",
    ],
    ids=["no query", "a name of its own"],
)
async def test_other_texts_with_an_at_sign_do_not(source: str, tmp_path: Path) -> None:
    notebook = Notebook(tmp_path, {"load": STARS, "use": "f(load)"})
    assert await reached(notebook, source, "limit = 2", "limit = 4") == set()


DECORATOR = """
class decorated:
    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.function, self.calls = function, []
    def __call__(self, *args):
        self.calls.append(args)
        return self.function(*args) + 10
@decorated
def helper(x): return x + 1
"""


async def test_a_decorator_that_is_a_class_counts_with_its_code(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path / "a", {"use": "helper(1)"})
    assert await reached(notebook, DECORATOR, "+ 10", "+ 20") == {"use"}
    assert notebook.outputs["use"] == 22
    assert await reached(Notebook(tmp_path / "b", {"use": "helper(1)"}), DECORATOR, "x + 1", "x + 2") == {
        "use"
    }
    # What it remembers does not count.
    called = DECORATOR + "helper(5)\n"
    assert await reached(Notebook(tmp_path / "c", {"use": "helper(1)"}), called, "helper(5)", "") == set()


ANSWERS = """
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models.function import FunctionModel
def say(text): return ModelResponse(parts=[TextPart(text)])
"""


@pytest.mark.parametrize(
    ("source", "before", "after", "runs"),
    [
        ("WORD = 'a'\ndef f(m, i): return say(WORD)", "'a'", "'b'", True),
        ("WORDS = ('a', 'c')\ndef f(m, i): return say(WORDS[0])", "'a'", "'b'", True),
        (
            "def make(word):\n    def f(m, i): return say(word)\n    return f\nf = make('a')",
            "'a'",
            "'b'",
            True,
        ),
        ("def f(m, i, word='a'): return say(word)", "'a'", "'b'", True),
        ("def g(word, m, i): return say(word)\nf = functools.partial(g, 'a')", "'a'", "'b'", True),
        (
            "class Bot:\n    def word(self): return 'a'\n    def f(self, m, i): return say(self.word())\n"
            "f = Bot().f",
            *("'a'", "'b'", True),
        ),
        ("CALLS = []\ndef f(m, i):\n    CALLS.append(1)\n    return say('a')", "[]", "[1]", False),
        ("N = 0\ndef f(m, i):\n    global N\n    N += 1\n    return say('a')", "N = 0", "N = 5", False),
        (
            "def make():\n    n = 0\n    def f(m, i):\n        nonlocal n\n        n += 1\n"
            "        return say('a')\n    return f\nf = make()",
            *("n = 0", "n = 5", False),
        ),
        ("class K: n = 0\ndef f(m, i):\n    K.n += 1\n    return say('a')", "n = 0", "n = 5", False),
    ],
    ids=[
        "global",
        "tuple",
        "closure",
        "default",
        "partial",
        "method",
        "list",
        "counter",
        "nonlocal",
        "class",
    ],
)
async def test_what_the_function_of_a_model_answers_with_counts(
    source: str, before: str, after: str, runs: bool, tmp_path: Path
) -> None:
    """What it changes by running, such as a count of its calls, does not."""
    notebook = Notebook(tmp_path, {"ask": ":Say."}, {"ask": "model=FunctionModel(f)"})
    assert await reached(notebook, ANSWERS + source, before, after) == ({"ask"} if runs else set())
    assert not runs or notebook.outputs["ask"] == "b"


# -- many kinds of edits ------------------------------------------------------------------------

CELLS = '''
RATE = 2
LIMIT = 3
SUFFIX = "!"
WORDS = {"b", "a"}
def factory(): return ["x"]
def scale(x, by=2):
    """Scaled."""
    return x * RATE * by  # times
def spare(x): return x + 1

class Base:
    """Base."""
    def loud(self): return "loud"

class Color(enum.Enum):
    """Color."""
    RED = "red"
    def shown(self): return self.value

class Review(Base, BaseModel):
    """A review."""
    text: str
    color: Color = Color.RED
    tags: list[str] = Field(default_factory=factory)
    _mark: int = 1
    @property
    def short(self): return self.text[:3]
    @computed_field
    @property
    def size(self) -> int: return len(self.text)
    @field_validator("text")
    @classmethod
    def clean(cls, text): return text
    def __str__(self): return "review"

class Answer(BaseModel):
    """The answer."""
    label: str = Field(description="one word")
    topics: set[str] = {"a", "b"}
    note: str = Field("n", exclude=False)
    @field_validator("label", mode="after")
    @classmethod
    def check_label(cls, label): return label

class Query(BaseModel):
    """A query."""
    text: str = "q"

def search(query: Query) -> str:
    """Search the shop."""
    return SUFFIX

def good(value):
    assert value is not None, "no value"

class Spare:
    def f(self): return 1
'''
STEPS = {
    "load": "[Review(text='abcdef'), Review(text='xyz')]",
    "first": "load[0].short",
    "each": "item.size",
    "frame": "pd.DataFrame({'stars': [1, 3, 5]})",
    "best": "len(frame.query('stars >= @LIMIT'))",
    "scaled": "scale(4)",
    "member": "'a' in WORDS",
    "greet": "shared['greeting']",
    "ask": ":Say {{ load }}",
    "plain": ":Say {{ first }}",
    "rate": ":Rate it.",
    "still": "1 + 1",
}
OPTIONS = {
    "each": "map_over='load'",
    "rate": "output_schema=Answer, tools=[search], checks=[good]",
}
SHARED = {"greeting": "'hello' + SUFFIX"}
REVIEWS = frozenset({"load", "first", "each"})

KINDS: Sequence[tuple[str, str, str, frozenset[str]]] = [
    (name, before, after, frozenset(steps.split()))
    for name, before, after, steps in (
        ("value of a global", "RATE = 2", "RATE = 3", "scaled"),
        ("name in a query", "LIMIT = 3", "LIMIT = 4", "best"),
        ("shared value, and what a tool uses", 'SUFFIX = "!"', 'SUFFIX = "?"', "greet rate ask plain"),
        ("content of a set", '{"b", "a"}', '{"b", "c"}', "member"),
        ("order of a set", '{"b", "a"}', '{"a", "b"}', ""),
        ("code of a factory", 'return ["x"]', 'return ["y"]', "load first each ask"),
        ("code of a helper", "x * RATE * by", "x + RATE * by", "scaled"),
        ("default of a helper", "by=2", "by=3", "scaled"),
        ("docstring of a helper", "Scaled.", "It scales.", ""),
        ("comment in a helper", "# times", "# product", ""),
        ("helper that nothing uses", "return x + 1", "return x + 2", ""),
        ("method of a base class", 'return "loud"', 'return "quiet"', "load first each"),
        ("docstring of a base class", '"""Base."""', '"""A base."""', ""),
        ("method of an enum", "return self.value", "return self.name", "load first each"),
        ("docstring of an enum", '"""Color."""', '"""A color."""', "load"),
        ("property", "self.text[:3]", "self.text[:2]", "load first each plain"),
        ("computed field", "len(self.text)", "len(self.text) + 1", "load first each ask"),
        ("private attribute", "_mark: int = 1", "_mark: int = 2", "load first each"),
        (
            "validator",
            "def clean(cls, text): return text",
            "def clean(cls, text): return text.upper()",
            "load first each ask plain",
        ),
        ("text of an object", 'return "review"', 'return "a review"', "load first each"),
        ("docstring of a model that is read", '"""A review."""', '"""One review."""', "load"),
        ("docstring of an answer", '"""The answer."""', '"""An answer."""', "rate"),
        ("description of a field of an answer", '"one word"', '"one short word"', "rate"),
        ("default set of an answer", '{"a", "b"}', '{"a", "c"}', "rate"),
        ("exclude", "exclude=False", "exclude=True", "rate"),
        ("mode of a validator", 'mode="after"', 'mode="before"', "rate"),
        ("field of a validator", 'field_validator("label"', 'field_validator("note"', "rate"),
        ("code of a validator", "return label", "return label.strip()", "rate"),
        ("default of a tool's model", 'text: str = "q"', 'text: str = "r"', "rate"),
        ("docstring of a tool", "Search the shop.", "Search the whole shop.", "rate"),
        ("code of a tool", "return SUFFIX", "return SUFFIX * 2", "rate"),
        ("code of a check", "value is not None", "value != 0", "rate"),
        ("class that nothing uses", "def f(self): return 1", "def f(self): return 2", ""),
        ("blank lines and order of cells", "class Spare:\n", "\n\nx = 1\nclass Spare:\n\n", ""),
    )
]


def test_there_are_many_kinds_of_edits() -> None:
    assert len(KINDS) >= 25
    assert all(CELLS.count(before) == 1 for _, before, _, _ in KINDS)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sets(st.integers(0, len(KINDS) - 1), min_size=1, max_size=4))
def test_any_edits_run_again_what_they_change_and_nothing_else(chosen: set[int]) -> None:
    edited, expected, taken = CELLS, set(), set()
    for number in sorted(chosen):
        _, before, after, steps = KINDS[number]
        if before in taken:
            continue
        taken.add(before)
        edited = edited.replace(before, after)
        expected |= steps
    assert run_twice(edited) == expected


@pytest.mark.parametrize(
    ("before", "after", "steps"), [kind[1:] for kind in KINDS], ids=[kind[0] for kind in KINDS]
)
def test_each_edit_runs_again_what_it_changes_and_nothing_else(
    before: str, after: str, steps: set[str]
) -> None:
    assert run_twice(CELLS.replace(before, after)) == steps


def run_twice(edited: str) -> set[str]:
    """The steps that run again after an edit of the cells."""
    before = first_run()

    async def run() -> set[str]:
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / "cache"
            shutil.copytree(before, cache)
            notebook = Notebook(cache, STEPS, OPTIONS, SHARED)
            ran = await notebook.run(edited)
            assert await notebook.run(edited) == set()
            return ran

    return asyncio.run(run())


@functools.cache
def first_run() -> Path:
    """The cache after a run of the cells as they are."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    notebook = Notebook(folder / "cache", STEPS, OPTIONS, SHARED)
    assert asyncio.run(notebook.run(CELLS)) == set(STEPS)
    return folder / "cache"


PROCESS = """
import asyncio, sys
from pathlib import Path
from tests.pipeline.test_staleness import CELLS, COMPUTED, OPTIONS, SHARED, STEPS, Notebook

async def main():
    print(sorted(await Notebook(Path(sys.argv[1]) / "a", STEPS, OPTIONS, SHARED).run(CELLS)))
    steps = {"load": "[part(), Holder(part())]", "use": "load[1].part.short", "ask": ":Say {{ load }}"}
    print(sorted(await Notebook(Path(sys.argv[1]) / "b", steps).run(COMPUTED)))

asyncio.run(main())
"""


def test_another_process_finds_every_answer(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    outputs = [
        subprocess.run(
            [sys.executable, "-c", PROCESS, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root},
        ).stdout
        for seed in ("1", "2", "3")
    ]
    assert outputs[0] == f"{sorted(STEPS)}\n['ask', 'load', 'use']\n"
    assert outputs[1:] == ["[]\n[]\n"] * 2


def test_a_module_imported_in_the_body_is_the_same_before_and_after_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run of a kernel is cached, and a new kernel resumes what the old one recorded."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shop_in_body.py").write_text(
        "RATE = 3\ndef work(rows): return [row * RATE for row in rows]\n"
    )
    pipeline = Pipeline("body")
    pipeline.put(PipelineStep.from_cell("load", "[1, 2]", python=True))
    pipeline.put(PipelineStep.from_cell("use", "import shop_in_body\nshop_in_body.work(load)", python=True))
    pipeline.put(PipelineStep.from_cell("last", "1 / len(gate)", python=True, max_retries=0))

    def executor(gate: list[int]) -> PipelineExecutor:
        cache = ResultCache(tmp_path / "cache")
        return PipelineExecutor(pipeline, storage=tmp_path / "runs", cache=cache, namespace={"gate": gate})

    first, second = executor([]).run(), executor([]).run()
    assert [result.steps["use"].status.value for result in (first, second)] == ["completed", "cached"]
    monkeypatch.delitem(sys.modules, "shop_in_body")  # as in a new kernel
    pipeline.put(PipelineStep.from_cell("last", "sum(use)", python=True))
    resumed = executor([]).run(resume=True)
    assert resumed.success
    assert resumed["last"] == 9
