"""The project's own promises: extras that exist, notebooks that are clean, nothing skipped in CI."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tagent_nb.engine.recordings import read_recording

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_every_provider_extra_is_one_of_pydantic_ai() -> None:
    """pip only warns about an extra that does not exist; a user would notice at the first request."""
    extras = set(importlib.metadata.metadata("pydantic-ai-slim").get_all("Provides-Extra") or ())
    passed_on = {
        name
        for name, requirements in PROJECT["optional-dependencies"].items()
        if requirements == [f"pydantic-ai-slim[{name}]"]
    }
    assert {"anthropic", "google", "groq", "mistral", "bedrock"} <= passed_on <= extras


def test_the_notebooks_are_the_seven_lessons() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "01_first_pipeline",
        "02_cache_and_resume",
        "03_agents_tools_and_budget",
        "04_approval_and_replay",
        "05_run_controls",
        "06_rows",
        "07_compare_prompts",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS[2:4], ids=lambda path: path.stem)
def test_a_recorded_notebook_replays_its_own_recording(path: Path) -> None:
    """It asks no one: its recording lies beside it, is whole, and was made by the local model."""
    file = f"data/{path.stem}.json"
    assert file in path.read_text(encoding="utf-8")
    wanted = {
        call.answer.get("model_name")
        for call in read_recording(ROOT / "notebooks" / file)
        if call.kind == "model"
    }
    assert "local/smollm2-135m" in wanted


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_clean_outputs(path: Path) -> None:
    """Who reads it without a kernel sees every output: no errors, and no widgets that need a kernel."""
    book: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert all(cell["execution_count"] for cell in cells)
    assert "error" not in kinds
    assert len(kinds) > len(cells) / 2
    assert "application/vnd.jupyter.widget-view+json" not in path.read_text(encoding="utf-8")


def test_the_rows_are_what_their_readme_says() -> None:
    with (ROOT / "notebooks" / "data" / "reviews.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["id"] for row in rows}) == 100
    assert {row["product"] for row in rows} == {"dvd player", "camera", "phone", "mp3 player"}
    assert all(-4 <= float(row["rating"]) <= 4 and 40 <= len(row["text"]) <= 160 for row in rows)


SKIPPED = """
import conftest, pytest

conftest.PARTS["unobtainium"] = lambda: False

@pytest.mark.requires("unobtainium")
def test_that_needs_a_part(): ...

def test_that_skips_itself():
    pytest.skip("I would rather not")

@pytest.mark.xfail(reason="known")
def test_that_is_expected_to_fail():
    assert False
"""


@pytest.mark.parametrize(
    ("ci", "outcome"), [("", "3 skipped, 1 xfailed"), ("true", "1 failed, 1 xfailed, 2 errors")]
)
def test_a_missing_part_skips_a_test_and_fails_it_in_ci(tmp_path: Path, ci: str, outcome: str) -> None:
    for name in ("conftest.py", "kernels.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "test_skipped.py").write_text(SKIPPED, encoding="utf-8")
    (tmp_path / "test_import.py").write_text("import pytest\npytest.importorskip('unobtainium_package')\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--continue-on-collection-errors", "."],
        cwd=tmp_path,
        env={**os.environ, "CI": ci, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert outcome in done.stdout.splitlines()[-1]
    assert "unobtainium is not installed" in done.stdout
