"""Trying a change in a notebook: a fork that pays for what changed only, and what then differs."""

from __future__ import annotations

from pathlib import Path

import pytest
from IPython.core.error import StdinNotImplementedError
from test_magics import Notebook, book, refused

__all__ = ["book"]


def reviews(book: Notebook) -> None:
    """Rows, a classifier whose strictness is a field of its settings' stand-in, and a report."""
    book("tagent_pipeline reviews --max-concurrency 3 --description Reviews")
    book.noting("load", "[{'text': 'ab', 'label': 'short'}, {'text': 'abcdef', 'label': 'long'}]")
    book.noting("classify", "{'label': 'long' if len(load['text']) > 1 else 'short'}", "--map-over load")
    book("tagent_step report --model test", "Report on {{ classify }}")


def test_a_fork_runs_what_changed_and_shares_the_rest(book: Notebook) -> None:
    """Its storage and options are those of the first; later changes of either do not reach the other."""
    reviews(book)
    assert book.effects("tagent_run") == "loadclassifyclassify"
    book("tagent_fork strict --set 'report.goal=Tell of {{ classify }}' --set report.max_retries=1")
    assert book.session.pipeline.name == "strict"
    assert book.session.workspace.max_concurrency == 3
    report = book.session.pipeline.get_step("report")
    assert (report.goal, report.max_retries) == ("Tell of {{ classify }}", 1)
    assert book.session.workspaces["reviews"].pipeline.get_step("report").goal == "Report on {{ classify }}"
    assert book.effects("tagent_run") == ""
    statuses = {name: step.status.value for name, step in book.session.last_result().steps.items()}
    assert statuses == {"load": "cached", "classify": "cached", "report": "completed"}


def test_a_fork_follows_what_its_cells_name(book: Notebook) -> None:
    """A schema that a cell defines anew reaches both, but for a field that the fork has set."""
    from pydantic import BaseModel

    class Label(BaseModel):
        label: str

    class Other(BaseModel):
        label: str

    book.shell.user_ns.update(Label=Label, Other=Other, check=lambda value: None)
    book("tagent_pipeline reviews --model test")
    book("tagent_step judge --output-schema Label", "Judge")
    book("tagent_fork same")
    book(
        "tagent_fork other --set judge.output_schema=Other --set judge.checks=check "
        "--set judge.constraints=Short --set judge.retry_on=ValueError,KeyError"
    )
    renewed = type("Label", (Label,), {})
    book.shell.user_ns["Label"] = renewed
    schemas = {}
    for name in ("reviews", "same", "other"):
        book(f"tagent_pipeline {name}")
        schemas[name] = book.session.pipeline.get_step("judge").output_schema
    assert schemas == {"reviews": renewed, "same": renewed, "other": Other}
    judge = book.session.pipeline.get_step("judge")
    assert [check.__name__ for check in judge.checks] == ["<lambda>"]
    assert judge.constraints == ["Short"]
    assert judge.retry_on == ["ValueError", "KeyError"]


def test_settings_and_models_of_a_fork(book: Notebook) -> None:
    book("tagent_pipeline reviews --model test")
    book("tagent_step judge --setting temperature=1.0", "Judge")
    book(
        "tagent_fork other --set judge.settings.temperature=0.5 --set judge.settings.max_tokens=9 "
        "--set judge.settings.extra_body.seed.n=1 "
        "--set judge.model=local --set judge.cache=false --set judge.timeout=none --set judge.agent=plan"
    )
    judge = book.session.pipeline.get_step("judge")
    assert judge.settings == {"temperature": 0.5, "max_tokens": 9, "extra_body": {"seed": {"n": 1}}}
    assert (judge.model, judge.cache, judge.timeout, judge.agent) == ("local", False, None, "plan")


def test_two_pipelines_and_two_runs_are_compared(book: Notebook, tmp_path: Path) -> None:
    reviews(book)
    book("tagent_run")
    first = book.session.last_result().run_id
    book("tagent_fork strict")
    book.noting("classify", "{'label': 'long' if len(load['text']) > 3 else 'short'}", "--map-over load")
    book("tagent_run")
    comparison = book("tagent_compare reviews strict")
    assert comparison.names == ("reviews", "strict")
    assert comparison.rows[["step", "item", "reviews", "strict"]].values.tolist() == [
        ["classify", "0", "long", "short"]
    ]
    assert book("tagent_compare reviews").names == ("strict", "reviews")
    assert book("tagent_compare strict").names == ("strict", "strict_2")
    book("tagent_pipeline reviews")
    book("tagent_run")
    assert book(f"tagent_compare {first}").total.startswith("all ")
    evaluation = book("tagent_compare strict --answer classify.label --truth load.label")
    assert evaluation.accuracy == 1.0
    assert book("tagent_compare --answer classify.label --truth load.label").accuracy == 0.5


def test_bad_input_is_one_clear_error(book: Notebook) -> None:
    reviews(book)
    assert "which name" in refused(book, "tagent_fork")
    assert "There is a pipeline 'reviews' already" in refused(book, "tagent_fork reviews")
    for change in ("classify", "classify=1", "classify.=1", "classify.model=", ".model=a"):
        assert "cannot be read. Write: --set classify.model=local" in refused(
            book, f"tagent_fork b --set {change}"
        )
    assert "Did you mean 'goal'" in refused(book, "tagent_fork b --set report.gaol=a")
    assert "Did you mean 'load'?" in refused(book, "tagent_fork b --set laod.cache=false")
    assert "is Python, which has no goal" in refused(book, "tagent_fork b --set load.goal=a")
    assert "is Python, which has no model" in refused(book, "tagent_fork b --set load.model=local")
    assert "'goal' has no parts. Write report.goal" in refused(book, "tagent_fork b --set report.goal.a=b")
    assert list(book.session.workspaces) == ["reviews"]
    assert "with what" in refused(book, "tagent_compare")
    assert "belong together" in refused(book, "tagent_compare --truth load.label")
    assert "belong together" in refused(book, "tagent_compare a b --truth load.label --answer classify.label")
    assert "has not run yet" in refused(book, "tagent_compare --answer classify.label --truth load.label")
    book("tagent_run")
    message = refused(book, "tagent_compare revews")
    assert "neither a pipeline of this notebook nor a run" in message
    assert "Did you mean 'reviews'" in message


def test_the_timeline_of_the_last_run_is_shown_and_saved(book: Notebook, tmp_path: Path) -> None:
    reviews(book)
    book("tagent_run")
    book(f"tagent_graph --timeline --save {tmp_path / 'runs.svg'}")
    assert "held up by load" in book.shown[-1]
    assert (tmp_path / "runs.svg").read_text().startswith("<svg")
    book("tagent_graph --timeline")
    assert "exclude each other" in refused(book, "tagent_graph --timeline --definition")
    assert "cannot be written" in refused(book, f"tagent_graph --timeline --save {tmp_path / 'no' / 'a.svg'}")
    assert "saved as .svg" in refused(book, f"tagent_graph --timeline --save {tmp_path / 'a.png'}")


def test_steps_items_and_events_of_recorded_runs_are_frames(book: Notebook) -> None:
    reviews(book)
    for _ in range(2):
        book("tagent_run")
    assert len(book("tagent_history --steps")) == 6
    assert len(book("tagent_history --items classify")) == 4
    assert len(book("tagent_history --steps --last 1")) == 3
    assert "RunStarted" in book("tagent_history --events")["event"].tolist()
    assert "exclude each other" in refused(book, "tagent_history --steps --events")
    assert "exclude each other" in refused(book, "tagent_history abc --steps")
    assert "Did you mean 'classify'" in refused(book, "tagent_history --items clasify")


def test_a_run_asks_first_with_its_plan_where_it_is_set_so(
    book: Notebook, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its calls, tokens and cost are shown; any other answer than yes runs nothing."""
    reviews(book)
    answers = iter(["", "n", "Yes"])
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return next(answers)

    monkeypatch.setattr("builtins.input", answer)
    assert book("tagent_run --confirm") is None
    assert "reviews: 3 steps" in book.shown[-1]
    assert book("tagent_run --confirm --budget 5 requests") is None
    assert capsys.readouterr().out.count("Not run.") == 2
    assert book("tagent_run --confirm").success
    assert asked == ["Run it? [y/N] "] * 3
    book("tagent_step report --model test", "Report again on {{ classify }}")
    book("tagent_plan --budget 0 requests")
    assert "About 1 call of models, $0. The budget of 0 requests may stop it" in book.shown[-1]
    assert "at most" in book.shown[-1]


def test_a_run_that_cannot_ask_says_what_to_do(book: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nbconvert and papermill."""

    def unable(question: str) -> str:
        raise StdinNotImplementedError

    monkeypatch.setattr("builtins.input", unable)
    reviews(book)
    assert "Leave it out, or set a budget" in refused(book, "tagent_run --confirm")
    monkeypatch.setattr("builtins.input", _end)
    assert "Leave it out, or set a budget" in refused(book, "tagent_run --confirm")
    assert book.session.result is None


def _end(question: str) -> str:
    raise EOFError
