"""PythonBody: what a Python step reads, what it is equal to, and what can be stored of it."""

from __future__ import annotations

import functools
import inspect
import pickle
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tagent_nb.errors import DefinitionError, EncodeError
from tagent_nb.pipeline import CELL_FUNCTION, PipelineStep, PythonBody
from tagent_nb.pipeline.python_body import PROVIDED

THRESHOLD = 3


def cell(source: str) -> PythonBody:
    return PythonBody.from_cell("clean", source)


def run_cell(source: str, /, **inputs: Any) -> Any:
    """Build a cell with these inputs and call it."""
    namespace: dict[str, Any] = {}
    exec(cell(source).compile(tuple(inputs)), namespace)
    return namespace[CELL_FUNCTION](**inputs)


class Steps:
    """Has a ``task`` decorator, as a pipeline does."""

    def __init__(self) -> None:
        self.bodies: dict[str, PythonBody] = {}

    def task(self, function: Any = None, /, *, timeout: float = 0) -> Any:
        def add(target: Any) -> Any:
            self.bodies[target.__name__] = PythonBody.from_function(target)
            return target

        return add if function is None else add(function)


def traced(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def plain(load: list[int], extra: int = 2, *, context: Any, item: Any = None) -> int:
    """Add things up.

    Only for tests.
    """
    return sum(load) + extra + THRESHOLD


# -- functions --------------------------------------------------------------------------------


def test_parameters_name_the_steps_a_function_reads() -> None:
    """Parameters are inputs, those with a default optional, and provided names are kept apart."""
    body = PythonBody.from_function(plain)
    assert (body.kind, body.name, body.params, body.optional) == (
        "function",
        "plain",
        ("load", "extra", "item"),
        {"extra", "item"},
    )
    assert body.wants_context
    assert body.provided == {"context"}
    assert {"THRESHOLD", "sum"} <= body.names
    assert "load" not in body.names
    assert body.function is plain
    assert body.summary == "Add things up."


def test_function_without_docstring_is_summed_up_by_its_name() -> None:
    def count(load: Any) -> int:
        return len(load)

    assert PythonBody.from_function(count).summary == "Python step count"


@pytest.mark.parametrize("bad", [len, functools.partial(plain), PythonBody, 3, "text"])
def test_only_functions_are_bodies(bad: Any) -> None:
    with pytest.raises(DefinitionError, match="must be a function"):
        PythonBody.from_function(bad)


def test_parameters_without_a_name_of_their_own_are_refused() -> None:
    def star(*load: Any) -> None: ...

    def stars(**load: Any) -> None: ...

    def only(load: Any, /) -> None: ...

    for bad in (star, stars, only):
        with pytest.raises(DefinitionError, match="does not name a step"):
            PythonBody.from_function(bad)


def test_generators_are_refused() -> None:
    def many(load: Any) -> Any:
        yield load

    async def later(load: Any) -> Any:
        yield load

    for bad in (many, later):
        with pytest.raises(DefinitionError, match="cannot yield"):
            PythonBody.from_function(bad)


def test_the_task_decorator_is_no_part_of_the_source() -> None:
    """Decorators down to ``@steps.task`` are left out; those below it belong to the function."""
    steps = Steps()

    @steps.task(timeout=5)
    def first(load: Any) -> Any:
        return load

    @traced
    @steps.task
    @traced
    def second(load: Any) -> Any:
        return load

    bare, decorated = steps.bodies["first"], steps.bodies["second"]
    assert bare.source.startswith("def first(")
    assert decorated.source.startswith("@traced\ndef second(")
    assert "traced" in decorated.names


FILE = '''"""A file of functions."""
from functools import wraps

class Steps:
    def task(self, function):
        return function

steps = Steps()

def one_line(load): return load
    # not its own

@steps.task
async def documented(load, *, limit=3):
    """Say	it.

    At length.
    """
    return load  # the last

    # a comment behind
  # not as deep

    # and another
def query(load):
    text = "@limit"
    return load.query(text)
def blanks():
    return """
{blanks}
"""
if True:
    def inside(load):
        return load
'''.replace("{blanks}", "   ")


def loaded(path: Path, text: str) -> dict[str, Any]:
    """The functions of a file, as an import makes them."""
    path.write_text(text)
    namespace: dict[str, Any] = {"__name__": path.stem}
    exec(compile(text, path, "exec"), namespace)
    return {name: value for name, value in namespace.items() if inspect.isfunction(value)}


def test_the_source_of_a_function_is_what_inspect_says(tmp_path: Path) -> None:
    """Whatever stands around it in its file; only the decorator that makes a step of it is left out."""
    functions = loaded(tmp_path / "steps.py", FILE)
    bodies = {name: PythonBody.from_function(functions[name]) for name in functions if name != "wraps"}
    assert len(bodies) == 5
    for name, body in bodies.items():
        source = textwrap.dedent(inspect.getsource(functions[name]))
        assert body.source == source.removeprefix("@steps.task\n")
        rebuilt = PythonBody.from_dict(body.to_dict())
        assert rebuilt == body
        assert (rebuilt.summary, rebuilt.normalised()) == (body.summary, body.normalised())
    assert bodies["documented"].source.endswith("    # and another\n")
    assert bodies["documented"].summary == "Say     it."
    assert bodies["query"].quoted == {"limit"}


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    """A function that is made anew of it has its new text; what no longer parses is no text of it."""
    path = tmp_path / "changing.py"
    for number in range(3):
        text = f"def number():\n    return {number}\n{'# longer' * number}"
        assert PythonBody.from_function(loaded(path, text)["number"]).source.endswith(f"return {number}\n")
    before = loaded(path, "def number():\n    return 10\n")["number"]
    path.write_text("number = (\n")
    assert PythonBody.from_function(before).source == ""
    path.write_text("\ndef other():\n    return 1\n# what was here\n")
    assert "def number" not in PythonBody.from_function(before).source


def test_functions_of_many_files_in_any_order(tmp_path: Path) -> None:
    """Only the last files are remembered, and all are right."""
    functions = [
        loaded(tmp_path / f"file{number}.py", f"def number():\n    return {number}\n")["number"]
        for number in range(6)
    ]
    for number in [0, 1, 2, 3, 4, 5, 0, 5, 1]:
        assert f"return {number}" in PythonBody.from_function(functions[number]).source


def test_a_function_around_something_without_code_has_no_source() -> None:
    """Such as a partial of a built-in function."""

    def around(load: Any) -> Any:
        return load

    around.__wrapped__ = functools.partial(sorted)  # type: ignore[attr-defined]
    around.__signature__ = inspect.Signature()  # type: ignore[attr-defined]
    assert PythonBody.from_function(around).source == ""


def test_a_function_goes_to_plain_data_and_back() -> None:
    body = PythonBody.from_function(plain)
    again = PythonBody.from_dict(body.to_dict())
    assert again == body
    assert again.function is None
    assert again.normalised() == body.normalised()
    assert again.to_dict() == body.to_dict()
    namespace: dict[str, Any] = {"THRESHOLD": 10, "Any": Any}
    exec(again.compile(()), namespace)
    assert namespace["plain"]([1], context=None) == 13


def test_a_rebuilt_function_keeps_all_kinds_of_defaults() -> None:
    source = "async def f(a, b=1, *, c, d=None, context): ...\n"
    body = PythonBody.from_dict({"kind": "function", "name": "f", "source": source})
    assert body.params == ("a", "b", "c", "d")
    assert body.optional == {"b", "d"}
    assert body.wants_context


def test_what_cannot_be_rebuilt_says_why() -> None:
    """Closures, lambdas, methods and functions without source are not stored, each with a reason."""
    rate = 2

    def scaled(load: int) -> int:
        return load * rate

    class Holder:
        def method(self, load: int) -> int:
            return load

    made: dict[str, Any] = {}
    exec("def made(load): return load", made)
    for function, why in [
        (scaled, "uses 'rate' of the function around it"),
        (lambda load: load, "a lambda cannot be stored"),
        (Holder().method, "bound to an object"),
        (made["made"], "source of function 'made' is not known"),
    ]:
        body = PythonBody.from_function(function)
        assert body.params == ("load",)
        with pytest.raises(EncodeError, match=why) as caught:
            body.to_dict()
        assert caught.value.path == f"steps.{body.name}.body"


def test_functions_without_a_definition_are_distinguished_by_bytecode() -> None:
    first = PythonBody.from_function(lambda load: [x + 1 for x in load])
    same = PythonBody.from_function(lambda load: [x + 1 for x in load])
    other = PythonBody.from_function(lambda load: [x + 2 for x in load])
    named = PythonBody.from_function(lambda load: load + THRESHOLD)
    assert first.normalised() == same.normalised() != other.normalised()
    assert "THRESHOLD" in named.names
    assert first.summary == "Python step <lambda>"


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": "cell", "name": "x"},
        {"kind": "method", "name": "x", "source": "1"},
        {"kind": "cell", "name": 1, "source": "1"},
        {"kind": "function", "name": "f", "source": "x = 1"},
        {"kind": "function", "name": "f", "source": "def g(): pass"},
        {"kind": "function", "name": "f", "source": "def f(): pass\nimport os"},
        {"kind": "function", "name": "f", "source": "def f(:"},
        {"kind": "function", "name": "f", "source": "def f(*a): pass"},
        {"kind": "function", "name": "f", "source": "def f(a, /, **b): pass"},
        {"kind": "function", "name": "f", "source": "def f():\n    yield 1"},
        {"kind": "cell", "name": "x", "source": "1 +"},
    ],
)
def test_damaged_data_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        PythonBody.from_dict(data)


def test_reading_stored_source_runs_none_of_it(tmp_path: Any) -> None:
    """Decorators and defaults of a rebuilt function are not evaluated before a run."""
    source = f"@open({str(tmp_path / 'a')!r}, 'w').write\ndef f(x=open({str(tmp_path / 'b')!r}, 'w')): ...\n"
    PythonBody.from_dict({"kind": "function", "name": "f", "source": source}).normalised()
    assert list(tmp_path.iterdir()) == []


def test_a_body_can_be_pickled() -> None:
    body = PythonBody.from_function(plain)
    assert body.summary
    again = pickle.loads(pickle.dumps(body))
    assert again == body
    assert again.function is plain


# -- cells: value -----------------------------------------------------------------------------


def test_the_last_expression_is_the_value() -> None:
    assert run_cell("x = 2\nx * 3") == 6
    assert run_cell("'only a text'") == "only a text"
    assert run_cell("x = 2") is None


def test_return_is_the_value_and_ends_the_cell() -> None:
    assert run_cell("if load:\n    return 'some'\n'none'", load=[1]) == "some"
    assert run_cell("if load:\n    return 'some'\n'none'", load=[]) == "none"


def test_inputs_are_local_and_may_be_assigned() -> None:
    assert run_cell("load = [x + 1 for x in load]\nload", load=[1, 2]) == [2, 3]


def test_future_imports_stay_first() -> None:
    assert run_cell("from __future__ import annotations\ndef f(x: Missing): return x\nf(4)") == 4
    assert run_cell("from __future__ import annotations") is None


@pytest.mark.parametrize(
    "source",
    [
        "await load()",
        "async with load() as x:\n    x",
        "async for x in load():\n    x",
        "[x async for x in load()]",
    ],
)
def test_top_level_await_makes_the_cell_async(source: str) -> None:
    namespace: dict[str, Any] = {}
    exec(cell(source).compile(("load",)), namespace)
    assert inspect.iscoroutinefunction(namespace[CELL_FUNCTION])


def test_await_inside_a_nested_function_does_not_make_the_cell_async() -> None:
    assert inspect.iscoroutinefunction(run_cell("async def f():\n    await g()\nf"))


def test_tracebacks_have_the_lines_of_the_cell() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_cell("x = 1\n\nx / 0")
    last = caught.traceback[-1]
    assert (str(last.path), last.lineno + 1) == ("<step clean>", 3)


# -- cells: names -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("load.head()", {"load"}),
        ("load = load.dropna()", {"load"}),
        ("load += 1", {"load"}),
        ("load.x += 1", {"load"}),
        ("[lambda: x for x in load]", {"load"}),
        ("load: int = load", {"load", "int"}),
        ("x: load\nx", {"load", "x"}),
        ("a.b: int = load", {"a", "int", "load"}),
        ("df = load\ndf", {"load"}),
        ("import pandas as pd, os.path\npd, os", set()),
        ("for df in load:\n    df\nelse:\n    df", {"load"}),
        ("async for df in load:\n    df", {"load"}),
        ("with load as f:\n    f", {"load"}),
        ("try:\n    load\nexcept KeyError as e:\n    e", {"load", "KeyError"}),
        ("try:\n    1\nexcept:\n    2", set()),
        ("[x for x in load if x]", {"load"}),
        ("[load for load in load]", {"load"}),
        ("[x + n for x in load]", {"load", "n"}),
        ("{k: v for k, vs in load for v in vs if k}", {"load"}),
        ("{y for x in load if (y := x)}\ny", {"load"}),
        ("[lambda: (x, other) for x in load]", {"load", "other"}),
        ("def f(a, *b, c=load, **d):\n    return a, b, c, d, e\nf", {"load", "e"}),
        ("def f():\n    return later\nlater = 1\nf()", set()),
        ("def f() -> A:\n    x = 1\n    def g():\n        nonlocal x\n        x += y\n    g", {"y", "A"}),
        ("lambda a, b=load: a + b + c", {"load", "c"}),
        ("@deco\nclass A(B, metaclass=M):\n    x = y\n    z = x\n    def m(self): x", set("BMyx") | {"deco"}),
        ("(n := load)\nn", {"load"}),
        ("del load", {"load"}),
        ("match load:\n    case [a, *rest]: a, rest\n    case {'k': v, **others}: v, others", {"load"}),
        ("match load:\n    case {'q': 1}: 0\n    case [*_]: 0\n    case other: other", {"load"}),
        ("[(x, y) for x in load for y in x if x]", {"load"}),
        ("f'{load!r}'", {"load"}),
        ("try:\n    1\nfinally:\n    load", {"load"}),
        ("if load:\n    y = 1\ny", {"load"}),
        ("eval('load + 1')", {"eval", "load"}),
        ("eval('load +')", {"eval"}),
        ("eval(2)", {"eval"}),
        ("eval(load)", {"eval", "load"}),
    ],
)  # fmt: skip
def test_names_a_cell_reads(source: str, names: set[str]) -> None:
    """Names read before they are bound, in the order of evaluation."""
    assert cell(source).names == names


def test_global_in_a_functions_helper_is_a_global_name() -> None:
    def outer(load: Any) -> Any:
        def inner() -> None:
            global COUNTER
            COUNTER = load

        return inner

    assert "COUNTER" in PythonBody.from_function(outer).names


def test_provided_names_are_not_steps() -> None:
    """``context``, ``shared``, ``facts`` and ``memories`` are kept apart; ``item`` is what it maps over."""
    body = cell("context.learn('n', len(load))\n(item, shared, facts, memories, loop)")
    assert body.names == {"load", "len", "item", "loop"}
    assert body.provided == {"context", "shared", "facts", "memories"}
    assert not cell("context = 1\ncontext").wants_context


# -- cells: mistakes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nx = = 2", "Step 'clean', line 2: this is not valid Python: invalid syntax.\n    x = = 2"),
        ("x = 1\n%time x", "line 2: '%time x' is a magic, shell or help line"),
        ("!ls", "line 1: '!ls' is a magic"),
        ("files = !ls", "is a magic"),
        ("load?", "is a magic"),
        ("from os import *", "import \\* only allowed at module level. Import the names that you need"),
        ("x = 1\nyield x", "line 2: a step has one value and cannot yield"),
        ("yield from load", "cannot yield"),
        ("def f():\n    global x\nglobal x\nx = 1", "line 3: 'global x' would change the notebook"),
        ("break", "'break' outside loop"),
        ("# nothing\n", "only comments"),
        ("a\0b", "null byte"),
        ("(" * 500 + ")" * 500, "not valid Python"),
    ],
)
def test_mistakes_name_the_line_and_the_remedy(source: str, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        cell(source)


def test_yield_inside_a_nested_function_is_fine() -> None:
    assert run_cell("def f():\n    yield 1\nlist(f())") == [1]


# -- cells: summary, equality, storing -----------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "summary"),
    [
        ("# Load the reviews\nload", "Load the reviews"),
        ("\n\n#\n## Load\nload", "Load"),
        ("# %% cell\nload", "Python step clean"),
        ('"""Read it.\n\nMore."""\nload', "Read it."),
        ("load  # trailing", "Python step clean"),
        ("'   '\nload", "Python step clean"),
    ],
)
def test_summary_is_the_first_line_of_what_is_written_on_top(source: str, summary: str) -> None:
    assert cell(source).summary == summary


def test_comments_blank_lines_and_docstrings_do_not_count() -> None:
    first = cell('def f():\n    """Doc."""\n    return 1\nclass A:\n    "Doc"\n    x = 1\nf()  # c')
    two = cell("'''Top.'''\n# comment\n\ndef f():\n    return 1\n\n\nclass A:\n    x=1\nf()")
    assert first.normalised() == two.normalised()
    assert first.normalised() != cell("def f():\n    return 2\nclass A:\n    x = 1\nf()").normalised()
    assert cell("'a'").normalised() != cell("'b'").normalised()


def test_a_functions_docstring_and_decorating_task_do_not_count() -> None:
    steps = Steps()

    def build(documented: bool) -> PythonBody:
        if documented:

            @steps.task(timeout=3)
            def f(load: Any) -> Any:
                """Doc."""
                return load
        else:

            @steps.task
            def f(load: Any) -> Any:
                return load  # no doc

        return steps.bodies["f"]

    first, two = build(True), build(False)
    assert first.normalised() == two.normalised()


def test_a_cell_goes_to_plain_data_and_back() -> None:
    body = cell("# Clean\nload.dropna()")
    assert PythonBody.from_dict(body.to_dict()) == body
    assert body.filename == "<step clean>"


def test_a_cell_becomes_a_step() -> None:
    step = PipelineStep.from_cell("clean", "\n# Clean it\nload\n", python=True)
    assert step.is_python
    assert step.goal == "Clean it"


def test_a_stored_function_that_no_longer_compiles_says_so() -> None:
    body = PythonBody("def f(:", "function", "f")
    with pytest.raises(DefinitionError, match="not valid Python"):
        body.compile(())
    with pytest.raises(DefinitionError, match="'break' outside loop"):
        PythonBody("def f():\n    break\n", "function", "f").compile(())


def test_module_has_no_more_provided_names_than_reserved_ones() -> None:
    assert {"context", "shared", "facts", "memories"} == PROVIDED
