"""The documentation says what is true: its code runs, its links lead somewhere, nothing public is left out.

Every ``python`` and ``ipython`` block of the README and of docs/ runs here, one page one session of IPython,
in a folder that holds only reviews.csv. A block under ``<!-- raises: CycleError -->`` must raise that.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import tagent_nb

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"(?:^<!-- raises: (\w+) -->\n+)?^```i?python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(?:#[^)\s]*)?\)")

SESSION = """
import json, sys, traceback
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
for place, raises, code in json.load(open(sys.argv[1], encoding="utf-8")):
    done = shell.run_cell(code)
    error = done.error_before_exec or done.error_in_exec
    if raises != (error and type(error).__name__):
        sys.exit(f"{place}: expected {raises or 'no error'}, got {error!r}")
"""


class Block(NamedTuple):
    place: str
    raises: str | None
    code: str


def pages() -> list[Path]:
    found = [ROOT / "README.md", *DOCS.rglob("*.md"), *(ROOT / "notebooks").rglob("*.md")]
    return sorted(page for page in found if "_build" not in page.parts)


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT)
    return [
        Block(f"{name}:{text.count(chr(10), 0, match.start(2))}", match[1], match[2])
        for match in BLOCK.finditer(text)
    ]


def pages_with_code() -> list[object]:
    params: list[object] = []
    for page in pages():
        code = "\n".join(block.code for block in blocks(page))
        if code:
            local = re.search(r"--model local|[\"']local[\"']", code)
            marks = [pytest.mark.requires("local-model")] if local else []
            params.append(pytest.param(page, marks=marks, id=str(page.relative_to(ROOT))))
    return params


@pytest.mark.parametrize("page", pages_with_code())
def test_every_code_block_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(ROOT / "notebooks" / "data" / "reviews.csv", work)
    script = tmp_path / "blocks.json"
    script.write_text(json.dumps(blocks(page)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", SESSION, str(script)],
        cwd=work,
        env={**os.environ, "IPYTHONDIR": str(tmp_path / "ipython"), "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_of_a_page_leads_to_a_file(page: Path) -> None:
    """Sphinx checks its own pages; this also holds for the README, as it is read in the repository."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    made = {DOCS / "reference" / "magics.md"}
    missing = [
        target
        for target in LINK.findall(text)
        if not (page.parent / target).exists() and (page.parent / target).resolve() not in made
    ]
    assert missing == []


def test_every_public_name_has_its_place_in_the_reference() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference" / "api").glob("*.md"))
    described = set(re.findall(r"auto(?:class|function):: tagent_nb\.(\w+)", text))
    assert described == set(tagent_nb.__all__) - {"__version__"}


def test_every_error_has_its_entry_in_troubleshooting() -> None:
    text = (DOCS / "how-to" / "troubleshooting.md").read_text(encoding="utf-8")
    errors = {name for name in tagent_nb.__all__ if name.endswith("Error")}
    assert {name for name in errors if f"`{name}`" not in text} == set()


def strings_of_the_package() -> list[str]:
    """Every text in the code, with a NUL where an f-string fills something in."""
    found: list[str] = []
    for path in Path(tagent_nb.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(
                        getattr(part, "value", "\0") if isinstance(part, ast.Constant) else "\0"
                        for part in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_message_in_troubleshooting_is_one_that_the_code_can_say() -> None:
    """A heading's words between the ellipses stand in the code, letter for letter."""
    code = "\n".join(strings_of_the_package())
    text = (DOCS / "how-to" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (.+)$", text, re.MULTILINE)
    parts = [part.strip() for heading in headings for part in heading.split("…")]
    assert [part for part in parts if part not in code] == []


def test_a_block_that_should_raise_is_told_from_one_that_should_not(tmp_path: Path) -> None:
    """The runner itself can fail: a wrong, a missing and an unexpected error are all told."""
    for raises, code, verdict in (
        ("ValueError", "raise ValueError", 0),
        ("ValueError", "raise KeyError", 1),
        ("ValueError", "1 + 1", 1),
        (None, "raise ValueError", 1),
        (None, "def broken(", 1),
        (None, "%no_such_magic", 1),
    ):
        script = tmp_path / "blocks.json"
        script.write_text(json.dumps([("page.md:1", raises, code)]), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-c", SESSION, str(script)],
            env={**os.environ, "IPYTHONDIR": str(tmp_path / "ipython")},
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == verdict, (raises, code)
