"""Digests of code: equal for code that does the same by its text, in every process."""

from __future__ import annotations

import ast
import textwrap
from types import FunctionType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagent_nb.cache import Reads, code_reads, text_reads
from tagent_nb.cache.fingerprint.bytecode import code_digest


def function(source: str) -> FunctionType:
    space: dict[str, object] = {}
    exec(textwrap.dedent(source), space)
    made = space["f"]
    assert isinstance(made, FunctionType)
    return made


def digest(source: str) -> str:
    return code_digest(function(source).__code__)


PLAIN = "def f(a, b=1):\n    return [x for x in a if x in {'p', 'q'}] and b"


@pytest.mark.parametrize(
    "edited",
    [
        "\n\n\n" + PLAIN,
        "# comment\n" + PLAIN.replace("\n", "  # comment\n\n\n", 1),
        PLAIN.replace(":\n", ":\n    '''Doc.'''\n", 1),
        PLAIN.replace("return [", "return  [ "),
    ],
)
def test_where_code_stands_and_what_it_says_of_itself_does_not_count(edited: str) -> None:
    assert digest(edited) == digest(PLAIN)


@pytest.mark.parametrize(
    "edited",
    [
        PLAIN.replace("'p'", "'r'"),
        PLAIN.replace("and", "or"),
        PLAIN.replace("a, b", "b, a"),
        PLAIN.replace("a, b=1", "a, *, b=1"),
        PLAIN.replace("def", "async def"),
        PLAIN.replace("x in {", "x not in {"),
    ],
)
def test_what_code_does_counts(edited: str) -> None:
    assert digest(edited) != digest(PLAIN)


@pytest.mark.parametrize(("first", "two"), [("1", "1.0"), ("1", "True"), ("0.0", "-0.0"), ("(1,)", "(1.0,)")])
def test_constants_of_different_types_are_different(first: str, two: str) -> None:
    assert digest(f"def f(): return {first}") != digest(f"def f(): return {two}")


def test_a_docstring_inside_does_not_count_but_a_text_that_is_used_does() -> None:
    inner = "def f():\n    def g():\n        {}\n        return 1\n    return g"
    assert digest(inner.format("'one'")) == digest(inner.format("'two'"))
    assert digest(inner.format("x = 'one'")) != digest(inner.format("x = 'two'"))


def test_code_with_very_many_constants_is_read_right() -> None:
    many = ", ".join(f"x{number}={number}.5" for number in range(400))
    source = f"def f():\n    return dict({many}, last={{}})\n"
    assert digest(source.format("far")) != digest(source.format("near"))
    assert (
        {"far", "near", "dict"} > code_reads(function(source.format("far")).__code__).names == {"far", "dict"}
    )


def test_reads_of_nested_code_are_found() -> None:
    made = function(
        """
        def f(a):
            import os.path
            from json import dumps as write
            class K:
                size = SIZE
                def m(self):
                    return helper(self.size).attribute
            return [K, lambda: later, write, os]
        """
    )
    reads = code_reads(made.__code__)
    assert {"SIZE", "helper", "later"} <= reads.names
    assert "a" not in reads.names
    assert {"attribute", "dumps"} <= reads.attributes
    assert reads.imports == {"os.path", "json"}


def test_reads_of_text_are_the_same_as_those_of_its_code() -> None:
    source = """
        def f(a):
            import os.path, csv as c
            import re
            from json import dumps as write
            return helper(a.attribute)
    """
    from_text = text_reads({"helper"}, ast.dump(ast.parse(textwrap.dedent(source))))
    from_code = code_reads(function(source).__code__)
    assert from_text.imports == from_code.imports == {"os.path", "csv", "re", "json"}
    assert {"attribute", "dumps"} <= from_text.attributes & from_code.attributes
    assert from_text.names == {"helper"}


def test_a_relative_import_without_a_name_imports_nothing_by_name() -> None:
    code = compile("def f():\n    from . import x\n    return x", "<x>", "exec").co_consts[0]
    assert code_reads(code) == Reads(frozenset(), frozenset({"", "x"}))


@given(st.text(max_size=30))
def test_no_text_upsets_the_reading_of_an_import(text: str) -> None:
    tree = ast.parse(f"import json\nx = {text!r}\nx.y")
    reads = text_reads((), ast.dump(tree))
    assert "json" in reads.imports
    assert "y" in reads.attributes
