"""What counts in a fingerprint, what does not, and that it says so by name."""

from __future__ import annotations

import enum
import importlib
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, field_validator

from tagent_nb import Pipeline, PipelineExecutor, ResultCache
from tagent_nb.cache import SOURCES, ItemKeys, definition_components, input_components, tool_code, unit_key
from tagent_nb.cache.entry import SourceDigests
from tagent_nb.pipeline import PipelineStep, PythonBody
from tagent_nb.serde import StoredValue
from tagent_nb.templating import Reference


def notebook(source: str = "", **values: Any) -> dict[str, Any]:
    """A namespace after a cell was run in it."""
    space: dict[str, Any] = {"__name__": "__main__", **values}
    exec(compile(textwrap.dedent(source), "<cell>", "exec"), space)
    return space


def components(step: PipelineStep, namespace: dict[str, Any] | None = None, **options: Any) -> dict[str, str]:
    arguments: dict[str, Any] = {
        "constraints": [],
        "shared": {},
        "model": None,
        "settings": {},
        "tools": [],
        "runner_version": "1",
        "namespace": {} if namespace is None else namespace,
    }
    return definition_components(step, **{**arguments, **options})


def cell(source: str, namespace: dict[str, Any] | None = None, **options: Any) -> dict[str, str]:
    """Components of a Python cell."""
    step = PipelineStep.from_cell("step", textwrap.dedent(source), python=True)
    return components(step, namespace, **options)


def agent(goal: str = "Say hello.", *, step: dict[str, Any] | None = None, **options: Any) -> dict[str, str]:
    """Components of an agent step."""
    return components(PipelineStep(name="step", goal=goal, **(step or {})), **{"model": "test", **options})


def changed(old: dict[str, str], new: dict[str, str]) -> set[str]:
    return {name for name in {*old, *new} if old.get(name) != new.get(name)}


# -- the code of a cell -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "edited",
    [
        "x = load + 1\nx * 2",
        "# why\nx = load + 1  # and how\n\n\nx * 2",
        "'''What it does.'''\nx = load + 1\nx * 2",
        "x = (load\n     + 1)\nx * 2",
        "x = load+1;  x*2",
    ],
)
def test_comments_blank_lines_and_docstrings_do_not_count(edited: str) -> None:
    assert cell(edited) == cell("x = load + 1\nx * 2")


@pytest.mark.parametrize("edited", ["x = load + 2\nx * 2", "y = load + 1\ny * 2", "x = load + 1\nx * 2.0"])
def test_code_counts(edited: str) -> None:
    assert changed(cell("x = load + 1\nx * 2"), cell(edited)) == {"code"}


def test_a_step_that_is_read_is_not_a_global() -> None:
    space = notebook(load=1)
    assert "global:load" not in cell("load + 1", space, inputs={"load"})
    assert "global:load" in cell("load + 1", space)


def test_values_of_simple_globals_count_by_name() -> None:
    old = cell("load > threshold", notebook(threshold=3, unused=1))
    assert cell("load > threshold", notebook(threshold=3, unused=2)) == old
    assert changed(old, cell("load > threshold", notebook(threshold=4))) == {"global:threshold"}


def test_a_global_that_is_not_defined_yet_counts_as_absent() -> None:
    old = cell("threshold")
    assert old["global:threshold"] == "absent"
    assert changed(old, cell("threshold", notebook(threshold=3))) == {"global:threshold"}


def test_builtins_do_not_count() -> None:
    assert set(cell("len(sorted([1]))", notebook())) == {"code", "runner"}


def test_frames_and_arrays_count_by_value() -> None:
    import numpy as np
    import pandas as pd

    def space(number: int) -> dict[str, Any]:
        return notebook(frame=pd.DataFrame({"a": [1, number]}), array=np.array([number, 2]))

    old = cell("frame, array", space(2))
    assert cell("frame, array", space(2)) == old
    assert changed(old, cell("frame, array", space(3))) == {"global:frame", "global:array"}


def test_a_global_that_cannot_be_stored_counts_by_its_type() -> None:
    with Path(__file__).open() as one, Path(__file__).open() as two:
        old = cell("handle.name", notebook(handle=one))
        assert old["global:handle"] == "type _io.TextIOWrapper"
        assert cell("handle.name", notebook(handle=two)) == old


def test_secrets_count_by_their_type_only() -> None:
    space = notebook(password=SecretStr("hunter2"), settings={"key": SecretStr("hunter2")})
    found = cell("password, settings", space)
    other = notebook(password=SecretStr("other"), settings={"key": SecretStr("other")})
    assert cell("password, settings", other) == found
    assert found["global:password"] == "type pydantic.types.SecretStr"
    assert "hunter2" not in str(found)


def test_values_never_appear_in_components() -> None:
    components = agent("the goal sk-canary", constraints=["sk-canary"], shared={"key": "sk-canary"})
    components |= cell("token + 'sk-canary'", notebook(token="sk-canary"))
    components |= agent(settings={"extra_headers": {"Authorization": "sk-canary"}}, model="sk-canary")
    assert "sk-canary" not in str(components)


def test_a_large_global_is_looked_at_once_per_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from tagent_nb import serde as codec

    digest, seen = codec.examine, []
    monkeypatch.setattr(codec, "examine", lambda value: seen.append(value) or digest(value))
    table = {"a": [1, 2, 3]}
    memo: dict[tuple[str, int], Any] = {}
    for _ in range(5):
        cell("table", notebook(table=table), memo=memo)
    assert seen.count(table) == 1


# -- functions --------------------------------------------------------------------------------

HELPERS = """
    def clean(text):
        '''Doc.'''
        return strip(text)[:limit]

    def strip(text):
        return text.strip()

    limit = 10
"""


def test_user_functions_count_with_all_they_use() -> None:
    old = cell("clean(load)", notebook(HELPERS), inputs={"load"})
    assert set(old) == {"code", "runner", "function:clean", "function:strip", "global:limit"}


@pytest.mark.parametrize(
    ("before", "after", "counted"),
    [
        ("'''Doc.'''", "'''Another.'''", set()),
        ("'''Doc.'''", "# a comment", set()),
        ("return strip(text)[:limit]", "return strip(text)[limit:]", {"function:clean"}),
        ("text.strip()", "text.lstrip()", {"function:strip"}),
        ("limit = 10", "limit = 11", {"global:limit"}),
        ("limit = 10", "limit = 10.0", {"global:limit"}),
    ],
)
def test_what_counts_in_helpers(before: str, after: str, counted: set[str]) -> None:
    old = cell("clean(load)", notebook(HELPERS), inputs={"load"})
    new = cell("clean(load)", notebook(HELPERS.replace(before, after)), inputs={"load"})
    assert changed(old, new) == counted


def test_functions_that_call_each_other_are_no_trouble() -> None:
    space = notebook("def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n and even(n - 1)")
    assert {"function:even", "function:odd"} <= set(cell("even(4)", space))


def test_a_chain_of_ten_thousand_helpers_is_no_trouble() -> None:
    lines = ["def f0(x): return x"] + [f"def f{n}(x): return f{n - 1}(x)" for n in range(1, 10_000)]
    space = notebook("\n".join(lines))
    assert len(cell("f9999(1)", space)) == 10_002


def test_defaults_count() -> None:
    source = "def pick(a, n={0}, *, m={1}): return a"
    old = cell("pick(1)", notebook(source.format(1, 2)))
    assert changed(old, cell("pick(1)", notebook(source.format(3, 2)))) == {"global:pick.n"}
    assert changed(old, cell("pick(1)", notebook(source.format(1, 3)))) == {"global:pick.m"}


def test_a_function_step_counts_its_own_surroundings() -> None:
    def components_of(limit: int) -> dict[str, str]:
        space = notebook(f"LIMIT = {limit}")
        space.update(notebook("def helper(x): return x"))
        # ``inspect`` finds no source of what exec makes: its bytecode counts then.
        exec("def work(load, n=LIMIT): return helper(load) + LIMIT", space)
        step = PipelineStep(name="work", goal="work", body=PythonBody.from_function(space["work"]))
        return components(step, space)

    old = components_of(1)
    assert set(old) == {"code", "runner", "function:helper", "global:LIMIT", "global:n"}
    assert changed(old, components_of(2)) == {"global:LIMIT", "global:n"}


def test_what_a_function_does_is_looked_up_before_its_text_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The components are the same; of a lambda and a cell nothing is remembered, whose text says less."""

    def half(load: int) -> float:
        """Comments do not count."""
        return load / 2

    steps = [PipelineStep(name="step", goal="go", body=PythonBody.from_function(half))]
    steps.append(PipelineStep(name="step", goal="go", body=PythonBody.from_function(lambda load: load * 2)))
    steps.append(PipelineStep.from_cell("step", "load + 1", python=True))
    plain = [components(step) for step in steps]
    digests = SourceDigests({})
    assert [components(step, memo={SOURCES: digests}) for step in steps] == plain
    assert len(digests.take_new()) == 1
    monkeypatch.setattr(PythonBody, "normalised", lambda body: pytest.fail("it is parsed again"))
    assert components(steps[0], memo={SOURCES: digests}) == plain[0]


async def test_a_run_with_a_cache_parses_no_function_that_another_run_has_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in another process: what it has parsed is in the cache."""

    async def ran() -> int:
        pipeline = Pipeline("p")

        @pipeline.task
        def number() -> int:
            return 1

        cache = ResultCache(tmp_path)
        result = await PipelineExecutor(pipeline, cache=cache).execute()
        assert result.success
        cache.close()
        return cache.hits

    assert await ran() == 0
    monkeypatch.setattr(PythonBody, "normalised", lambda body: pytest.fail("it is parsed again"))
    assert await ran() == 1


def test_what_a_function_holds_of_the_function_around_it_counts() -> None:
    def make(factor: int) -> Callable[[int], int]:
        def scale(load: int) -> int:
            return load * factor

        return scale

    def components_of(factor: int) -> dict[str, str]:
        body = PythonBody.from_function(make(factor))
        return components(PipelineStep(name="scale", goal="scale", body=body))

    assert components_of(2) == components_of(2)
    assert changed(components_of(2), components_of(3)) == {"global:factor"}


def test_a_body_rebuilt_from_its_source_counts_its_globals_in_the_namespace() -> None:
    body = PythonBody.from_dict({"kind": "function", "name": "f", "source": "def f(load): return load + n"})
    step = PipelineStep(name="f", goal="f", body=body)
    assert changed(components(step, notebook(n=1)), components(step, notebook(n=2))) == {"global:n"}


# -- what else a Python step may see ----------------------------------------------------------


def test_shared_values_count_for_python_steps_that_read_them() -> None:
    for source, counts in (("1", False), ("shared['a']", True), ("context.shared", True)):
        old, new = cell(source, shared={"a": 1}), cell(source, shared={"a": 2})
        assert changed(old, new) == ({"shared:a"} if counts else set()), source


def test_constraints_count_for_python_steps_that_read_the_context() -> None:
    for source, counts in (("1", False), ("context.constraints", True)):
        old, new = cell(source, constraints=["a"]), cell(source, constraints=["b"])
        assert changed(old, new) == ({"constraints"} if counts else set()), source


def test_the_runner_version_counts() -> None:
    assert changed(cell("1"), cell("1", runner_version="2")) == {"runner"}


# -- agent steps ------------------------------------------------------------------------------


class Mood(enum.Enum):
    GOOD = "good"


class Review(BaseModel):
    text: str
    mood: Mood


def other_review(**changes: Any) -> type[BaseModel]:
    class Review(BaseModel):
        text: str
        mood: Mood

        @field_validator("text")
        @classmethod
        def check(cls, value: str) -> str:
            return value[: changes.get("limit", 3)]

    return Review


@pytest.mark.parametrize(
    ("component", "options"),
    [
        ("constraints", {"constraints": ["Be short."]}),
        ("model", {"model": "other"}),
        ("settings", {"settings": {"temperature": 0.5}}),
        ("shared:region", {"shared": {"region": "EU"}}),
        ("runner", {"runner_version": "2"}),
        ("rows_per_call", {"step": {"map_over": "load", "rows_per_call": 20}}),
    ],
)
def test_everything_an_agent_is_given_counts(component: str, options: dict[str, Any]) -> None:
    assert changed(agent(), agent(**options)) == {component}


def test_the_goal_counts() -> None:
    assert changed(agent("Say hello."), agent("Say goodbye.")) == {"goal"}


def test_the_notebook_does_not_count_for_an_agent() -> None:
    assert agent(namespace=notebook(a=1)) == agent(namespace=notebook(a=2))


@pytest.mark.parametrize(
    "step",
    [
        {"max_retries": 7},
        {"timeout": 5.0},
        {"when": "load.text"},
        {"depends_on": ["load"]},
        {"min_success": 0.5},
        {"map_over": "load", "max_failures": 20},
        {"fresh_for": 60},
        {"samples": 3},
        {"map_over": "load", "flatten": True},
        {"map_over": "load", "rows_per_call": 1},
        {"retry_on": [ValueError]},
        {"retry_count": 1},
    ],
)
def test_how_a_step_is_run_does_not_count(step: dict[str, Any]) -> None:
    assert agent(step=step) == agent()


def test_the_schema_of_the_answer_counts_with_its_validators() -> None:
    old = agent(step={"output_schema": Review})
    assert changed(agent(), old) == {"output_schema"}
    assert changed(old, agent(step={"output_schema": other_review()})) == {"output_schema"}
    first, again = other_review(), other_review()
    assert agent(step={"output_schema": first}) == agent(step={"output_schema": again})


def search(query: str) -> str:
    """Search the shop."""
    return f"{query}{SUFFIX}"


SUFFIX = "!"


def test_tools_count_with_what_they_use(monkeypatch: pytest.MonkeyPatch) -> None:
    old = agent(tools=[search])
    assert changed(agent(), old) == {"tool:search", "global:SUFFIX"}
    monkeypatch.setitem(globals(), "SUFFIX", "?")
    assert changed(old, agent(tools=[search])) == {"global:SUFFIX"}


@pytest.mark.parametrize(
    "edited",
    [
        "def search(query: str) -> str:\n    'Search the web.'\n    return query",
        "def search(query: int) -> str:\n    'Search the shop.'\n    return query",
        "def search(query: str) -> str:\n    'Search the shop.'\n    return query + '.'",
    ],
)
def test_a_tools_docstring_types_and_code_count(edited: str) -> None:
    plain = "def search(query: str) -> str:\n    'Search the shop.'\n    return query"
    old = agent(tools=[notebook(plain)["search"]])
    assert changed(old, agent(tools=[notebook(edited)["search"]])) == {"tool:search"}
    assert agent(tools=[notebook("# a comment\n\n" + plain)["search"]]) == old


def test_checks_count_with_what_they_use_for_agents_and_python() -> None:
    space = notebook("def short(value):\n    assert len(value) < LIMIT\nLIMIT = 3")
    other = notebook("def short(value):\n    assert len(value) < LIMIT\nLIMIT = 4")
    edited = notebook("def short(value):\n    assert len(value) <= LIMIT\nLIMIT = 3")

    def python(step: dict[str, Any] | None = None) -> dict[str, str]:
        return components(PipelineStep.from_cell("step", "1", python=True, **(step or {})))

    for kind in (agent, python):
        old = kind(step={"checks": [space["short"]]})
        assert changed(kind(), old) == {"check:short", "global:LIMIT"}
        assert changed(old, kind(step={"checks": [other["short"]]})) == {"global:LIMIT"}
        assert changed(old, kind(step={"checks": [edited["short"]]})) == {"check:short"}


def test_two_checks_without_a_name_both_count() -> None:
    small, large = notebook("check = lambda v: v < 1")["check"], notebook("check = lambda v: v > 1")["check"]
    one, both, turned = (agent(step={"checks": some}) for some in ([small], [small, large], [large, small]))
    assert changed(one, both) == changed(both, turned) == {"check:<lambda>"}


def test_a_tool_may_be_any_object_that_can_be_called() -> None:
    class Search:
        """Search."""

        def __init__(self, limit: int) -> None:
            self.limit = limit

        def __call__(self, query: str) -> str:
            return query[: self.limit]

    found = agent(tools=[Search(3)])
    assert {"tool:Search", "class:Search"} <= set(found)
    assert changed(found, agent(tools=[Search(4)])) == {"global:Search"}


# -- inputs -----------------------------------------------------------------------------------


class Unreadable:
    """An output whose value must not be looked at."""

    digest = "known"

    @property
    def value(self) -> Any:
        raise AssertionError("a whole value is not decoded")


def test_a_whole_input_counts_by_its_known_digest() -> None:
    assert input_components([Reference("load")], {"load": Unreadable()}) == {"input:load": "known"}


def test_only_the_part_that_is_read_counts() -> None:
    def found(value: Any) -> dict[str, str]:
        return input_components([Reference("load", ("text",))], {"load": StoredValue.of(value)})

    old = found({"text": "a", "score": 1})
    assert set(old) == {"input:load.text"}
    assert found({"text": "a", "score": 2}) == old
    assert found({"text": "b", "score": 1}) != old
    assert found(Review(text="a", mood=Mood.GOOD)) == old


def test_parts_are_equal_before_and_after_storing() -> None:
    live = StoredValue.of({"rows": [{"a": (1, 2)}]})
    again = StoredValue.from_blob(live.blob, live.digest)
    references = [Reference("load", ("rows",)), Reference("load")]
    assert input_components(references, {"load": live}) == input_components(references, {"load": again})


def test_steps_without_value_and_parts_that_are_missing_count_as_such() -> None:
    references = [Reference("a"), Reference("b", ("x",)), Reference("c", ("x",))]
    found = input_components(references, {"a": None, "c": StoredValue.of({})})
    assert found == {"input:a": "none", "input:b.x": "none", "input:c.x": "missing"}
    assert found != input_components(
        references, {"a": StoredValue.of(None), "c": StoredValue.of({"x": None})}
    )


def test_a_part_that_cannot_be_stored_is_never_equal_to_another() -> None:
    class Holder:
        pass

    output = StoredValue.of({"x": Holder()})
    first = input_components([Reference("a", ("x",))], {"a": output})
    assert first != input_components([Reference("a", ("x",))], {"a": output})


def test_a_reference_that_is_written_twice_is_looked_at_once() -> None:
    goal, condition = Reference("a", ("x",)), Reference("a", ("x",), "when")
    assert len(input_components([goal, condition], {"a": StoredValue.of({"x": 1})})) == 1


# -- keys -------------------------------------------------------------------------------------

names = st.text(max_size=10)


@given(st.dictionaries(names, names, max_size=6), st.randoms())
def test_a_key_does_not_depend_on_the_order_of_components(found: dict[str, str], random: Any) -> None:
    items = list(found.items())
    random.shuffle(items)
    key = unit_key(dict(items))
    assert key == unit_key(found)
    assert len(key) == 64


@given(st.dictionaries(names, names, max_size=4), st.dictionaries(names, names, max_size=4))
def test_different_components_have_different_keys(one: dict[str, str], two: dict[str, str]) -> None:
    assert (unit_key(one) == unit_key(two)) == (one == two)


ITEMS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3),
)
PARTS = st.lists(st.sampled_from([(), ("x",), ("x", "y"), ("a b",), ("0",)]), unique=True, max_size=3)


@given(st.dictionaries(names, names, max_size=6), PARTS, ITEMS)
def test_items_have_the_keys_of_all_their_components(
    shared: dict[str, str], paths: list[tuple[str, ...]], item: Any
) -> None:
    references = [Reference("rows", path) for path in paths]
    output = StoredValue.of(item)
    keys = ItemKeys(shared, [*references, *references])
    own = input_components(references, {"rows": output}, step=cell("rows"))
    assert keys.of(output) == unit_key(shared | own)


def test_a_key_is_not_made_of_digests_alone_where_classes_count() -> None:
    class Row(BaseModel):
        text: str

    row = StoredValue.of(Row(text="good"))
    assert ItemKeys({"code": "c"}, [Reference("rows")]).of(row) is None
    assert ItemKeys({"code": "c"}, [Reference("rows", ("0",))]).of(StoredValue.of([row.value])) is None
    assert ItemKeys({"code": "c"}, []).of(row) == unit_key({"code": "c"})


PROCESS = """
    import sys
    sys.path.insert(0, {folder!r})
    from tests.cache.test_fingerprint import HELPERS, Review, agent, cell, notebook, search
    from tagent_nb.cache.fingerprint.components import unit_key
    import helpers_of_tests
    space = notebook(HELPERS, helpers_of_tests=helpers_of_tests, words={{"a", "b", "c"}})
    found = cell("clean(helpers_of_tests.work(load)) in words", space, inputs=["load"])
    found |= agent(step={{"output_schema": Review}}, tools=[search])
    print(unit_key(found))
"""


def test_keys_are_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "helpers_of_tests.py").write_text(
        "class Base:\n    def run(self, x): return x in {'p', 'q', 'r'}\ndef work(x): return Base().run(x)\n"
    )
    root = str(Path(__file__).parents[2])
    keys = set()
    for seed in ("1", "2", "3"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PROCESS.format(folder=str(tmp_path)))],
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": root, "PATH": ""},
        )
        keys.add(done.stdout)
    assert len(keys) == 1


def test_a_module_edited_but_not_loaded_again_counts_as_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "edited_module.py"
    file.write_text("def work(x):\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module("edited_module")
    old = cell("edited_module.work(1)", notebook(edited_module=module))
    assert "function:edited_module.work" in old
    file.write_text("def work(x):\n    return x + 1  # longer\n")
    assert cell("edited_module.work(1)", notebook(edited_module=module)) == old
    importlib.reload(module)
    new = cell("edited_module.work(1)", notebook(edited_module=module))
    assert changed(old, new) == {"function:edited_module.work"}
    del sys.modules["edited_module"]


def test_the_code_of_a_tool_counts_with_its_helpers_and_not_with_values() -> None:
    """A tool that notes in a list whom it paid must not look like another one afterwards."""
    source = "paid = {0}\ndef half(x): return x {1} 2\ndef pay(x):\n    paid.append(x)\n    return half(x)"

    def code(paid: str, sign: str) -> str:
        return tool_code(notebook(source.format(paid, sign))["pay"], {})

    assert code("[]", "/") == code("[1]", "/") != code("[]", "//")
    memo: dict[tuple[str, int], Any] = {}
    pay = notebook(source.format("[]", "/"))["pay"]
    assert tool_code(pay, {}, memo) == tool_code(pay, {}, memo) == code("[]", "/")
