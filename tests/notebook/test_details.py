"""The details of a step: what was asked, read, given and what went wrong."""

from __future__ import annotations

import pandas as pd
import pytest
from html_safety import HOSTILE, Reader, assert_safe

from tagent_nb.events import TokenUsage
from tagent_nb.notebook.panel.details import MAX_CHARACTERS, details_html
from tagent_nb.pipeline import Pipeline, PipelineStep, StepStatus
from tagent_nb.results import ItemResult, StepResult
from tagent_nb.serde import StoredValue


def done(name: str, value: object, **fields: object) -> StepResult:
    return StepResult(name, StepStatus.COMPLETED, StoredValue.of(value), **fields)  # type: ignore[arg-type]


def pipeline() -> Pipeline:
    made = Pipeline("reviews", model="test")
    made.put(PipelineStep.from_cell("load", "['good', 'bad']", python=True))
    made.step("classify", "Is it good? {{ load }} {{ shared.rule }} {{ facts.seen }}", map_over="load")
    made.step("report", "Write of {{ classify }}.")
    return made.share(rule="Be short.")


def details(name: str, *steps: StepResult, text: str = "", **fields: object) -> str:
    html = details_html(pipeline(), name, {step.name: step for step in steps}, text, **fields)  # type: ignore[arg-type]
    assert_safe(html)
    return Reader(html).text


def test_a_python_step_shows_its_code_its_output_and_what_it_printed() -> None:
    html = details("load", done("load", ["good", "bad"], seconds=1.0, attempts=2), text="reading")
    for part in ("code", "['good', 'bad']", "output", "printed", "reading", "1.0 s · 2 attempts"):
        assert part in html


def test_an_agent_step_shows_the_prompt_with_what_it_reads_filled_in() -> None:
    html = details(
        "report", done("classify", "all good"), StepResult("report", usage=TokenUsage(10, 5), cost=0.01)
    )
    assert "prompt" in html
    assert "Write of <data>all good</data>." in html
    assert "classify: all good" in html
    assert "15 tokens · $0.0100" in html


def test_a_mapped_step_shows_the_prompt_of_its_first_item_with_facts_and_shared_values() -> None:
    html = details("classify", done("load", ["good", "bad"]), facts={"seen": 7})
    assert "prompt of item 0" in html
    assert "Is it good? <data>good</data> Be short. 7" in html


@pytest.mark.parametrize("steps", [[], [done("load", [])], [done("load", 5)]])
def test_a_goal_is_shown_as_it_is_while_its_inputs_are_not_there(steps: list[StepResult]) -> None:
    assert "Is it good? {{ load }}" in details("classify", *steps)
    assert "classify: (nothing yet)" in details("report")


def test_items_that_failed_come_first_and_many_are_summed_up() -> None:
    items = {str(n): ItemResult(str(n), n, StepStatus.COMPLETED, StoredValue.of(n)) for n in range(8)}
    items["7"] = ItemResult("7", 7, StepStatus.FAILED, error_type="ValueError", error="no")
    html = details("classify", StepResult("classify", StepStatus.RUNNING, items=items, items_total=9))
    assert "items, 8 so far" in html
    assert html.index("7: failed · ValueError: no") < html.index("0: completed · 0")
    assert "… 3 more: result.output_frame('classify')" in html
    few = {"0": items["0"], "1": ItemResult("1", 1)}
    html = details("classify", done("classify", [0], items=few, items_total=2))
    assert "items, 2" in html
    assert "1: pending" in html


def test_an_error_comes_with_the_user_s_own_lines() -> None:
    failed = StepResult("load", StepStatus.FAILED, error_type="E", error="bad", traceback="line 3 of load")
    html = details("load", failed)
    assert "E: bad" in html
    assert "line 3 of load" in html
    assert "E: bad" in details("load", StepResult("load", StepStatus.FAILED, error_type="E", error="bad"))


def test_frames_are_tables_and_long_values_are_cut() -> None:
    frame = pd.DataFrame({"text": ["good", "bad"], "stars": [5, 1]})
    html = details("load", done("load", frame))
    assert "DataFrame, 2 rows x 2 columns" in html
    assert "stars" in html
    assert "1,000 characters more" in details("load", done("load", "x" * (MAX_CHARACTERS + 1000)))


def test_a_value_that_cannot_be_read_says_so() -> None:
    class Lost:
        storable, digest, problem = True, "", None

        @property
        def value(self) -> object:
            from tagent_nb.errors import CorruptRecordError

            raise CorruptRecordError("torn")

    state = StepResult("load", StepStatus.COMPLETED, Lost())
    assert "cannot be read: torn" in details("load", state)


def test_a_function_whose_source_is_not_known_says_so() -> None:
    made = Pipeline("p")
    scope: dict[str, object] = {}
    exec("def made_up(): return 1", scope)
    made.task(scope["made_up"])  # type: ignore[arg-type]
    assert "its source is not known" in details_html(made, "made_up", {})


def test_hostile_texts_stay_text_and_unknown_steps_have_no_details() -> None:
    hostile = HOSTILE.replace("\ud800", "")
    failed = StepResult("report", StepStatus.FAILED, error_type=HOSTILE, error=HOSTILE, traceback=HOSTILE)
    html = details("report", failed, done("classify", hostile), text=HOSTILE)
    assert "<script>alert(1)</script>" in html
    assert details_html(pipeline(), "nowhere", {}) == ""
