"""What a step depends on beyond its own text is found, whatever it is wrapped in."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import math
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict

from tagent_nb.cache import Reads, is_user_module
from tagent_nb.cache.fingerprint import dependencies as sources
from tagent_nb.cache.fingerprint.dependencies import DependencySearch
from tagent_nb.cache.fingerprint.modules import is_user_class, package_version


def class_digest(kind: type) -> str:
    return sources.class_digest(kind, {})


def notebook(source: str = "", **values: Any) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "__main__", **values}
    exec(compile(textwrap.dedent(source), "<cell>", "exec"), space)
    return space


def found(
    names: str, namespace: dict[str, Any], *, attributes: str = "", imports: str = ""
) -> dict[str, str]:
    """What code that reads these names depends on."""
    search = DependencySearch(namespace, {})
    reads = Reads(*(frozenset(text.split()) for text in (names, attributes, imports)))
    search.follow_reads(reads, namespace)
    return search.components


def found_by(function: Any) -> dict[str, str]:
    """What a step function depends on."""
    search = DependencySearch(getattr(inspect.unwrap(function), "__globals__", {}), {})
    search.follow_function(function)
    return search.components


def changed(old: dict[str, str], new: dict[str, str]) -> set[str]:
    return {name for name in {*old, *new} if old.get(name) != new.get(name)}


def edits(source: str, before: str, after: str, *names: str, **values: Any) -> set[str]:
    """Which components an edit of a notebook changes, and that the same text changes none."""
    assert before in source
    old = found(" ".join(names), notebook(source, **values))
    assert found(" ".join(names), notebook(source, **values)) == old
    return changed(old, found(" ".join(names), notebook(source.replace(before, after), **values)))


# -- wrapped functions ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrapping",
    [
        "work = functools.lru_cache(inner)",
        "work = functools.partial(inner, 1)",
        "work = functools.wraps(inner)(lambda *args: inner(*args))",
        "work = [inner]",
        "work = (1, {'a': inner})",
        "work = {('odd', 'key'): inner, 'self': print}",
        "class K:\n    def m(self): return inner(self)\nwork = K().m",
        "class K:\n    m = staticmethod(inner)\nwork = K",
        "class K:\n    m = property(inner)\nwork = K",
        "class K:\n    m = functools.cached_property(inner)\nwork = K",
        "class K:\n    m = classmethod(inner)\nwork = K",
        "class K:\n    m = functools.partialmethod(inner)\nwork = K",
        "class K:\n    f = inner\nwork = K()",
        "def make(f):\n    def run(x): return f(x)\n    return run\nwork = make(inner)",
        "def work(x, f=inner): return f(x)",
        "def work(x, *, f=inner): return f(x)",
        "async def work(x): return inner(x)",
        "work = lambda x: [inner(y) for y in x]",
    ],
)
def test_a_function_counts_through_whatever_wraps_it(wrapping: str) -> None:
    source = f"import functools\ndef inner(x):\n    return x + 1\n{wrapping}"
    assert edits(source, "x + 1", "x + 2", "work")


def test_what_a_partial_is_given_counts() -> None:
    source = "import functools\ndef inner(x, y): return x\nwork = functools.partial(inner, 1, y=2)"
    assert edits(source, "inner, 1", "inner, 3", "work") == {"global:work.args"}
    assert edits(source, "y=2", "y=3", "work") == {"global:work.keywords"}


def test_the_object_of_a_bound_method_counts() -> None:
    source = "class K:\n    def __init__(self, n): self.n = n\n    def m(self): return self.n\nwork = K(1).m"
    assert edits(source, "K(1)", "K(2)", "work") == {"global:work.self"}


ATTRIBUTES = """
def limit():
    return limit.most
limit.most = 1
limit.unread = 1
limit.self = limit

def work():
    return limit() + limit.self.self.most
"""


def test_attributes_of_functions_that_the_code_reads_count() -> None:
    assert edits(ATTRIBUTES, "most = 1", "most = 2", "work") == {"global:limit.most"}
    assert edits(ATTRIBUTES, "unread = 1", "unread = 2", "work") == set()
    space = notebook(ATTRIBUTES)
    before = found("limit", space, attributes="most")
    space["limit"].most = 3
    assert changed(before, found("limit", space, attributes="most")) == {"global:limit.most"}


def test_a_list_that_holds_itself_is_no_trouble() -> None:
    assert (
        found("table", notebook("table = [print]\ntable.append(table)"))["global:table"]
        == "type builtins.list of 2"
    )


def test_a_very_long_list_of_what_cannot_be_stored_counts_by_its_type() -> None:
    assert found("table", notebook(table=[object()] * 2000)) == {"global:table": "type builtins.list"}


def test_a_variable_that_is_not_set_yet_counts_as_absent() -> None:
    def outer() -> Callable[[], Any]:
        def inner() -> Any:
            return later

        return inner
        later = 1

    assert found_by(outer()) == {"global:later": "absent"}


def test_two_things_of_one_name_both_count() -> None:
    source = """
    def a():
        n = {}
        return lambda: n
    def b():
        n = {}
        return lambda: n
    x, y = a(), b()
    """
    first, two = (found("x y", notebook(source.format(1, second))) for second in (2, 3))
    assert changed(first, two)


# -- step functions ---------------------------------------------------------------------------


def times(number: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any) -> Any:
            return function(*args) * number

        return run

    return wrap


def test_a_users_decorator_counts_with_what_it_holds() -> None:
    def work(load: int) -> int:
        return load

    old = found_by(times(2)(work))
    assert "function:times.<locals>.wrap.<locals>.run" in old
    assert changed(old, found_by(times(3)(work))) == {"global:number"}


def test_a_decorator_of_a_package_does_not_hide_the_function() -> None:
    space = notebook("def inner(x): return x + n\nn = 1")
    package = {"__name__": "pandas.wrapping"}
    exec("def wrap(f):\n    def run(x): return f(x)\n    run.__wrapped__ = f\n    return run", package)
    wrap: Any = package["wrap"]
    assert set(found_by(wrap(space["inner"]))) == {"package:pandas", "global:n"}
    space["work"] = wrap(space["inner"])
    assert {"package:pandas", "global:work", "function:work", "global:n"} == set(found("work", space))
    space["plain"] = wrap
    assert set(found("plain", space)) == {"package:pandas", "global:plain"}


def test_a_bound_method_as_a_step_counts_its_object() -> None:
    class Loader:
        def __init__(self, n: int) -> None:
            self.n = n

        def load(self) -> int:
            return self.n

    old = found_by(Loader(1).load)
    assert {"global:self", "class:Loader"} <= set(old)
    assert changed(old, found_by(Loader(2).load)) == {"global:self"}


def test_what_is_no_function_is_not_followed() -> None:
    assert found_by(len) == {}


# -- classes and their instances --------------------------------------------------------------

SHOP = """
import dataclasses, enum

def tax(x):
    return x * rate

rate = 2

class Base:
    '''Doc.'''
    limit = 5
    def total(self, x):
        '''Doc.'''
        return tax(x)

class Color(enum.Enum):
    RED = 1

@dataclasses.dataclass
class Item(Base):
    name: str = "a"
    color: Color = Color.RED
    @property
    def shown(self):
        return self.name.upper()
"""


@pytest.mark.parametrize(
    ("before", "after", "counted"),
    [
        ("'''Doc.'''", "'''Other.'''", set()),
        ("limit = 5", "limit = 6", {"class:Base"}),
        ("return tax(x)", "return tax(-x)", {"class:Base"}),
        ("rate = 2", "rate = 3", {"global:rate"}),
        ("x * rate", "rate * x", {"function:tax"}),
        ("upper()", "lower()", {"class:Item"}),
        ('name: str = "a"', 'name: str = "b"', {"class:Item", "global:Item.__init__.name"}),
        ('name: str = "a"', 'name: bytes = "a"', {"class:Item"}),
    ],
)
def test_what_counts_in_classes(before: str, after: str, counted: set[str]) -> None:
    assert edits(SHOP, before, after, "Item") == counted


def test_a_class_that_is_reached_twice_is_looked_at_once() -> None:
    space = notebook("class K: pass\na, b, L = K(), K(), [K, print]")
    assert set(found("K L a b", space)) == {"class:K", "global:L", "global:L[1]", "global:a", "global:b"}


def test_the_digest_of_a_class_is_kept_for_the_run() -> None:
    class K:
        n = 1

    memo: sources.Memo = {}
    old = sources.class_digest(K, memo)
    K.n = 2
    assert sources.class_digest(K, memo) == old
    assert sources.class_digest(K, {}) != old


def test_members_of_an_enum_count() -> None:
    assert "class:Color" in edits(SHOP, "RED = 1", "RED = 2", "Color")


def test_an_instance_counts_by_its_class_and_its_fields() -> None:
    source = """
    class Scorer:
        def __init__(self, n):
            self.n = n
        def score(self):
            return self.n
    s = Scorer(1)
    """
    assert edits(source, "Scorer(1)", "Scorer(2)", "s") == {"global:s"}
    assert edits(source, "return self.n", "return -self.n", "s") == {"class:Scorer"}


def test_an_instance_that_holds_a_lock_counts_by_its_class() -> None:
    source = """
    import threading
    class Client:
        def __init__(self, n):
            self.lock, self.n = threading.Lock(), n
        def ask(self): return 1
    c = Client(1)
    """
    assert found("c", notebook(source))["global:c"] == "type __main__.Client"
    assert edits(source, "Client(1", "Client(2", "c") == set()
    assert edits(source, "return 1", "return 2", "c") == {"class:Client"}


def test_functions_and_objects_inside_of_an_instance_count() -> None:
    source = """
    import re
    class Part:
        def __init__(self, n): self.n, self.word = n, re.compile("a")
        def use(self): return 1
    class Rule:
        def __init__(self, part, clean): self.part, self.clean = part, clean
    def clean(text): return text.lower()
    rule = Rule(Part(1), clean)
    """
    assert edits(source, "Part(1", "Part(2", "rule") == {"global:rule"}
    assert edits(source, "lower", "upper", "rule") == {"function:clean"}
    assert edits(source, "return 1", "return 2", "rule") == {"class:Part"}


def shorten(text: str) -> str:
    return text[:LONGEST]


def lengthen(text: str) -> str:
    return text * LONGEST


LONGEST = 3


def test_validators_in_types_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def model(check: Callable[[str], str]) -> type[BaseModel]:
        class Text(BaseModel):
            text: Annotated[str, AfterValidator(check)] | None

        Text.__annotations__ = {"text": Annotated[str, AfterValidator(check)] | None}
        return Text

    old = class_digest(model(shorten))
    assert class_digest(model(shorten)) == old
    assert class_digest(model(lengthen)) != old
    monkeypatch.setitem(globals(), "LONGEST", 4)
    assert class_digest(model(shorten)) != old


def test_models_inside_models_count() -> None:
    def model(limit: int) -> type[BaseModel]:
        class Inner(BaseModel):
            @property
            def double(self) -> int:
                return limit

        class Outer(BaseModel):
            inner: list[Inner]

        Outer.__annotations__ = {"inner": list[Inner]}
        return Outer

    assert class_digest(model(1)) == class_digest(model(1))
    assert class_digest(model(1)) != class_digest(model(2))


def test_a_model_that_has_no_json_schema_still_counts() -> None:
    def model(kind: type) -> type[BaseModel]:
        class Holder(BaseModel):
            model_config = ConfigDict(arbitrary_types_allowed=True)
            thing: kind  # type: ignore[valid-type]

        Holder.__annotations__ = {"thing": kind}
        return Holder

    class One:
        pass

    class Two:
        pass

    assert class_digest(model(One)) == class_digest(model(One))
    assert class_digest(model(One)) != class_digest(model(Two))


def test_a_class_of_a_module_that_is_gone_can_still_be_looked_at() -> None:
    kind = type("Gone", (), {"__module__": "module_that_is_not_there", "a": 1})
    other = type("Gone", (), {"__module__": "module_that_is_not_there", "a": 2})
    assert class_digest(kind) != class_digest(other)


def test_a_dataclass_defined_where_no_name_is_given_is_the_users() -> None:
    space: dict[str, Any] = {"dataclasses": dataclasses}
    exec("class K:\n    a = 1", space)
    assert is_user_class(space["K"])
    assert not is_user_class(dict)


@pytest.mark.parametrize(
    ("source", "before", "after", "counted"),
    [
        (
            "class Field:\n    def __get__(self, one, kind): return 1\nclass K:\n    a = Field()",
            "return 1",
            "return 2",
            {"class:Field"},
        ),
        (
            "class Maker(type):\n    def __call__(cls): return 1\nclass K(metaclass=Maker): pass",
            "return 1",
            "return 2",
            {"class:Maker"},
        ),
        (
            "def work(): return 1\nclass K:\n    table = {'a': work}",
            "return 1",
            "return 2",
            {"function:K.table['a']"},
        ),
        (
            "import types\ndef work(): return 1\nclass K:\n    tool = types.SimpleNamespace(f=work)",
            "return 1",
            "return 2",
            {"function:work"},
        ),
        ("import re\nclass K:\n    word = re.compile('a')", "'a'", "'b'", {"class:K"}),
    ],
    ids=["descriptor", "metaclass", "table", "object", "pattern"],
)
def test_what_a_class_holds_counts(source: str, before: str, after: str, counted: set[str]) -> None:
    assert edits(source, before, after, "K") == counted


def test_all_functions_of_a_single_dispatch_count() -> None:
    source = """
    from functools import singledispatch
    @singledispatch
    def work(x): return 0
    @work.register
    def _one(x: int): return 1
    @work.register(str)
    def _two(x): return 2
    """
    assert edits(source, "return 0", "return 9", "work") == {"function:work"}
    assert edits(source, "return 1", "return 9", "work") == {"function:work[int]"}
    assert edits(source, "return 2", "return 9", "work") == {"function:work[str]"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from statistics import mean as a", "from statistics import median as a"),
        ("from statistics import mean as a", "from numpy import mean as a"),
        ("from math import log as a", "from cmath import log as a"),
        ("from collections import deque as a", "from collections import Counter as a"),
        ("import json as a", "import csv as a"),
        ("import numpy.linalg as a", "import numpy.fft as a"),
        ("import numpy as a", "import pandas as a"),
    ],
)
def test_a_name_that_comes_to_mean_something_else_counts(before: str, after: str) -> None:
    """Also when the packages and their versions stay the same."""
    assert edits(before, before, after, "a")


# -- modules and packages ---------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Write modules of the user's own and import them afresh."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loaded = set(sys.modules)

    def forget() -> None:
        for name in set(sys.modules) - loaded:
            if name.partition(".")[0] in {"shop", "shop_package"}:
                del sys.modules[name]

    def write(name: str, source: str, *, load: bool = True) -> Any:
        forget()
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        return importlib.import_module(name.removesuffix(".py").replace("/", ".")) if load else None

    yield write
    forget()


def test_only_what_is_read_of_a_users_module_counts(module: Callable[..., Any]) -> None:
    source = """
        LIMIT, OTHER = 1, 2
        def work(x): return x + LIMIT
        def unused(x): return x
    """

    def components(text: str) -> dict[str, str]:
        return found("shop", notebook(shop=module("shop.py", text)), attributes="work")

    old = components(source)
    assert set(old) == {"function:shop.work", "global:shop.LIMIT"}
    assert components(source.replace("unused(x): return x", "unused(x): return 0")) == old
    assert changed(old, components(source.replace("LIMIT, OTHER = 1", "LIMIT, OTHER = 9"))) == {
        "global:shop.LIMIT"
    }


def test_a_function_imported_from_a_users_module_counts(module: Callable[..., Any]) -> None:
    space = notebook(work=module("shop.py", "LIMIT = 1\ndef work(x): return x + LIMIT").work)
    assert set(found("work", space)) == {"function:work", "global:shop.LIMIT"}


def test_modules_of_a_users_package_are_followed(module: Callable[..., Any]) -> None:
    module("shop_package/__init__.py", "", load=False)
    tools = module(
        "shop_package/tools.py", "from shop_package import tools\ndef work(x): return tools.work(x)"
    )
    package = sys.modules["shop_package"]
    assert tools.__name__ == "shop_package.tools"
    assert set(found("shop_package", notebook(shop_package=package), attributes="tools work")) == {
        "function:shop_package.tools.work"
    }


def test_a_users_module_that_the_step_imports_itself_counts(module: Callable[..., Any]) -> None:
    source = "def work(x): return x"
    module("shop.py", source)
    old = found("", notebook(), attributes="work", imports="shop")
    assert set(old) == {"function:shop.work"}
    module("shop.py", "def work(x): return -x")
    assert changed(old, found("", notebook(), attributes="work", imports="shop")) == {"function:shop.work"}


def test_one_that_is_not_loaded_yet_counts_as_it_does_when_it_is(module: Callable[..., Any]) -> None:
    """A step has the same fingerprint before and after its first run in a kernel."""
    module("shop.py", "rate = 2\ndef work(x): return x * rate", load=False)
    first = found("", notebook(), imports="shop", attributes="work")
    assert set(first) == {"function:shop.work", "global:shop.rate"}
    assert found("", notebook(), imports="shop", attributes="work") == first
    module("shop_package/__init__.py", "", load=False)
    module("shop_package/part.py", "def work(x): return x", load=False)
    inside = found("", notebook(), imports="shop_package.part", attributes="work")
    assert set(inside) == {"function:shop_package.part.work"}
    assert found("", notebook(), imports="shop_package.part", attributes="work") == inside


@pytest.mark.parametrize("broken", ["raise SystemExit", "1 / 0", "import no_such_module_at_all", "def ("])
def test_one_that_cannot_be_imported_counts_by_its_files(module: Callable[..., Any], broken: str) -> None:
    module("shop.py", broken, load=False)
    before = found("", notebook(), imports="shop")
    assert set(before) == {"module:shop"}
    module("shop.py", f"{broken}\n# more", load=False)
    assert changed(before, found("", notebook(), imports="shop")) == {"module:shop"}


def test_a_package_that_cannot_be_imported_counts_by_all_its_files(module: Callable[..., Any]) -> None:
    module("shop_package/__init__.py", "raise SystemExit", load=False)
    before = found("", notebook(), imports="shop_package.part")
    assert before["module:shop_package.part"] != "absent"
    module("shop_package/part.py", "a = 1", load=False)
    assert changed(before, found("", notebook(), imports="shop_package.part")) == {"module:shop_package.part"}


def test_a_module_that_does_not_exist_counts_as_absent() -> None:
    assert found("", notebook(), imports="no_such_module_at_all") == {
        "module:no_such_module_at_all": "absent"
    }


def test_packages_count_by_version_however_they_are_reached() -> None:
    import numpy as np
    import pandas as pd

    space = notebook(pd=pd, read=pd.read_csv, Frame=pd.DataFrame, mean=np.mean, sqrt=np.array)
    for name in ("pd", "read", "Frame"):
        assert found(name, space)["package:pandas"] == package_version("pandas")
    for name in ("mean", "sqrt"):
        assert "package:numpy" in found(name, space)
    assert found("", space, imports="pandas.io") == {"package:pandas": package_version("pandas")}


def test_a_package_counts_the_same_before_and_after_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    loaded = found("", notebook(), imports="yaml")
    assert loaded == {"package:yaml": yaml.__version__}
    monkeypatch.delitem(sys.modules, "yaml")
    assert found("", notebook(), imports="yaml") == loaded
    assert "yaml" not in sys.modules


def test_a_module_made_by_hand_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    made = types.ModuleType("made_by_hand")
    exec("def work(x): return x", vars(made))
    monkeypatch.setitem(sys.modules, "made_by_hand", made)
    old = found("", notebook(), imports="made_by_hand", attributes="work")
    assert set(old) == {"function:made_by_hand.work"}
    assert found("", notebook(), imports="made_by_hand.part") == {"module:made_by_hand.part": "absent"}


def test_an_object_that_breaks_when_it_is_asked_is_no_trouble() -> None:
    class Proxy:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("outside of a request")

    space = notebook("class K:\n    current = proxy\nvalue = proxy", proxy=Proxy())
    assert {"class:K", "class:Proxy"} <= set(found("K value", space))


def test_a_new_version_of_a_package_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    old = found("pd", notebook(pd=pd))
    monkeypatch.setattr(sources, "package_version", lambda top: "99.0")
    assert changed(old, found("pd", notebook(pd=pd))) == {"package:pandas"}


def test_python_itself_and_this_package_do_not_count() -> None:
    import tagent_nb

    space = notebook(math=math, sqrt=math.sqrt, tagent_nb=tagent_nb, path=Path, search=DependencySearch)
    assert found("math tagent_nb len", space, imports="json tagent_nb.errors") == {}
    named = found("sqrt path search", space)
    assert named["global:sqrt"] == "named math.sqrt"  # the name could come to mean another function
    assert set(named) == {"global:sqrt", "global:path", "global:search"}


def test_versions_come_from_the_installation() -> None:
    import yaml

    assert package_version("pandas") == importlib.import_module("pandas").__version__
    assert package_version("yaml") == yaml.__version__  # the package is called PyYAML
    assert package_version("no_such_module_at_all") == "unknown"


def test_what_is_a_users_module() -> None:
    assert is_user_module(None)
    assert is_user_module("__main__")
    assert is_user_module(__name__)
    assert not any(
        is_user_module(name) for name in ("json", "os.path", "pandas", "numpy.linalg", "tagent_nb.errors")
    )


def test_names_of_another_module_are_distinguished(module: Callable[..., Any]) -> None:
    shop = module("shop.py", "limit = 1\ndef work(x): return x + limit")
    space = notebook("def mine(x): return work(x) + limit\nlimit = 2", work=shop.work)
    assert {"global:limit", "global:shop.limit"} <= set(found("mine", space))
