"""A newcomer's first hour in a real kernel: the README, an own table, slips, a new name, a killed kernel."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kernels import Kernel

ROOT = Path(__file__).parents[2]
TABLE = "import pandas as pd\ndf = pd.DataFrame({'text': ['a', 'bb', 'ccc'], 'rating': [1, 4, 5]})"
SIZE = "%%tagent_step size --python --map-over df\nlen(df['text'])"
JUDGE = "%%tagent_step judge --map-over df --when 'df.rating > 3'\nJudge {{ df.text }}."
TOTAL = "%%tagent_step total --python\nsum(size)"


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Callable[[], Kernel]]:
    """Starts kernels in a folder that holds the README's reviews."""
    shutil.copy(ROOT / "notebooks" / "data" / "reviews.csv", tmp_path)
    started: list[Kernel] = []

    def start() -> Kernel:
        started.append(Kernel(tmp_path))
        return started[-1]

    yield start
    for kernel in started:
        kernel.close()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_the_cells_of_the_readme_run_as_they_are_shown(kernel: Callable[[], Kernel]) -> None:
    """Word for word, beside its data; only the model is one that answers at once."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    cells = re.findall(r"^```ipython\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    notebook = kernel()
    outputs = [plain(notebook.run(cell.replace("--model local", "--model test"))) for cell in cells]
    assert not [output for output in outputs if "Error" in output]
    assert "reviews: completed (3 of 3 steps" in "".join(outputs)
    assert "Sentiment(label='negative')" in outputs[-1]


def test_a_table_of_the_notebook_is_mapped_over_filtered_and_changed(kernel: Callable[[], Kernel]) -> None:
    """No step loads it: it is an input by its name, and only what reads changed rows of it runs again."""
    notebook = kernel()
    notebook.run("%tagent_pipeline mine --model test")
    notebook.run(TABLE)
    assert "input:df (DataFrame, 3 rows)" in notebook.run(SIZE)
    notebook.run(JUDGE)
    notebook.run(TOTAL)
    assert "judge: completed" in notebook.run("%tagent_run")
    assert "6" in notebook.run("result['total']")
    assert "condition not met: df.rating > 3" in notebook.run("result.output_frame('judge')['error'][0]")
    assert "total: cached" in notebook.run("%tagent_run")
    notebook.run("df = pd.DataFrame({'text': ['a', 'bb', 'dddd'], 'rating': [1, 4, 5]})")
    assert "run (2 of 3 items cached)" in notebook.run("%tagent_plan")
    assert "input df changed" in notebook.run("%tagent_run")
    assert "7" in notebook.run("result['total']")


SLIPS = [
    ("%tagent_run size", "write --until size"),
    ("%tagent_run --resme", "Did you mean '--resume'?"),
    ("%tagent_run --model test", "an option of %%tagent_ask, %tagent_pipeline"),
    ("%tagent_explain siez", "Did you mean 'size'?"),
    ("%%tagent_step a b\ngo", "Text of several words needs quotes"),
    ("%%tagent_step typo --map-over dff\nJudge {{ dff.text }}.", "not defined yet"),
    ("%tagent_run", "Did you mean 'df'?"),
    ("%%tagent_step typo --python\nlen(dff)", "typo"),
    ("%tagent_run", "where it comes to that. Did you mean 'df'?"),
]


def test_a_slip_is_reported_with_its_remedy_and_nothing_is_lost(kernel: Callable[[], Kernel]) -> None:
    notebook = kernel()
    for cell in ("%tagent_pipeline mine --model test", TABLE, SIZE, TOTAL, "%tagent_run"):
        notebook.run(cell)
    for cell, remedy in SLIPS:
        assert remedy in plain(notebook.run(cell)), cell
    assert "6" in notebook.run("result['total']")


def test_a_pipeline_gets_another_name(kernel: Callable[[], Kernel]) -> None:
    """Its steps go with it; what it has recorded stays under the old name, and the message says so."""
    notebook = kernel()
    for cell in ("%tagent_pipeline mine --model test", TABLE, SIZE, TOTAL, "%tagent_run"):
        notebook.run(cell)
    assert "1 recorded run stays under the name 'mine'" in notebook.run("%tagent_pipeline --rename yours")
    assert "size: python" in notebook.run("%tagent_status")
    assert "total: cached" in notebook.run("%tagent_run")


def test_after_the_kernel_was_killed_the_same_cells_go_on(kernel: Callable[[], Kernel]) -> None:
    """Also where an input was a variable of the kernel that is gone: it was recorded."""
    cells = ("%tagent_pipeline mine --model test", SIZE, TOTAL)
    notebook = kernel()
    for cell in (cells[0], TABLE, *cells[1:]):
        notebook.run(cell)
    notebook.define("wait", "import os, time\nwhile not os.path.exists('gate'):\n    time.sleep(0.01)\ntotal")
    running = notebook.send("%tagent_run")
    notebook.until(lambda: notebook.effects()["wait"] == 1)
    assert running not in notebook.idle
    notebook.kill()
    Path(notebook.folder / "gate").touch()
    notebook = kernel()
    for cell in cells:
        notebook.run(cell)
    notebook.define("wait", "import os, time\nwhile not os.path.exists('gate'):\n    time.sleep(0.01)\ntotal")
    output = notebook.run("%tagent_run --resume")
    assert "completed (3 of 3 steps" in output
    assert "6" in notebook.run("result['wait']")
