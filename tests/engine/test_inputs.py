"""Files in place of what a step reads."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tagent_nb import (
    DefinitionError,
    Pipeline,
    PipelineExecutor,
    PipelineStep,
    PipelineValidationError,
    UnknownStepError,
    feed,
)


def python(name: str, code: str, **options: Any) -> PipelineStep:
    return PipelineStep.from_cell(name, code, python=True, **options)


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.chdir(tmp_path)
    made = Pipeline("reviews").put(python("load", "raise RuntimeError('not asked')", max_retries=0))
    return made.put(python("count", "len(load)"))


FILES = {
    "rows.csv": "text,stars\nGreat,5\nBad,1\n",
    "rows.tsv": "text\tstars\nGreat\t5\nBad\t1\n",
    "rows.jsonl": '{"text": "Great", "stars": 5}\n{"text": "Bad", "stars": 1}\n',
    "rows.json": '[{"text": "Great", "stars": 5}, {"text": "Bad", "stars": 1}]',
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_the_rows_of_the_step_that_reads_nothing(pipeline: Pipeline, name: str) -> None:
    Path(name).write_text(FILES[name], encoding="utf-8")
    step = feed(pipeline, name)
    assert step is not None
    assert step.name == "load"
    result = PipelineExecutor(pipeline).run()
    assert result["count"] == 2
    assert pd.DataFrame(result["load"]).to_dict("records")[1] == {"text": "Bad", "stars": 1}


TYPES = {
    "text that looks like a number": ("01234", "99"),
    "text that looks like a date": ("2024-01-02", "2024-01-03T10:00:00Z"),
    "numbers beyond a float": (12345678901234567, 2**70),
    "a number that is missing once": (7, None),
    "text that says nothing is there": ("NA", "null"),
    "floats": (1.0, 2.5),
    "booleans": (True, None),
    "lists and dicts": ([1, "2"], {"a": {"b": None}}),
    "mixed": (1, "1"),
}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "with a mark"])
def test_json_lines_keep_the_types_of_json(pipeline: Pipeline, name: str, mark: str) -> None:
    lines = [json.dumps({"v": value}, ensure_ascii=False) for value in TYPES[name]]
    Path("rows.jsonl").write_text(mark + "\n\n".join(lines) + "\n  \n", encoding="utf-8")
    feed(pipeline, "rows.jsonl")
    pipeline.put(python("each", "item['v']", map_over="load"))
    result = PipelineExecutor(pipeline).run()
    assert result["each"] == [*TYPES[name]]
    assert [type(value) for value in result["each"]] == [type(value) for value in TYPES[name]]


def test_json_lines_may_lack_fields_and_be_no_records(pipeline: Pipeline) -> None:
    Path("rows.jsonl").write_text('{"id": 1}\n{"id": 2, "t": "a"}\n', encoding="utf-8")
    feed(pipeline, "rows.jsonl")
    frame = PipelineExecutor(pipeline).run()["load"]
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {"id": "int64", "t": "str"}
    Path("rows.jsonl").write_text('"a"\n[1]\n', encoding="utf-8")
    assert PipelineExecutor(pipeline).run()["load"]["value"].tolist() == ["a", [1]]
    Path("rows.jsonl").write_text("", encoding="utf-8")
    assert PipelineExecutor(pipeline).run()["count"] == 0


def test_a_line_that_is_no_json_is_named(pipeline: Pipeline) -> None:
    Path("rows.jsonl").write_text('{"id": 1}\n\n{"id": }\n', encoding="utf-8")
    feed(pipeline, "rows.jsonl")
    assert "Line 3 of 'rows.jsonl' is no JSON" in PipelineExecutor(pipeline).run().error_details["load"]


def test_json_and_text_may_begin_with_a_mark(pipeline: Pipeline) -> None:
    Path("rows.json").write_text('\ufeff["01"]', encoding="utf-8")
    feed(pipeline, "rows.json")
    assert PipelineExecutor(pipeline).run()["load"] == ["01"]
    Path("rows.txt").write_text("\ufeffa", encoding="utf-8")
    feed(pipeline, "rows.txt")
    assert PipelineExecutor(pipeline).run()["load"] == "a"
    Path("rows.csv").write_text("\ufeffid\n007\n", encoding="utf-8")
    feed(pipeline, "rows.csv")
    assert PipelineExecutor(pipeline).run()["load"].to_dict("list") == {"id": [7]}


def test_parquet_and_text_and_names_with_quotes(pipeline: Pipeline) -> None:
    pd.DataFrame({"a": [1, 2, 3]}).to_parquet("it's {x}.parquet")
    feed(pipeline, Path("it's {x}.parquet"))
    assert PipelineExecutor(pipeline).run()["count"] == 3
    Path("some=text.txt").write_text("Grüße", encoding="utf-8")
    feed(pipeline, "load=some=text.txt")
    assert PipelineExecutor(pipeline).run()["load"] == "Grüße"


def test_a_file_that_changes_is_read_again(pipeline: Pipeline, tmp_path: Path) -> None:
    assert not feed_rows(pipeline, "a\n1\n").cache
    assert PipelineExecutor(pipeline).run()["count"] == 1
    feed_rows(pipeline, "a\n1\n2\n")
    assert PipelineExecutor(pipeline).run()["count"] == 2


def feed_rows(pipeline: Pipeline, text: str) -> PipelineStep:
    Path("rows.csv").write_text(text, encoding="utf-8")
    step = feed(pipeline, "load=rows.csv")
    assert step is not None
    return step


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("rows.xls", "its name must end in .csv, .tsv, .jsonl, .parquet, .json, .txt"),
        ("missing.csv", "There is no file 'missing.csv' to read. Look at its path: "),
        ("load=", "'' cannot be an input"),
        ("rows.csv", "several Python steps read no other step. Write STEP=rows.csv, where STEP is one of: "),
    ],
)
def test_an_input_that_cannot_be_is_refused_with_the_remedy(
    pipeline: Pipeline, source: str, message: str
) -> None:
    Path("rows.csv").write_text("a\n1\n")
    pipeline.put(python("other", "1"))
    with pytest.raises(DefinitionError, match=message.replace(".", r"\.")):
        feed(pipeline, source)


def test_a_step_that_is_not_there_is_refused(pipeline: Pipeline) -> None:
    Path("rows.csv").write_text("a\n1\n")
    with pytest.raises(UnknownStepError, match="Did you mean 'load'"):
        feed(pipeline, "laod=rows.csv")
    agents = Pipeline("agents", model="test").step("ask", "Ask.")
    with pytest.raises(DefinitionError, match="no Python step reads no other step.*one of: ask"):
        feed(agents, "rows.csv")


# -- inputs that are no steps ---------------------------------------------------------------------


@pytest.mark.parametrize("source", ["df=rows.csv", "rows.csv"])
def test_a_file_is_read_into_an_input_that_steps_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Now, and not when a step runs; without a name where only one is missing."""
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("text,stars\nGreat,5\nBad,1\n", encoding="utf-8")
    flow = Pipeline("flow").put(python("each", "item['stars']", map_over="df"))
    assert feed(flow, source) is None
    Path("rows.csv").unlink()
    assert PipelineExecutor(flow).run()["each"] == [5, 1]


def test_a_file_that_cannot_be_read_or_whose_input_is_unclear_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.json").write_text("{", encoding="utf-8")
    flow = Pipeline("flow").put(python("each", "item", map_over="df"))
    with pytest.raises(DefinitionError, match="'rows.json' cannot be read for the input 'df': "):
        feed(flow, "rows.json")
    flow.put(python("load", "1"))
    with pytest.raises(DefinitionError, match="several steps and inputs could be meant.*one of: load, df"):
        feed(flow, "rows.json")
    with pytest.raises(UnknownStepError, match="no step 'dff'"):
        feed(flow, "dff=rows.json")


def test_a_large_input_that_cannot_be_stored_is_refused_before_anything_runs(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    """The message has the path to what is in the way."""
    pipeline.remove("load")
    rows = ["x" * 1_000_001, threading.Lock()]
    executor = PipelineExecutor(pipeline, storage=tmp_path / "runs")
    with pytest.raises(PipelineValidationError, match=r"'load'.*\[1\].*_thread.lock cannot be stored"):
        executor.run(inputs={"load": rows})
