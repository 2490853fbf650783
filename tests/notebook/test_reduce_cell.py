"""``%%tagent_step --reduce-over``: what a cell defines, and where it is shown."""

from __future__ import annotations

import pytest

from tagent_nb import Pipeline, PipelineExecutor
from tagent_nb.display import step_facts
from tagent_nb.events import Output
from tagent_nb.graph.drawing import about_step
from tagent_nb.notebook.magics.tables import plan_table
from tagent_nb.notebook.panel.details import details_html
from tagent_nb.serde import StoredValue
from tests.notebook.test_magics import Notebook, book

assert book  # a fixture: pytest finds it by its name

ROWS = [f"row {place} {'x' * 200}" for place in range(400)]


def flow() -> Pipeline:
    pipeline = Pipeline("flow", model="test", inputs={"load": ROWS})
    return pipeline.step(
        "report", "Count.", reduce_over="load", group_by="kind", combine="Add up.", reduce_tokens=3000,
        min_success=0.5,
    )  # fmt: skip


def test_a_cell_says_what_is_reduced_and_how(book: Notebook) -> None:
    book("tagent_pipeline flow")
    book.python("load", "[{'kind': 'a', 'text': 'x'}, {'kind': 'b', 'text': 'y'}]")
    options = "--reduce-over load --group-by kind --combine 'Add up' --reduce-tokens 3000 --model test"
    book(f"tagent_step report {options}", "Count.")
    step = book.session.pipeline.get_step("report")
    assert (step.reduce_over, step.group_by, step.combine, step.reduce_tokens) == (
        "load",
        "kind",
        "Add up",
        3000,
    )


def test_a_card_and_the_graph_say_what_is_reduced() -> None:
    pipeline = flow()
    step = pipeline.get_step("report")
    facts = dict(step_facts(pipeline, step))
    assert facts["all of"] == "load, by kind, at most 3,000 tokens of it at once, combined by: Add up."
    assert facts["limits"] == "50% of parts must succeed"
    assert about_step(step) == "agent · all of load by kind"
    bare = Pipeline("bare", inputs={"load": ROWS}).step("report", "Count.", reduce_over="load")
    assert dict(step_facts(bare, bare.get_step("report")))["all of"] == "load"
    assert about_step(bare.get_step("report")) == "agent · all of load"


async def test_the_table_of_a_plan_has_calls_from_and_to() -> None:
    pipeline = Pipeline("calls", model="test", inputs={"load": ROWS}).step(
        "report", "Count.", reduce_over="load"
    )
    plan = await PipelineExecutor(pipeline).plan()
    quote = plan["report"].quote
    assert quote is not None
    low, high = (quote.calls + later for later in quote.later_calls)
    assert f"{low:,} to {high:,}" in plan_table(plan).text


@pytest.mark.parametrize(
    ("rows", "words"), [(ROWS, "of the first 5 of 400 rows"), (ROWS[:2], "prompt</div>")]
)
def test_the_details_show_the_prompt_with_the_first_rows(rows: list[str], words: str) -> None:
    inputs: dict[str, Output] = {"load": StoredValue.of(rows)}
    page = details_html(flow(), "report", {}, inputs=inputs)
    assert words in page
    assert "row 1 x" in page
    assert "row 6 x" not in page
