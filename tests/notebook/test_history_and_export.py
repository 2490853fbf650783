"""Magics about what is kept: history, cache, exported pipelines; and the switch of asyncio."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nest_asyncio2
import pandas as pd
import pytest
from html_safety import HOSTILE, assert_safe

from tagent_nb.engine import submit
from tagent_nb.results import PipelineResult
from tagent_nb.storage import SQLiteStorageBackend
from tests.notebook.test_magics import Notebook, book, refused

assert book  # a fixture: pytest finds it by its name


# -- %tagent_history ----------------------------------------------------------------------


def test_history_is_a_frame_of_runs_the_newest_first(book: Notebook) -> None:
    book("tagent_pipeline reviews")
    empty = book("tagent_history")
    assert isinstance(empty, pd.DataFrame)
    assert len(empty) == 0
    book.python("a", "1")
    book.python("b", "1 / 0", "--max-retries 0")
    first = book("tagent_run").run_id
    second = book("tagent_run").run_id
    frame = book("tagent_history")
    assert list(frame.index) == [second, first]
    assert list(frame.columns) == [
        *("started", "status", "host", "steps", "done", "cached", "failed"),
        *("cost", "unpriced", "seconds", "size"),
    ]
    assert list(frame["status"]) == ["failed", "failed"]
    assert list(frame["cached"]) == [1, 0]
    assert list(frame["done"]) == [1, 1]
    assert list(frame["failed"]) == [1, 1]
    assert list(frame["cost"]) == [0.0, 0.0]
    assert (frame["seconds"] >= 0).all()
    assert (frame["size"] > 0).all()
    assert str(frame["started"].dtype) == "datetime64[us, UTC]"


def test_history_says_where_lost_runs_are(book: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is gone, and its backup is there."""
    book("tagent_pipeline reviews --storage sqlite:///runs.db")
    book.python("a", "1")
    book("tagent_run")
    storage = book.session.executor().storage
    assert isinstance(storage, SQLiteStorageBackend)
    made = submit(storage.backup()).result()
    submit(storage.close()).result()
    for file in storage.path.parent.glob("runs.db*"):
        if file.is_file():
            file.unlink()
    capsys.readouterr()
    assert len(book("tagent_history")) == 0
    assert f"its backup {made.path} holds 1" in capsys.readouterr().out
    assert f"its backup {made.path} holds 1" in refused(book, "tagent_run --resume")


def test_a_run_of_the_past_is_opened_as_a_result(book: Notebook) -> None:
    book("tagent_pipeline reviews")
    book.python("a", "1")
    first = book("tagent_run").run_id
    book.python("a", "2")
    second = book("tagent_run").run_id
    later = Notebook(book.session.folder)  # another kernel, without the steps
    later("tagent_pipeline reviews")
    result = later(f"tagent_history {first}")
    assert isinstance(result, PipelineResult)
    assert result["a"] == 1
    assert later.shell.user_ns["result"] is result
    assert later(f"tagent_history {second[-8:]}")["a"] == 2


def test_a_run_that_is_not_there_is_reported(book: Notebook) -> None:
    book("tagent_pipeline reviews")
    assert refused(book, "tagent_history nothing").endswith("no recorded run 'nothing'. It has none yet.")
    book.python("a", "1")
    run = book("tagent_run").run_id
    book("tagent_run")
    message = refused(book, f"tagent_history {run[:-1]}x")
    assert f"Did you mean {run!r}?" in message
    assert "The newest is " in message
    assert "may be any of 2 runs of pipeline 'reviews'" in refused(book, "tagent_history 2")
    assert "there is no variable 'run'" in refused(book, "tagent_history $run")


def test_prices_that_no_one_knows_are_missing_not_zero(book: Notebook) -> None:
    book("tagent_pipeline reviews")
    book.shell.run_cell("from tagent_nb import TokenUsage")
    book.python("free", "context.spend(TokenUsage(1, 1), None)\n1")
    book("tagent_run")
    book.python("paid", "context.spend(TokenUsage(1, 1), 0.25)\n1")
    book("tagent_run --no-cache")
    frame = book("tagent_history")
    assert list(frame["cost"].isna()) == [False, True]
    assert frame["cost"].iloc[0] == 0.25
    assert list(frame["unpriced"]) == [True, True]


def test_a_run_that_goes_on_has_no_seconds_yet(book: Notebook) -> None:
    book("tagent_pipeline reviews")
    book.shell.run_cell("import threading\ngate, entered = threading.Event(), threading.Event()")
    book.python("wait", "entered.set()\ngate.wait(60)")
    handle = book("tagent_run --background")
    assert book.shell.user_ns["entered"].wait(60)
    frame = book("tagent_history")
    book.shell.user_ns["gate"].set()
    handle.result(60)
    assert list(frame["status"]) == ["running"]
    assert frame["seconds"].isna().all()


# -- %tagent_plan -------------------------------------------------------------------------


def test_a_plan_that_would_be_refused_names_the_remedy(book: Notebook) -> None:
    book("tagent_pipeline reviews")
    book.python("a", "1")
    book("tagent_run")
    book.python("a", "2")
    book("tagent_plan --resume")
    assert "It would be refused; --on-change rerun lets it go as planned here." in book.shown[-1]
    book("tagent_plan --resume --on-change rerun")
    assert "refused" not in book.shown[-1]
    assert_safe(book.published.outputs[-1]["data"]["text/html"])


# -- %tagent_cache ------------------------------------------------------------------------


def forgotten(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("Forgot")]


def test_the_cache_is_shown_and_cleared(book: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    book("tagent_pipeline reviews")
    book.python("a", "1")
    book.python("b", "2")
    book("tagent_run")
    book("tagent_run")
    book("tagent_cache")
    assert book.shown[-1].startswith("2 answers, ")
    assert "2 hits and 2 misses in this kernel" in book.shown[-1]
    assert "\na  reviews-" in book.shown[-1]
    book("tagent_cache --clear a")
    book("tagent_cache --clear a")
    book("tagent_cache --clear all --older-than 1")
    book("tagent_cache --clear all")
    book("tagent_cache --clear")
    assert forgotten(capsys) == [
        "Forgot 1 answer.",
        "Forgot 0 answers.",
        "Forgot 0 answers.",
        "Forgot 1 answer.",
        "Forgot 0 answers.",
    ]
    assert book.shown[-1].startswith("0 answers, ")


def test_mistakes_about_the_cache(book: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(book, "tagent_cache --clear laod")
    assert message.endswith("no cached answer of a step 'laod'. Steps with answers: none.")
    book("tagent_pipeline reviews")
    book.python("load", "1")
    book("tagent_run")
    assert "Did you mean 'load'? Steps with answers: load." in refused(book, "tagent_cache --clear laod")
    assert refused(book, "tagent_cache --older-than 2") == (
        "%tagent_cache: --older-than needs --clear. Write: %tagent_cache --clear all --older-than 2"
    )
    for days in ("-1", "nan"):
        assert "write 0 or more days" in refused(book, f"tagent_cache --clear all --older-than={days}")
    assert forgotten(capsys) == []
    book("tagent_cache --clear all --older-than 0")
    assert forgotten(capsys) == ["Forgot 1 answer."]


def test_hostile_names_stay_text(book: Notebook) -> None:
    name = HOSTILE.replace("\x07", "").replace("\ud800", "")
    book.session.use(name)
    book.python("a", "1")
    book("tagent_run")
    book("tagent_cache")
    assert_safe(book.published.outputs[-1]["data"]["text/html"])


# -- %tagent_export -----------------------------------------------------------------------


def test_a_pipeline_is_written_as_json_and_as_a_picture(
    book: Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    book("tagent_pipeline reviews")
    book.python("load", "1")
    book("tagent_export p.json")
    book("tagent_export p.svg")
    assert "Wrote p.json: 1 step." in capsys.readouterr().out
    assert json.loads(Path("p.json").read_text("utf-8"))["name"] == "reviews"
    assert "<svg" in Path("p.svg").read_text("utf-8")


def test_json_says_which_names_of_the_notebook_it_does_not_hold(
    book: Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    book("tagent_pipeline reviews")
    book.python("load", "pd.Series([1, 2])")
    book.python("clean", "tidy(pd.Series(load))")
    capsys.readouterr()
    book("tagent_export p.json")
    printed = capsys.readouterr().out
    assert "which its Python uses: pd (load, clean), tidy (clean)." in printed
    assert "tagent-nb run p.json --schemas FILE.py" in printed
    book("tagent_export p.svg")
    assert "--schemas" not in capsys.readouterr().out


def test_json_says_which_inputs_it_does_not_hold(book: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    book.shell.run_cell("rows = [1, 2]").raise_error()
    book("tagent_pipeline reviews")
    book.python("double", "rows * 2", "--map-over rows")
    capsys.readouterr()
    book("tagent_export p.json")
    assert (
        "does not hold these inputs, which are variables of the notebook: rows. "
        "Give them: tagent-nb run p.json --input rows=FILE" in capsys.readouterr().out
    )


def test_a_pipeline_is_written_as_a_module_that_runs(
    book: Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    book.shell.run_cell("import math\nLIMIT = 2\ndef up(x):\n    return math.ceil(x) + LIMIT").raise_error()
    book("tagent_pipeline reviews")
    book.python("load", "# rows\n[1.5, 2.5]")
    book.python("total", "sum(up(one) for one in load)")
    book("tagent_export reviews.py")
    assert capsys.readouterr().out == "Wrote reviews.py: 2 steps.\n"
    done = subprocess.run(
        [sys.executable, "reviews.py"], capture_output=True, text=True, timeout=120, check=True
    )
    assert "total  completed" in done.stdout
    assert " 9 " in done.stdout


def test_a_module_that_was_changed_by_hand_is_not_lost(book: Notebook) -> None:
    book("tagent_pipeline reviews")
    book.python("load", "1")
    book("tagent_export mine.py")
    book.python("load", "2")
    book("tagent_export mine.py")
    text = Path("mine.py").read_text("utf-8")
    Path("mine.py").write_text(text + "# my own line\n", "utf-8")
    assert "add --overwrite" in refused(book, "tagent_export mine.py")
    Path("binary.py").write_bytes(b"\xff\xfe\xff")
    assert "add --overwrite" in refused(book, "tagent_export binary.py")
    book("tagent_export mine.py --overwrite")
    assert Path("mine.py").read_text("utf-8") == text


def test_mistakes_about_files(book: Notebook) -> None:
    book("tagent_pipeline reviews")
    book.python("load", "1")
    for line in ("tagent_export", "tagent_export p.exe"):
        assert "ends in .py, .json, .yaml, .svg" in refused(book, line)
    assert "nowhere/p.py cannot be written: No such file" in refused(book, "tagent_export nowhere/p.py")
    assert "there is no variable 'file'" in refused(book, "tagent_export $file")
    book.shell.user_ns["lock"] = object()
    book.python("load", "lock")
    assert "  - lock: a value of type object cannot be written" in refused(book, "tagent_export p.py")
    assert not Path("p.py").exists()


def test_the_calls_of_a_run_are_written_and_replayed_without_the_model(
    book: Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    book("tagent_pipeline reviews --model test --no-cache")
    book("tagent_step ask", "Say hello.")
    answer = book("tagent_run")["ask"]
    book("tagent_export --recording calls.json")
    assert "Wrote calls.json: 1 call. To replay: %tagent_pipeline NAME --recording calls.json" in (
        capsys.readouterr().out
    )
    for line in ("tagent_export --recording", "tagent_export --recording calls.py"):
        assert "ends in .json" in refused(book, line)
    book("tagent_pipeline reviews --recording calls.json")
    assert book("tagent_run")["ask"] == answer


# -- %tagent_nest -------------------------------------------------------------------------


def test_nest_says_whether_it_is_on(
    book: Notebook, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    def apply(error_on_mispatched: bool) -> None:
        assert error_on_mispatched
        monkeypatch.setattr(asyncio, "_nest_patched", True, raising=False)

    monkeypatch.setattr(nest_asyncio2, "apply", apply)
    book("tagent_nest")
    book("tagent_nest off")
    book("tagent_nest on")
    book("tagent_nest")
    off, on = "asyncio.run() inside cells is off.", "asyncio.run() inside cells is on."
    assert capsys.readouterr().out.splitlines() == [off, off, on, on]
    assert "cannot be taken off a running kernel" in refused(book, "tagent_nest off")
    assert "there is only 'on', not 'maybe'" in refused(book, "tagent_nest maybe")


def test_the_predecessor_of_nest_asyncio2_is_refused(book: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr(asyncio, "_nest_patched", True, raising=False)
    message = refused(book, "tagent_nest on")
    assert "already patched by nest_asyncio. Take nest_asyncio.apply() out" in message


NESTED = """
import asyncio
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()

def cell(code):
    done = shell.run_cell(code)
    done.raise_error()
    return done.result

async def kernel():
    # As in a kernel: cells run while the loop does.
    cell("%load_ext tagent_nb")
    cell("%tagent_nest on")
    cell("import asyncio\\nasync def one(): return await asyncio.sleep(0.01, 41)")
    assert cell("asyncio.run(one()) + 1") == 42
    cell("%tagent_pipeline nested")
    cell("%%tagent_step ask --python\\nasyncio.run(one())")
    cell("%%tagent_step wait --python\\nawait one() + ask")
    shell.run_line_magic("tagent_run", "")
    assert shell.user_ns["result"]["wait"] == 82, shell.user_ns["result"].error_details

asyncio.run(kernel())
print("done")
"""


def test_with_nest_on_cells_and_steps_may_call_asyncio_run(tmp_path: Path) -> None:
    """In a process of its own: there is no way back."""
    done = subprocess.run(
        [sys.executable, "-c", NESTED], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip().endswith("done"), done.stdout + done.stderr
