"""Captured prints: text of a body goes to the body, all other text where it always went."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import warnings
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

from tagent_nb import Pipeline, PipelineExecutor
from tagent_nb.events import StepStreamed
from tagent_nb.runners.execution.capture import MAX_PIECE, Lines, captured, show, show_error


@pytest.fixture
def pieces() -> list[str]:
    return []


@pytest.fixture
def lines(pieces: list[str]) -> Lines:
    return Lines(pieces.append)


def test_whole_lines_are_passed_on_together(lines: Lines, pieces: list[str]) -> None:
    assert lines.write("a") == 1
    lines.write("b\nc")
    lines.write("\r")
    lines.flush()
    lines.flush()
    assert pieces == ["ab\nc", "\r"]


def test_long_text_without_a_line_end_is_passed_on(lines: Lines, pieces: list[str]) -> None:
    lines.write("x" * MAX_PIECE)
    assert pieces == []
    lines.write("x")
    assert pieces == ["x" * (MAX_PIECE + 1)]


def test_nothing_comes_after_close(lines: Lines, pieces: list[str]) -> None:
    lines.write("kept")
    lines.close()
    lines.write("late\n")
    lines.flush()
    assert pieces == []


def test_all_ways_of_writing_are_captured(
    lines: Lines, pieces: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with captured(lines):
        sys.stdout.writelines(["a", "b"])
        sys.stdout.flush()
        print("c", flush=True)
    assert pieces == ["ab", "c\n"]
    assert capsys.readouterr().out == ""


def test_other_threads_write_where_they_always_did(
    lines: Lines, pieces: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with captured(lines):
        other = threading.Thread(target=lambda: print("other", flush=True))
        other.start()
        other.join(10)
    assert pieces == []
    assert capsys.readouterr().out == "other\n"


def test_everything_else_is_the_streams_own(lines: Lines) -> None:
    """Attributes and methods that ipykernel or others use are those of the real stream."""

    class KernelStream(io.StringIO):
        parent = None

        def set_parent(self, parent: str) -> None:
            self.parent = parent

    stream = KernelStream()
    with contextlib.redirect_stdout(stream), captured(lines):
        assert sys.stdout is not stream
        sys.stdout.set_parent("cell 3")  # type: ignore[attr-defined]
        assert sys.stdout.isatty() is False
        with pytest.raises(AttributeError):
            _ = sys.stdout.nothing  # type: ignore[attr-defined]
    assert stream.parent == "cell 3"


def test_nested_captures_give_way_to_the_inner_one(lines: Lines, pieces: list[str]) -> None:
    before, inner = sys.stdout, list[str]()
    with captured(lines):
        outer_stream = sys.stdout
        with captured(Lines(inner.append)):
            assert sys.stdout is outer_stream
            print("inner")
        print("outer")
    assert (pieces, inner) == (["outer\n"], ["inner\n"])
    assert sys.stdout is before


def test_a_stream_that_someone_else_put_in_place_stays(lines: Lines, pieces: list[str]) -> None:
    """As with ``%%capture`` begun before the body ends, and ended after it: both find what they left."""
    before = sys.stdout
    other = io.StringIO()
    with contextlib.ExitStack() as stack:
        with captured(lines):
            stack.enter_context(contextlib.redirect_stdout(other))
            print("theirs")
        assert sys.stdout is other
    stand_in = sys.stdout
    assert stand_in is not before
    with captured(lines):
        assert sys.stdout is stand_in
        print("ours")
    assert sys.stdout is before
    assert (other.getvalue(), pieces) == ("theirs\n", ["ours\n"])


def test_a_program_without_stdout_stays_without(
    lines: Lines, pieces: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with captured(lines):
        print("nowhere")
    assert sys.stdout is None
    assert pieces == []


def test_an_error_inside_is_passed_on_after_the_last_text(lines: Lines, pieces: list[str]) -> None:
    def fail() -> None:
        print("last", end="")
        raise ValueError

    with pytest.raises(ValueError), captured(lines):  # noqa: PT011 - it has no text
        fail()
    assert pieces == ["last"]


IN_A_KERNEL = """
import asyncio, sys
from tagent_nb.pipeline.python_body import PythonBody
from tagent_nb.pipeline import PipelineStep
from tagent_nb.runners.base import StepContext
from tagent_nb.runners.python import PythonRunner

before, reported = sys.stdout, []
step = PipelineStep(name="s", goal="g", body=PythonBody.from_cell("s", "print('of the step')"))
context = StepContext("r", "p", "s", emit=lambda event: reported.append(event.text))
job = asyncio.ensure_future(PythonRunner().run(step, context))
print("of the cell")
await job
assert sys.stdout is before and type(before).__name__ == "OutStream"
print(reported)
"""


def test_in_a_kernel_only_the_cells_own_prints_reach_its_output() -> None:
    manager, client = start_new_kernel(startup_timeout=60)
    try:
        texts: list[str] = []

        def collect(message: dict[str, Any]) -> None:
            if message["msg_type"] in ("stream", "error"):
                texts.append(str(message["content"].get("text") or message["content"]))

        reply = client.execute_interactive(IN_A_KERNEL, timeout=60, output_hook=collect)
        assert reply["content"]["status"] == "ok", texts
        assert "".join(texts) == "of the cell\n['of the step\\n']\n"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_what_no_one_watches_is_printed_where_it_always_was(capsys: pytest.CaptureFixture[str]) -> None:
    """A script shows what its steps print, secrets of the environment left out."""
    pipeline = Pipeline("script")

    @pipeline.task
    def first() -> None:
        print("from a thread")

    @pipeline.task(depends_on=["first"])
    async def second() -> None:
        print("from the loop")

    PipelineExecutor(pipeline).run()
    print("and after")
    assert capsys.readouterr().out == "from a thread\nfrom the loop\nand after\n"
    watched: list[Any] = []
    PipelineExecutor(pipeline, observers=[watched.append]).run()
    assert capsys.readouterr().out == ""
    assert [event.text for event in watched if isinstance(event, StepStreamed)] == [
        "from a thread\n",
        "from the loop\n",
    ]


def test_what_goes_to_standard_error_is_of_the_step_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warnings and logs, without secrets: in the step's area, and in a script where they always were."""
    monkeypatch.setenv("SOME_API_KEY", "very-secret-value")
    pipeline = Pipeline("loud")

    @pipeline.task
    def loud() -> None:
        print("out")
        warnings.warn("of very-secret-value", stacklevel=1)
        logging.getLogger("a.library").warning("logged very-secret-value")

    @pipeline.task(depends_on=["loud"])
    async def later() -> None:
        sys.stderr.write("no line end")

    monkeypatch.setattr(logging.root, "handlers", [])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show_warning)
        PipelineExecutor(pipeline).run()
        printed = capsys.readouterr()
        assert printed.out == "out\n"
        assert printed.err == "UserWarning: of ***\nlogged ***\nno line end"
        watched: list[Any] = []
        PipelineExecutor(pipeline, observers=[watched.append]).run()
    assert capsys.readouterr() == ("", "")
    texts = [event.text for event in watched if isinstance(event, StepStreamed)]
    assert "".join(texts) == "out\nUserWarning: of ***\nlogged ***\nno line end"


def show_warning(message: Any, category: type, *_: Any) -> None:
    """As Python's own, which pytest replaces."""
    sys.stderr.write(f"{category.__name__}: {message}\n")


def test_a_program_without_a_console_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    show("text")
    show_error("text")


def test_text_is_shown_past_what_captures(lines: Lines, capsys: pytest.CaptureFixture[str]) -> None:
    with captured(lines):
        show("past\n")
        show_error("past, too\n")
    assert capsys.readouterr() == ("past\n", "past, too\n")
