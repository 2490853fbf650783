"""The text of a syntax tree, which fingerprints are made of."""

from __future__ import annotations

import ast

import pytest

from tagent_nb.pipeline.python_body import dump


def text(source: str) -> str:
    return dump(ast.parse(source))


def test_the_text_is_pinned_since_every_cached_answer_hangs_on_it() -> None:
    assert text("def f(a, *, b=None):\n    return a.x + 1") == (
        "Module(body=[FunctionDef(name='f', args=arguments(posonlyargs=[], args=[arg(arg='a')], "
        "kwonlyargs=[arg(arg='b')], kw_defaults=[Constant(value=None)], defaults=[]), body=[Return("
        "value=BinOp(left=Attribute(value=Name(id='a', ctx=Load()), attr='x', ctx=Load()), op=Add(), "
        "right=Constant(value=1)))], decorator_list=[])], type_ignores=[])"
    )


def test_what_newer_pythons_add_to_every_definition_does_not_count() -> None:
    plain = ast.parse("def f(): pass").body[0]
    added = tuple(name for name in (*ast.FunctionDef._fields, "type_params"))
    newer = type("FunctionDef", (ast.FunctionDef,), {"_fields": tuple(dict.fromkeys(added))})
    node = newer(**{**{name: getattr(plain, name) for name in plain._fields}, "type_params": []})
    assert dump(node) == dump(plain)
    node.type_params = [ast.Name("T", ast.Load())]
    assert "type_params=[Name(id='T'" in dump(node)


@pytest.mark.parametrize(
    "documented",
    [
        "def f():\n    'Says.'\n    g()",
        "async def f():\n    'Says.'\n    g()",
        "class f:\n    'Says.'\n    g()",
    ],
)
def test_docstrings_and_comments_do_not_count(documented: str) -> None:
    bare = documented.replace("    'Says.'\n", "")
    assert text(documented) == text(bare) == text(f"# Why.\n{bare}  # So.")


def test_the_only_text_of_a_cell_is_its_value_and_counts() -> None:
    assert "'value'" in text("'value'")
    assert "'said'" not in text("'said'\nx")


def test_bytes_and_calls_are_no_docstrings() -> None:
    assert "b'x'" in text("def f():\n    b'x'")
    assert "Call(" in text("def f():\n    g()")


def test_a_definition_without_statements_has_a_text_too() -> None:
    assert dump(ast.Module([], [])) == "Module(body=[], type_ignores=[])"
