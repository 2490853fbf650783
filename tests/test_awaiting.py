"""Which calls of ``%tagent_run`` in a cell are awaited, and which stay as they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from tagent_nb.notebook.awaiting import AwaitedRuns, rewrite


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


class Events:
    """The part of IPython's event manager that is used."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Any]] = {"pre_run_cell": [], "post_run_cell": []}

    def register(self, name: str, call: Any) -> None:
        self.calls[name].append(call)

    def unregister(self, name: str, call: Any) -> None:
        self.calls[name].remove(call)

    def fire(self, name: str) -> None:
        for call in self.calls[name]:
            call(None)


def shell(**settings: Any) -> Any:
    given = {
        "kernel": object(),
        "autoawait": True,
        "input_transformers_post": [],
        "events": Events(),
    } | settings
    return SimpleNamespace(**given)


CALL = ["get_ipython().run_line_magic('tagent_run', '')\n"]


def test_a_kernel_awaits_and_other_shells_do_not() -> None:
    assert "await" in AwaitedRuns(shell())(CALL)[0]
    assert AwaitedRuns(shell(kernel=None))(CALL) == CALL
    assert AwaitedRuns(shell(autoawait=False))(CALL) == CALL


def test_code_that_runs_inside_a_cell_is_left_alone() -> None:
    """``%%time`` and ``%%capture`` compile their body inside the running cell and cannot await."""
    one = shell()
    transformer = AwaitedRuns(one)
    transformer.install()
    one.events.fire("post_run_cell")  # the end of the cell that loaded the extension
    assert "await" in transformer(CALL)[0]
    one.events.fire("pre_run_cell")
    assert transformer(CALL) == CALL
    one.events.fire("post_run_cell")
    assert "await" in transformer(CALL)[0]


def test_removing_leaves_no_trace() -> None:
    one = shell()
    transformer = AwaitedRuns(one)
    transformer.install()
    assert one.input_transformers_post == [transformer]
    transformer.remove()
    assert one.input_transformers_post == []
    assert one.events.calls == {"pre_run_cell": [], "post_run_cell": []}
