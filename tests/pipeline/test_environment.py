"""Defaults from the environment and a .env: the weakest say, never more than their own names."""

from __future__ import annotations

import asyncio
import os
import warnings
from pathlib import Path

import pytest
from pydantic_ai.models.test import TestModel

from tagent_nb import DefinitionError, Pipeline, PipelineExecutor, open_storage, run_agent
from tagent_nb.cli import main
from tagent_nb.notebook.session import Session
from tagent_nb.pipeline import Defaults, defaults, environment
from tests.notebook.test_magics import Notebook, book

assert book  # a fixture: pytest finds it by its name


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment, "_warned", set())


def hello(**options: object) -> Pipeline:
    return Pipeline("p", **options).step("a", "Hello")  # type: ignore[arg-type]


def runs(folder: str) -> int:
    return len(asyncio.run(open_storage(folder).runs(hello().id)))


def test_an_executor_takes_what_no_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, storage and cache; the second run is answered from the cache."""
    monkeypatch.setenv("TAGENT_NB_MODEL", "test")
    monkeypatch.setenv("TAGENT_NB_STORAGE", "here")
    monkeypatch.setenv("TAGENT_NB_CACHE", "answers")
    assert hello().run().steps["a"].status.value == "completed"
    assert hello().run().steps["a"].status.value == "cached"
    assert runs("here") == 2
    assert run_agent("Hello").output == "success (no tool calls)"


def test_whatever_is_written_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAGENT_NB_MODEL", "openai:none-such")
    monkeypatch.setenv("TAGENT_NB_STORAGE", "here")
    monkeypatch.setenv("TAGENT_NB_CACHE", "answers")
    explicit = TestModel(custom_output_text="said")
    assert hello(model=explicit).run(storage="there", cache=False)["a"] == "said"
    assert hello().run(model=explicit, storage="there", cache=False)["a"] == "said"
    assert Pipeline("p").step("a", "Hello", model=explicit).run(storage="there", cache=False)["a"] == "said"
    assert runs("there") == 3
    assert not Path("here").exists()
    assert not Path("answers").exists()


def test_budget_and_timeout_limit_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAGENT_NB_BUDGET", "3 tokens")
    assert "BudgetExceeded" in hello(model="test").run(max_concurrency=1).error_details["a"]
    assert hello(model="test").run(budget="1000 tokens").success
    monkeypatch.delenv("TAGENT_NB_BUDGET")
    monkeypatch.setenv("TAGENT_NB_TIMEOUT", "0.3")
    slow = Pipeline("slow")

    @slow.task
    async def wait() -> None:
        await asyncio.sleep(600)

    assert slow.run().timed_out


def test_a_file_is_read_and_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only names of this package, with and without quotes and comments; nothing gets into the environment."""
    Path(".env").write_text(
        "# settings\nOPENAI_API_KEY=sk-other\nexport TAGENT_NB_MODEL='test'  # small\n"
        'TAGENT_NB_STORAGE = "my runs" \nTAGENT_NB_CACHE=answers # here\nTAGENT_NB_BUDGET=\nnonsense\n'
    )
    assert defaults() == Defaults(model="test", storage="my runs", cache="answers")
    monkeypatch.setenv("TAGENT_NB_STORAGE", "elsewhere")
    assert defaults().storage == "elsewhere"
    assert "TAGENT_NB_MODEL" not in os.environ
    assert os.environ.get("OPENAI_API_KEY") != "sk-other"
    assert hello().run().success


def test_a_misspelt_name_is_warned_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAGENT_NB_MODLE", "test")
    Path(".env").write_text("\nTAGENT_NB_STORGE=x")
    with pytest.warns(UserWarning, match="means nothing") as caught:
        defaults()
    texts = [str(warning.message) for warning in caught]
    assert "TAGENT_NB_MODLE (environment) means nothing. Did you mean 'TAGENT_NB_MODEL'?" in texts[0]
    assert "TAGENT_NB_STORGE (.env, line 2) means nothing. Did you mean 'TAGENT_NB_STORAGE'?" in texts[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        defaults()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "TAGENT_NB_TIMEOUT=soon",
            r"TAGENT_NB_TIMEOUT \(.env, line 1\): timeout must be a number of seconds",
        ),
        ("TAGENT_NB_TIMEOUT=-1", r"TAGENT_NB_TIMEOUT \(.env, line 1\): timeout must be a number of seconds"),
        ("TAGENT_NB_BUDGET=much", r"TAGENT_NB_BUDGET \(.env, line 1\): "),
    ],
)
def test_a_value_that_cannot_be_read_is_named(line: str, message: str) -> None:
    Path(".env").write_text(line)
    with pytest.raises(DefinitionError, match=message):
        PipelineExecutor(hello())


def test_a_file_that_cannot_be_read_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("TAGENT_NB_MODEL=test")

    def refused(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.warns(UserWarning, match="cannot be read .Permission denied.: its settings do not count"):
        assert defaults() == Defaults()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert defaults() == Defaults()


def test_a_huge_file_is_no_list_of_settings() -> None:
    Path(".env").write_text("TAGENT_NB_MODEL=test\n" + "#" * (1 << 20))
    assert defaults() == Defaults()
    Path(".env").unlink()
    Path(".env").mkdir()
    assert defaults() == Defaults()


def test_a_notebook_takes_them(book: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAGENT_NB_MODEL", "test")
    monkeypatch.setenv("TAGENT_NB_STORAGE", "here")
    monkeypatch.setenv("TAGENT_NB_CACHE", "answers")
    book.session = Session(book.shell.user_ns, ".tagent")
    pipeline = book.session.use("p")
    pipeline.step("a", "Hello")
    assert book.session.start().result().success
    assert runs("here") == 1
    assert Path("answers").is_dir()
    book.session.use("p", cached=False)
    assert book.session.start().result().steps["a"].status.value == "completed"


def test_the_command_line_takes_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(".env").write_text("TAGENT_NB_MODEL=test\nTAGENT_NB_STORAGE=here\nTAGENT_NB_CACHE=answers\n")
    Path("p.json").write_text(hello().to_json())
    assert main(["run", "p.json"]) == 0
    assert main(["ask", "Hello"]) == 0
    assert runs("here") == 1
    assert Path("answers").is_dir()
    assert not Path(".tagent").exists()
    assert main(["run", "p.json", "--storage", "there"]) == 0
    assert runs("there") == 1
    Path(".env").write_text("TAGENT_NB_TIMEOUT=x")
    assert main(["run", "p.json"]) == 1
    assert "TAGENT_NB_TIMEOUT (.env, line 1)" in capsys.readouterr().err
