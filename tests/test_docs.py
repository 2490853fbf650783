"""The documentation says what is true: its code runs, its links lead somewhere, nothing public is left out.

Every ``python`` and ``ipython`` block of the README and of docs/ runs here, one page one session of IPython,
in a folder that holds only reviews.csv. A block under ``<!-- raises: CycleError -->`` must raise that.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import tagent_nb

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"(?:^<!-- raises: (\w+) -->\n+)?^```i?python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(?:#[^)\s]*)?\)")

SESSIONS = """
import json, os, sys
import IPython.core.interactiveshell, pandas, pydantic_ai.models, tagent_nb.engine.executor

def session(script, folder):
    os.chdir(folder)
    os.environ |= {"IPYTHONDIR": f"{folder}/../ipython", "HOME": folder}
    output = os.open(f"{folder}/../output", os.O_WRONLY | os.O_CREAT)
    for place in (1, 2):
        os.dup2(output, place)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    shell = IPython.core.interactiveshell.InteractiveShell.instance()
    for place, raises, code in json.load(open(script, encoding="utf-8")):
        done = shell.run_cell(code)
        error = done.error_before_exec or done.error_in_exec
        if raises != (error and type(error).__name__):
            sys.exit(f"{place}: expected {raises or 'no error'}, got {error!r}")
    sys.exit()

for line in sys.stdin:
    child = os.fork()
    if not child:
        session(*json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs each page's blocks in a process of its own, forked from one that has imported what takes long."""


class Block(NamedTuple):
    place: str
    raises: str | None
    code: str


def pages() -> list[Path]:
    markdown = [ROOT / "README.md", *DOCS.rglob("*.md"), *(ROOT / "notebooks").rglob("*.md")]
    return sorted(page for page in markdown if "_build" not in page.parts)


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


@pytest.fixture(scope="module")
def sessions() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SESSIONS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process


Run = Callable[[list[Block], Path], tuple[int, str]]
"""Runs blocks in a session, in a folder: the exit code and the output."""


@pytest.fixture(scope="module")
def run_blocks() -> Iterator[Run]:
    with subprocess.Popen(
        [sys.executable, "-c", SESSIONS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(code: list[Block], folder: Path) -> tuple[int, str]:
            work = folder / "work"
            work.mkdir(parents=True)
            shutil.copy(ROOT / "notebooks" / "data" / "reviews.csv", work)
            script = folder / "blocks.json"
            script.write_text(json.dumps(code), encoding="utf-8")
            process.stdin.write(json.dumps([str(script), str(work)]) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline()), (folder / "output").read_text(encoding="utf-8")

        yield run


@pytest.mark.parametrize("page", pages_with_code())
def test_every_code_block_of_a_page_runs(page: Path, tmp_path: Path, run_blocks: Run) -> None:
    code, output = run_blocks(blocks(page), tmp_path)
    assert code == 0, output[-8000:]


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
    names: list[str] = []
    for path in Path(tagent_nb.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                names.append(
                    "".join(
                        getattr(part, "value", "\0") if isinstance(part, ast.Constant) else "\0"
                        for part in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.append(node.value)
    return names


def test_every_message_in_troubleshooting_is_one_that_the_code_can_say() -> None:
    """A heading's words between the ellipses stand in the code, letter for letter."""
    code = "\n".join(strings_of_the_package())
    text = (DOCS / "how-to" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (.+)$", text, re.MULTILINE)
    parts = [part.strip() for heading in headings for part in heading.split("…")]
    assert [part for part in parts if part not in code] == []


def test_a_block_that_should_raise_is_distinguished_from_one_that_should_not(
    tmp_path: Path, run_blocks: Run
) -> None:
    """The runner itself can fail: a wrong, a missing and an unexpected error are all reported."""
    for place, (raises, code, verdict) in enumerate(
        (
            ("ValueError", "raise ValueError", 0),
            ("ValueError", "raise KeyError", 1),
            ("ValueError", "1 + 1", 1),
            (None, "raise ValueError", 1),
            (None, "def broken(", 1),
            (None, "%no_such_magic", 1),
        )
    ):
        exit_code, output = run_blocks([Block("page.md:1", raises, code)], tmp_path / str(place))
        assert exit_code == verdict, (raises, code)
        assert ("page.md:1: expected" in output) == bool(verdict)
