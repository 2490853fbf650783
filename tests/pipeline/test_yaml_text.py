"""Pipelines as YAML: the content of their JSON, errors with the line, and nothing that runs."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tagent_nb import DefinitionError, ExecutionMode, MissingExtraError, Pipeline, PipelineStep
from tagent_nb.cli import main
from tagent_nb.errors import FormatVersionError
from tests.notebook.test_magics import Notebook, book

assert book  # a fixture: pytest finds it by its name


class Sentiment(BaseModel):
    label: str


def search(query: str) -> str:
    """Search."""
    return query


WRITTEN = """\
name: reviews
description: What customers say
model: test
instructions: |
  You are terse.
  No is no.
timeout: 600
steps:
- name: load
  python: |
    import json
    ["a", "b"]
- name: classify
  goal: 'Positive or not: {{ load }}'
  output_schema: Sentiment
  map_over: load
  tools: [search]
  settings:
    temperature: 1e-1
    stop_sequences: [no, on, 2026-01-01]
- name: report
  goal: Sum up {{ classify }}
  depends_on:
  - load:weak
  execution_mode: concurrent
  final: true
"""


def read(text: str) -> Pipeline:
    return Pipeline.from_yaml(text, schemas=[Sentiment], tools=[search])


def test_what_people_write_is_read() -> None:
    """Words mean what they mean in JSON: no, on and dates are text."""
    pipeline = read(WRITTEN)
    assert (pipeline.name, pipeline.timeout, pipeline.model) == ("reviews", 600, "test")
    assert pipeline.instructions == "You are terse.\nNo is no.\n"
    load, classify, report = pipeline.steps
    assert load.is_python
    assert classify.output_schema is Sentiment
    assert classify.settings == {"temperature": 0.1, "stop_sequences": ["no", "on", "2026-01-01"]}
    assert report.execution_mode is ExecutionMode.CONCURRENT
    assert report.final
    assert pipeline.validate() == []


def test_yaml_and_json_have_one_content() -> None:
    pipeline = read(WRITTEN)
    text = pipeline.to_yaml()
    assert read(text) == pipeline
    assert read(text).to_json() == pipeline.to_json()
    assert "  python: |\n    import json\n" in text.replace("|-", "|")


def test_functions_keep_their_body() -> None:
    pipeline = Pipeline("p")

    @pipeline.task(goal="Say a number")
    def load() -> int:
        return 1

    pipeline.put(PipelineStep.from_cell("other", "load + 1", python=True).with_(goal="My own goal"))
    again = Pipeline.from_yaml(pipeline.to_yaml())
    assert again.to_dict() == pipeline.to_dict()
    assert again.get_step("other").goal == "My own goal"


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=30)
@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(codec="utf-8"), max_size=12)
        | st.sampled_from(["no", "yes", "1e3", "0x10", "012", "1_000", "1:30", "~", "null", ".5", "=", "<<"]),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
)  # fmt: skip
def test_any_text_and_value_comes_back(goal: str, value: Any) -> None:
    """Whatever a goal or a shared value holds: quotes, colons, control characters, words like no."""
    pipeline = Pipeline("p").share(value=value).step("a", goal.replace("{", "("))
    again = Pipeline.from_yaml(pipeline.to_yaml())
    assert again.steps == pipeline.steps
    assert json.dumps(again.to_dict()) == json.dumps(pipeline.to_dict())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Line 1: the text is empty. Begin with: name: my pipeline"),
        ("- a", "Line 1: a pipeline is a mapping"),
        ("name: p\nsteps:\n  - name: a\n   goal: b", "Line 4, column 4: this is not YAML: .* Look at"),
        ("name: p\nname: q", "Line 2: 'name' is given twice. Keep one."),
        ("name: p\nstep: []", "Line 2: Stored pipeline: there is no field 'step'. Did you mean 'steps'"),
        ("name: p\ntimeout: soon", "Line 2: Pipeline 'p': timeout must be a number"),
        ("description: x", "Line 1: "),
        ("name: p\nsteps: load", "Line 2: steps must be a list"),
        ("name: p\nsteps:\n- load", "Line 3: .*a step must be an object with a name"),
        ("name: p\nsteps:\n- name: b\n  goal: x\n  condition: y",
         "Line 5: Stored step 'b': there is no field 'condition'. Write when="),
        ("name: p\nsteps:\n- name: a", "Line 3: Stored step 'a': goal is missing"),
        ("name: p\nsteps:\n- name: a\n  goal: x\n\n  max_retries: -1", "Line 6: Step 'a': max_retries"),
        ("name: p\nsteps:\n- name: a\n  python: x +", "Line 4|Line 3"),
        ("name: p\nsteps:\n- name: a\n  python: 3", "Line 4: Stored step 'a': python must be the text"),
        ("name: &a p\ndescription: *a", "Line .*: anchors"),
        ("name: !!python/object/apply:os.system [ls]", "Line 1: the tag .* is not read"),
        ("name: !own p", "Line 1: the tag '!own' is not read"),
        ("name: p\n1: x", "Line 2: a name must be text, not '1'"),
        ("name: p\n? [a]\n: x", "Line 2: a name must be text"),
        ("name: p\x00", "This is not YAML|is not YAML"),
        ("name: " + "[" * 200 + "]" * 200, "Line 1: this is nested deeper than the 100 levels"),
        ("[" * 5000, "nested deeper|is not YAML"),
        ("name: p\n---\nname: q", "is not YAML"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_line_and_remedy(text: str, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        Pipeline.from_yaml(text)


def test_a_newer_format_is_said_to_be_newer() -> None:
    with pytest.raises(FormatVersionError, match="Upgrade tagent-nb to read it"):
        Pipeline.from_yaml("format: 99\nname: p")


def test_without_pyyaml_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "yaml":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'tagent-nb\[yaml\]'"):
        Pipeline.from_yaml("name: p")


def test_the_command_runs_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(WRITTEN)
    Path("own.py").write_text(
        "from pydantic import BaseModel\nclass Sentiment(BaseModel):\n    label: str\n"
        "def search(query: str) -> str:\n    return query\n"
    )
    assert main(["run", "p.yaml", "--schemas", "own.py"]) == 0
    assert "classify" in capsys.readouterr().out
    assert main(["run", "p.yaml"]) == 1
    assert "p.yaml: Line 15: Stored step 'classify'" in capsys.readouterr().err
    Path("q.yml").write_text("name: p\nstps: []")
    assert main(["run", "q.yml"]) == 1
    assert "q.yml: Line 2: Stored pipeline: there is no field 'stps'" in capsys.readouterr().err


def test_a_notebook_exports_yaml(book: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    book("tagent_pipeline reviews --model test")
    book("tagent_step a", "Hello")
    book("tagent_export p.yaml")
    assert Pipeline.from_yaml(Path("p.yaml").read_text()) == book.session.pipeline
