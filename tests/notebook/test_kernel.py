"""Runs in real kernels: interrupts, Stop, queued cells, and a kernel that is killed half-way."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from kernels import OLDER, Kernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

on_every_kernel = pytest.mark.parametrize(
    "kernel",
    [pytest.param(None, id="newest")]
    + [
        pytest.param(version, id=version, marks=pytest.mark.requires(f"ipykernel-{version}"))
        for version in OLDER
    ],
    indirect=True,
)


@pytest.fixture
def kernel(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Kernel]]:
    """Starts kernels in the test's folder, of the ipykernel that an indirect parameter names."""
    started: list[Kernel] = []

    def start(loaded: bool = True) -> Kernel:
        started.append(Kernel(tmp_path, getattr(request, "param", None), loaded))
        return started[-1]

    yield start
    for book in started:
        book.close()


FOREVER = "import os, time\nwhile not os.path.exists('gate'):\n    time.sleep(0.01)\n"
BEATING = (
    "import os, time\nwhile not os.path.exists('gate'):\n    time.sleep(0.01)\n"
    "    with open('beats', 'a') as beats:\n        beats.write('.')\n"
)
STILL = (
    "import os, time\nbefore = os.path.getsize('beats'); time.sleep(0.5)\n"
    "print('STILL' if os.path.getsize('beats') == before else 'GOES ON')"
)


@on_every_kernel
def test_a_cell_runs_a_pipeline_and_cells_queued_behind_it_all_execute(kernel: Callable[[], Kernel]) -> None:
    book = kernel()
    book.run("%tagent_pipeline queued")
    book.define("slow", FOREVER + "5")
    run = book.send("%tagent_run")
    behind = [book.send(f"print('cell {number}', result['slow'])") for number in range(3)]
    book.until(lambda: book.effects()["slow"] == 1)
    assert not book.idle & {run, *behind}
    (book.folder / "gate").touch()
    assert [book.wait(cell).strip() for cell in behind] == ["cell 0 5", "cell 1 5", "cell 2 5"]
    assert "✓ slow: completed" in book.text(run)


def test_the_value_is_given_where_it_is_used_and_else_not_shown_twice(kernel: Callable[[], Kernel]) -> None:
    book = kernel()
    book.run("%tagent_pipeline values")
    book.define("load", "5")
    shown = book.send("%tagent_run")
    book.wait(shown)
    assert all(message["msg_type"] != "execute_result" for message in book.outputs[shown])
    assert book.run("mine = %tagent_run\nprint(mine.success, mine is result)").strip().endswith("True True")
    assert "5" in book.run("for step in ['load']:\n    %tagent_run --until {step}\nprint(result[step])")
    assert "UsageError" in book.run("%tagent_run --until nowhere")


@on_every_kernel
@pytest.mark.parametrize(
    "cell",
    ["%tagent_run", "mine = %tagent_run", "def go():\n    %tagent_run\ngo()", "%%time\n%tagent_run"],
    ids=["awaited", "assigned", "in a function", "in %%time"],
)
def test_an_interrupt_ends_the_run_with_one_line_and_it_can_be_resumed(
    kernel: Callable[[], Kernel], cell: str
) -> None:
    book = kernel()
    book.run("%tagent_pipeline interrupted")
    book.define("first", "1")
    book.define("second", BEATING + "first + 1")
    run = book.send(cell)
    book.until(lambda: book.effects()["second"] == 1 and (book.folder / "beats").exists())
    book.interrupt()
    text = book.wait(run)
    assert "The run was stopped. %tagent_run --resume carries it on" in text
    assert "Traceback" not in text
    assert "STILL" in book.run(STILL)
    assert "True" in book.run("print(result.cancelled)")
    (book.folder / "gate").touch()
    assert "✓ second: completed" in book.run("%tagent_run --resume")
    assert book.effects() == {"first": 1, "second": 2}
    assert "2" in book.run("print(result['second'])")


@on_every_kernel
def test_stop_in_the_panel_ends_an_awaited_run(kernel: Callable[[], Kernel]) -> None:
    book = kernel()
    book.run("%tagent_pipeline stopped")
    book.define("slow", BEATING + "5")
    run = book.send("%tagent_run")
    book.until(lambda: (book.folder / "beats").exists() and _stop_button(book, run) is not None)
    book.click(_stop_button(book, run))
    book.wait(run)
    # The table replaces another output: where that is, is for its display id to say.
    book.until(lambda: "■ slow: cancelled" in book.story())
    assert "STILL" in book.run(STILL)


@on_every_kernel
def test_each_change_of_a_widget_is_answered_while_a_cell_awaits(kernel: Callable[[], Kernel]) -> None:
    """Front ends send a widget's second change only after the answer to its first."""
    book = kernel()
    book.run("%tagent_pipeline changed")
    shown = book.run("import ipywidgets\nfield = ipywidgets.Text()\nprint('COMM', field.comm.comm_id)")
    comm = shown.split("COMM ")[1].split()[0]
    book.define("slow", FOREVER + "5")
    run = book.send("%tagent_run")
    book.until(lambda: book.effects()["slow"] == 1)
    for together in (("a", "ab", "abc"), ("last",)):
        changes = set()
        for text in together:
            update = {"method": "update", "state": {"value": text}, "buffer_paths": []}
            changes.add(book.tell("comm_msg", {"comm_id": comm, "data": update}))
        book.until(lambda: changes <= book.idle)  # noqa: B023
    assert run not in book.idle
    (book.folder / "gate").touch()
    book.wait(run)
    assert "last" in book.run("print(field.value)")


OTHER = [
    "%load_ext tagent_nb\n%tagent_pipeline other",
    "%%tagent_step load --python\n5",
    "# Run it.\n%tagent_run\nprint('inside', result['load'])",
]


def _write_others(folder: Path) -> None:
    """The cells of another notebook, as a notebook and as a script of IPython."""
    cells = [
        {"cell_type": "code", "source": cell, "metadata": {}, "outputs": [], "execution_count": None}
        for cell in OTHER
    ]
    book = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    (folder / "other.ipynb").write_text(json.dumps(book))
    script = ["%load_ext tagent_nb", "%tagent_pipeline other", "current().pipeline.task(load)", *OTHER[2:]]
    lines = "from tagent_nb import current\ndef load():\n    return 5\n" + "\n".join(script)
    (folder / "other.ipy").write_text(lines)


@on_every_kernel
def test_a_notebook_that_another_one_runs_first_works_as_by_itself(kernel: Callable[..., Kernel]) -> None:
    book = kernel(loaded=False)
    _write_others(book.folder)
    text = book.run("%run other.ipynb")
    assert "inside 5" in text
    assert "✓ load: completed" in text
    assert "Error" not in text
    assert "never awaited" not in book.story()
    # The kernel's own cells await from now on, and those that a cell hands on still do not.
    later = book.run(
        "%tagent_run --force\nprint(result['load'], get_ipython().run_cell('%tagent_run').success)"
    )
    assert "5 True" in later
    assert "Error" not in later


@pytest.mark.parametrize(
    "first",
    [
        f"import asyncio\nawait asyncio.sleep(0)\nfor cell in {OTHER!r}:\n    get_ipython().run_cell(cell)",
        "%%capture captured\ndef go():\n    %run -i other.ipy\ngo()",
        f"%%time\ncells = {OTHER!r}\n"
        "cells[2] = 'handle = %tagent_run --background\\nresult = handle.result(30)'\n"
        "for cell in cells:\n    get_ipython().run_cell(cell)\nprint('inside', result['load'])",
    ],
    ids=["run_cell in a cell that awaits", "script in %%capture and a function", "background in %%time"],
)
def test_code_that_the_first_cell_hands_to_the_shell_loads_and_runs(
    kernel: Callable[..., Kernel], first: str
) -> None:
    book = kernel(loaded=False)
    _write_others(book.folder)
    text = book.run(first)
    assert "Error" not in text
    assert "never awaited" not in book.story()
    later = book.send("print(result['load'], result.success)")
    book.until(lambda: "5 True" in book.text(later))
    assert "inside 5" in (book.run("print(captured)") if "%%capture" in first else text)
    assert "✓ load: completed" in book.run("%tagent_run --force")


def test_a_program_that_runs_a_notebook_fails_where_a_strict_run_does(tmp_path: Path) -> None:
    """nbclient runs them for jupyter execute, nbconvert and papermill; the last looks for error outputs."""
    cells = [
        "%load_ext tagent_nb\n%tagent_pipeline scheduled",
        "# A comment above\n\n%%tagent_step load --python \\\n    --max-retries 0\n1 / 0",
        "%tagent_run\n%tagent_graph --save out\\graph.svg",
        "%tagent_run --resume \\\n    --strict",
        "print('below')",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    manager = AsyncKernelManager()
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager._kernel_spec = KernelSpec(argv=command, display_name="test", language="python")
    client = NotebookClient(book, km=manager, resources={"metadata": {"path": str(tmp_path)}}, timeout=60)
    with pytest.raises(CellExecutionError, match="load: ZeroDivisionError: division by zero"):
        client.execute()
    assert (tmp_path / "out\\graph.svg").read_text().startswith("<")
    run = book.cells[3].outputs
    assert any("✗ load: failed" in output.get("data", {}).get("text/plain", "") for output in run)
    errors = [output for output in run if output.output_type == "error"]
    assert [output.ename for output in errors] == ["RunFailedError"]
    assert "Traceback" not in str(errors)
    assert not book.cells[4].outputs


def _stop_button(book: Kernel, cell: str) -> str | None:
    """The comm of the button, once a front end shows it."""
    comm_id = None
    for message in book.outputs.get(cell, []):
        data = message["content"].get("data", {})
        if message["msg_type"] == "comm_open" and data.get("state", {}).get("description") == "Stop":
            comm_id = str(message["content"]["comm_id"])
        if "application/vnd.jupyter.widget-view+json" in data:
            return comm_id
    return None


@on_every_kernel
def test_a_background_run_leaves_the_kernel_free(kernel: Callable[[], Kernel]) -> None:
    book = kernel()
    book.run("%tagent_pipeline behind")
    book.define("slow", FOREVER + "5")
    run = book.send("handle = %tagent_run --background")
    book.wait(run)
    book.until(lambda: book.effects()["slow"] == 1)
    assert "False" in book.run("print(handle.done())")
    (book.folder / "gate").touch()
    assert "5" in book.run("print(handle.result(30)['slow'])")
    book.until(lambda: "✓ slow: completed" in "".join(book.text(cell) for cell in book.outputs))


@on_every_kernel
def test_printed_text_lands_in_the_area_of_its_step(kernel: Callable[[], Kernel]) -> None:
    book = kernel()
    book.run("%tagent_pipeline printing")
    book.define("slow", "print('from the step')\n" + FOREVER + "5")
    book.run("handle = %tagent_run --background")
    book.until(lambda: book.effects()["slow"] == 1)
    later = book.send("print('another cell')")
    assert book.wait(later).strip() == "another cell"
    (book.folder / "gate").touch()
    assert "from the step" not in book.run("_ = handle.result(30)")
    book.until(
        lambda: any("from the step" in _html(message) for cell in book.outputs.values() for message in cell)
    )


@on_every_kernel
def test_pipelines_that_run_at_the_same_time_keep_their_output_apart(kernel: Callable[[], Kernel]) -> None:
    book = kernel()
    for name in ("left", "right"):
        book.run(f"%tagent_pipeline {name}")
        book.define("slow", f"print('from the {name}')\n{FOREVER}'{name}'")
        book.run(f"{name} = %tagent_run --background")
    book.until(lambda: book.effects()["slow"] == 2)
    assert "False False" in book.run("print(left.done(), right.done())")
    (book.folder / "gate").touch()
    assert "leftright" in book.run("print(left.result(30)['slow'] + right.result(30)['slow'])")

    def texts(name: str) -> list[str]:
        return [
            _html(message)
            for cell in book.outputs.values()
            for message in cell
            if f"from the {name}" in str(message)
        ]

    book.until(lambda: all(any("completed" in text for text in texts(name)) for name in ("left", "right")))
    assert not any("from the right" in text for text in texts("left"))
    streams = [
        message for cell in book.outputs.values() for message in cell if message["msg_type"] == "stream"
    ]
    assert not any("from the" in message["content"]["text"] for message in streams)


def _html(message: dict[str, Any]) -> str:
    return str(message["content"].get("data", {}).get("text/html", ""))


def _ten_steps(book: Kernel) -> None:
    book.run("%tagent_pipeline ten --model test")
    for number in range(1, 11):
        reads = f"step_{number - 1} + " if number > 1 else ""
        wait = FOREVER if number == 7 else ""
        book.define(f"step_{number}", f"{wait}{reads}{number}")
    book.run("%%tagent_step report\nSay something about {{ step_10 }}.")


def test_a_kernel_killed_in_step_7_of_10_is_resumed_in_another(kernel: Callable[[], Kernel]) -> None:
    first = kernel()
    _ten_steps(first)
    first.send("%tagent_run")
    first.until(lambda: first.effects()["step_7"] == 1)
    first.kill()
    (first.folder / "gate").touch()
    second = kernel()
    _ten_steps(second)
    assert "✓ step_10: completed" in second.run("%tagent_run --resume")
    once = {f"step_{number}": 1 for number in range(1, 11)}
    assert second.effects() == once | {"step_7": 2}
    summary = "print([dict(r.step_outputs), r.total_cost, r.token_usage, sorted(r.cost_per_step.items())])"
    resumed = second.run(f"r = result\n{summary}")
    undisturbed = second.run(f"%tagent_run --force --no-cache\nr = result\n{summary}")
    assert resumed.strip().splitlines()[-1] == undisturbed.strip().splitlines()[-1]


def test_a_map_killed_at_item_60_of_100_pays_only_for_the_rest(kernel: Callable[[], Kernel]) -> None:
    def define(book: Kernel) -> None:
        book.run("%tagent_pipeline mapped --max-concurrency 1")
        book.define("numbers", "list(range(100))")
        note = "with open('items', 'a') as file:\n    file.write(f'{numbers}\\n')\n"
        wait = FOREVER.replace("not os", "numbers == 60 and not os")
        book.run(f"%%tagent_step double --python --map-over numbers\n{note}{wait}numbers * 2")

    first = kernel()
    define(first)
    items = first.folder / "items"
    first.send("%tagent_run")
    first.until(lambda: items.exists() and "60" in items.read_text().split())
    first.until_recorded(61)  # the numbers, and 60 of them
    first.kill()
    (first.folder / "gate").touch()
    second = kernel()
    define(second)
    assert "✓ double: completed" in second.run("%tagent_run --resume")
    assert Counter(items.read_text().split()) == {str(n): 1 for n in range(100)} | {"60": 2}
    assert second.effects() == {"numbers": 1}
    assert "True" in second.run("print(list(result['double']) == [n * 2 for n in range(100)])")
