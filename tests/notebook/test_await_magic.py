"""Which calls of ``%tagent_run`` in a cell are awaited, and which stay as they are."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from IPython.core.inputtransformer2 import TransformerManager
from IPython.core.interactiveshell import InteractiveShell

from tagent_nb.notebook.shell.await_magic import AwaitedRuns, rewrite


def transformed(cell: str) -> str:
    """The cell as IPython hands it on, rewritten."""
    return rewrite(TransformerManager().transform_cell(cell))


def awaited(argument: str, *, used: bool) -> str:
    inner = f"get_ipython().find_line_magic('tagent_run').__self__.run_awaited({argument}, used={used})"
    return f"(await {inner})"


def test_a_statement_is_awaited_and_shows_no_value() -> None:
    assert transformed("%tagent_run --resume") == awaited("'--resume'", used=False) + "\n"


def test_an_assignment_is_awaited_and_gets_the_value() -> None:
    assert transformed("r = %tagent_run") == f"r = {awaited(repr(''), used=True)}\n"


def test_all_calls_of_a_cell_are_awaited_where_they_stand() -> None:
    cell = "x = 'ä' ; y = 2\n%tagent_run --until a\nfor i in range(2):\n    %tagent_run\nprint(x)"
    text = transformed(cell)
    assert text.splitlines() == [
        "x = 'ä' ; y = 2",
        awaited("'--until a'", used=False),
        "for i in range(2):",
        "    " + awaited("''", used=False),
        "print(x)",
    ]


@pytest.mark.parametrize("head", ["if True:", "while x:", "with f() as g:", "try:"])
def test_blocks_that_may_await_are_rewritten(head: str) -> None:
    tail = "\nfinally:\n    pass" if head == "try:" else ""
    assert "(await " in transformed(f"{head}\n    %tagent_run{tail}")


@pytest.mark.parametrize(
    "cell",
    [
        "def f():\n    %tagent_run",
        "async def f():\n    %tagent_run",
        "class A:\n    %tagent_run",
        "f = lambda: get_ipython().run_line_magic('tagent_run', '')",
        "[get_ipython().run_line_magic('tagent_run', '') for i in range(2)]",
        "%tagent_graph  # before %tagent_run",
        "get_ipython().run_line_magic('tagent_run')",
        "get_ipython().run_line_magic(name, 'tagent_run')",
        "shell.run_line_magic('tagent_run', '')",
        "print('%tagent_run')",
        "%%time\n%tagent_run",
        "x = 1",
        "this is no python: %tagent_run",
    ],
)
def test_everything_else_is_left_as_it_is(cell: str) -> None:
    plain = TransformerManager().transform_cell(cell)
    assert rewrite(plain) == plain


def test_a_call_on_the_line_of_other_code_keeps_the_rest() -> None:
    cell = "é = 1; r = get_ipython().run_line_magic('tagent_run', 'ü'); s = é"
    assert rewrite(cell) == f"é = 1; r = {awaited(repr('ü'), used=True)}; s = é"


def shell(**settings: Any) -> Any:
    cells = {
        "kernel": object(),
        "autoawait": True,
        "input_transformers_post": [],
    } | settings
    return SimpleNamespace(**cells)


CALL = ["get_ipython().run_line_magic('tagent_run', '')\n"]


def test_a_kernel_awaits_and_other_shells_do_not() -> None:
    assert "await" in AwaitedRuns(shell())(CALL)[0]
    assert AwaitedRuns(shell(kernel=None))(CALL) == CALL
    assert AwaitedRuns(shell(autoawait=False))(CALL) == CALL


def test_code_that_runs_inside_a_cell_is_left_alone() -> None:
    """``%run``, ``run_cell``, ``%%time`` and ``%%capture`` run code inside the running cell and cannot await;
    also where that cell is the one that loads the extension."""
    transformer = AwaitedRuns(shell())
    assert "await" in transformer(CALL)[0]
    inner = InteractiveShell.instance()
    inner.user_ns["transform"] = lambda: transformer(CALL)
    inner.run_cell("plain = transform()", silent=True)
    assert inner.user_ns["plain"] == CALL
    cell = "import asyncio\nawait asyncio.sleep(0)\nplain = transform()\n"
    cell += "later = asyncio.create_task(afterwards())"

    async def afterwards() -> list[str]:
        return transformer(CALL)

    async def go() -> list[str]:
        inner.user_ns["afterwards"] = afterwards
        await inner.run_cell_async(cell, silent=True, transformed_cell=cell)
        assert inner.user_ns["plain"] == CALL
        task: asyncio.Task[list[str]] = inner.user_ns["later"]
        return await task

    # What a task does beside a cell is no part of it, though the cell has begun it.
    assert "await" in asyncio.run(go())[0]


def test_code_that_does_not_name_the_magic_is_handed_on_as_it_is() -> None:
    lines = ["x = 1\n", "x\n"]
    assert AwaitedRuns(shell())(lines) is lines


def test_removing_leaves_no_trace() -> None:
    kernel_shell = shell()
    transformer = AwaitedRuns(kernel_shell)
    transformer.install()
    assert kernel_shell.input_transformers_post == [transformer]
    transformer.remove()
    assert kernel_shell.input_transformers_post == []
