"""What Tab offers in the lines of magics and in goals."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from pydantic import BaseModel

import tagent_nb
from tagent_nb.errors import StorageUnavailableError
from tagent_nb.notebook.magics import completion as completing
from tagent_nb.notebook.magics.completion import MagicCompleter
from tagent_nb.notebook.session import Session
from tagent_nb.pipeline import PipelineStep
from tagent_nb.storage import RunInfo


class Sentiment(BaseModel):
    label: str
    score: float


@pytest.fixture
def session(tmp_path: Path) -> Session:
    made = Session({"Sentiment": Sentiment, "sane": lambda value: None, "print": print}, tmp_path)
    made.use("reviews")
    made.put(PipelineStep("load", "go"))
    made.put(PipelineStep("classify", "{{ load }}", output_schema=Sentiment))
    return made


def offered(session: Session, text: str) -> list[str]:
    fragment, words, _ = MagicCompleter(session, None).words(text)
    assert text.endswith(fragment)
    return [word for word in words if word.startswith(fragment)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("%tagent_run --u", ["--until"]),
        ("r = %tagent_run --until c", ["classify"]),
        ("%tagent_run --force load,cl", ["classify"]),
        ("%tagent_run --retry-failed load,cl", ["classify"]),
        ("x = 1\n%tagent_run --on-change ", ["refuse", "rerun"]),
        ("%%tagent_step a --output-s", ["--output-schema"]),
        ("%%tagent_step a --output-schema S", ["Sentiment"]),
        ("%%tagent_step a --check brief,s", ["sane"]),
        ("%%tagent_step a --retry-on ValueError,ZeroD", ["ZeroDivisionError"]),
        ("%%tagent_step a --map-over ", ["load", "classify"]),
        ("%%tagent_step a --model lo", ["local"]),
        ("%tagent_explain l", ["load"]),
        ("%tagent_results ", ["load", "classify"]),
        ("%tagent_pipeline r", ["reviews"]),
        ("%tagent_compare r", ["reviews"]),
        ("%tagent_compare strict r", ["reviews"]),
        ("%tagent_compare r --answer c", []),
        ("%tagent_fork strict --set classify.go", ["classify.goal="]),
        ("%tagent_nest ", ["on"]),
        ("%tagent_run --resume --res", []),
        ("%tagent_status x", []),
        ("%tagent_nothing --x", []),
        ("%timeit --x", []),
        ("%%tagent_step a\nSay {{ cl", ["classify"]),
        ("%%tagent_step a\nSay {{ load }} and {{ classify.", ["label", "score"]),
        ("%%tagent_step a\n{% for x in lo", ["load"]),
        ("%%tagent_step a\n{{ load.", []),
        ("%%tagent_step a\nSay {{ load }} cl", []),
        ("print(1", []),
    ],
)
def test_tab_offers_what_may_stand_there(session: Session, text: str, words: list[str]) -> None:
    assert offered(session, text) == words


def test_variables_are_offered_where_an_input_may_stand(session: Session) -> None:
    space = session.namespace
    space.update(rows=SimpleNamespace(columns=["text", "two words", 1]), load=1, facts_of={"mood": 1})  # type: ignore[attr-defined]
    assert offered(session, "%%tagent_step x --map-over ") == ["load", "classify", "facts_of", "rows"]
    assert offered(session, "%%tagent_step x\n{{ ro") == ["rows"]
    assert offered(session, "%%tagent_step x\n{{ rows.") == ["text"]
    assert offered(session, "%%tagent_step x\n{{ facts_of.m") == ["mood"]


def test_an_option_that_is_there_is_not_offered_again(session: Session) -> None:
    assert "--resume" not in offered(session, "%tagent_run --resume --")
    assert "--force" in offered(session, "%tagent_run --resume --")


def test_before_there_is_a_pipeline_there_are_no_steps(tmp_path: Path) -> None:
    empty = Session({}, tmp_path)
    assert offered(empty, "%tagent_run --until ") == []
    assert offered(empty, "%%tagent_step a\n{{ load.") == []


def test_ids_of_recorded_runs_are_offered_the_newest_first(tmp_path: Path) -> None:
    session = Session({}, tmp_path)
    assert offered(session, "%tagent_history ") == []
    session.use("reviews", cached=False)
    assert offered(session, "%tagent_history ") == []
    session.put(PipelineStep.from_cell("load", "1", python=True))
    runs = [session.start().result(30).run_id for _ in range(2)][::-1]
    assert offered(session, "%tagent_history ") == runs
    assert offered(session, "%tagent_run --resume ") == runs
    assert offered(session, f"%tagent_results --run {runs[0]}") == [runs[0]]


@pytest.mark.parametrize("slow", [False, True])
def test_a_storage_that_is_away_or_slow_offers_nothing(
    session: Session, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    async def runs(pipeline_id: str, *, limit: int | None = None) -> list[RunInfo]:
        if slow:
            await asyncio.Event().wait()
        raise StorageUnavailableError("it is away")

    monkeypatch.setattr(completing, "_RUNS_TIMEOUT", 0.01 if slow else 30.0)
    monkeypatch.setattr(session.workspace.storage, "runs", runs)
    assert offered(session, "%tagent_history ") == []


@pytest.mark.skipif(not completing.HAS_MATCHERS, reason="this IPython has no matchers")
def test_the_shell_asks_it(monkeypatch: pytest.MonkeyPatch, session: Session) -> None:
    shell = InteractiveShell.instance()
    monkeypatch.setattr("tagent_nb.notebook.extension.current", lambda: session)
    tagent_nb.load_ipython_extension(shell)
    try:
        with provisionalcompleter():
            line = "%tagent_run --until c"
            assert [completion.text for completion in shell.Completer.completions(line, len(line))] == [
                "classify"
            ]
            cell = "%%tagent_step a\nSay {{ cl"
            assert "classify" in [
                completion.text for completion in shell.Completer.completions(cell, len(cell))
            ]
    finally:
        tagent_nb.unload_ipython_extension(shell)
    assert not any(
        getattr(matcher, "matcher_identifier", "") == "tagent_nb"
        for matcher in shell.Completer.custom_matchers
    )


def test_where_the_shell_has_no_matchers_the_rest_is_there(
    monkeypatch: pytest.MonkeyPatch, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with IPython 7, which Colab has: no word about it."""
    monkeypatch.setattr(completing, "HAS_MATCHERS", False)
    shell = InteractiveShell.instance()
    before = list(getattr(shell.Completer, "custom_matchers", ()))
    tagent_nb.load_ipython_extension(shell)
    try:
        assert shell.find_line_magic("tagent_run") is not None
        assert list(getattr(shell.Completer, "custom_matchers", ())) == before
    finally:
        tagent_nb.unload_ipython_extension(shell)
    assert capsys.readouterr() == ("", "")
