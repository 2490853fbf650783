"""The live graph: laid out once with room for what its nodes will say, and what they say then."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from tagent_nb.display import STATUS_STYLES
from tagent_nb.events import TokenUsage
from tagent_nb.graph import LiveGraph, live_style
from tagent_nb.pipeline import Pipeline, StepStatus
from tagent_nb.results import ItemResult, StepResult

SVG = "{http://www.w3.org/2000/svg}"


def reviews() -> Pipeline:
    pipeline = Pipeline("reviews", model="local")

    @pipeline.task
    def load() -> list[int]:
        return [1]

    pipeline.step("classify", "Say {{ load }}", map_over="load")
    pipeline.step("report", "Write {{ classify }}", depends_on=["load:weak", "nowhere"])
    return pipeline


def large() -> Pipeline:
    pipeline = Pipeline("large")
    pipeline.step("start", "go")
    for number in range(100):
        pipeline.step(f"f{number}", "go", depends_on=["start"])
    pipeline.step("end", "go", depends_on=[f"f{number}" for number in range(100)])
    return pipeline


def texts(graph: LiveGraph, node: str) -> list[str]:
    (group,) = [element for element in ET.fromstring(graph.svg).iter(f"{SVG}g") if element.get("id") == node]
    return [text.text or "" for text in group.iter(f"{SVG}text")]


def label(step: StepResult, now: float = 0.0) -> list[str]:
    graph = LiveGraph(reviews())
    node = graph.node_of(step.name)
    assert node is not None
    return graph.label(node, {step.name: step}, now)


def test_a_node_has_three_lines_and_room_for_the_last() -> None:
    graph = LiveGraph(reviews())
    assert graph.nodes == {"node-0": ("load",), "node-1": ("classify",), "node-2": ("report",)}
    assert graph.groups == {}
    first, kind, room = texts(graph, "node-1")
    assert first.endswith("classify")
    assert "each of load" in kind
    assert "items" in room
    assert graph.node_of("nowhere") is None
    assert "nowhere" in graph.svg  # drawn as not defined yet


def test_the_svg_has_nothing_that_acts_fetches_or_styles() -> None:
    names = {element.tag.removeprefix(SVG) for element in ET.fromstring(LiveGraph(reviews()).svg).iter()}
    assert names <= {"svg", "g", "title", "path", "polygon", "text", "ellipse", "polyline"}


def test_a_step_without_a_state_is_pending() -> None:
    graph = LiveGraph(reviews())
    assert graph.label("node-0", {}, 0.0) == ["pending", "○ load", "", "load: pending\npython"]


def test_a_running_step_has_a_clock() -> None:
    running = StepResult("load", StepStatus.RUNNING, started_at=100.0)
    state, first, last, tooltip = label(running, 112.0)
    assert (state, first, last) == ("running", "▸ load", "12 s")
    assert tooltip.startswith("load: running, 12 s")
    assert label(StepResult("load", StepStatus.RUNNING), 112.0)[2] == ""


def test_a_mapped_step_counts_its_items_and_what_they_cost() -> None:
    step = StepResult(
        "classify",
        StepStatus.RUNNING,
        seconds=3.0,
        started_at=100.0,
        usage=TokenUsage(1000, 200),
        cost=0.02,
        items={"0": ItemResult("0", 0, StepStatus.COMPLETED), "1": ItemResult("1", 1)},
        items_total=2,
    )
    assert label(step, 105.0)[2] == "1/2 items · 5.0 s · 1.2k tokens · $0.0200"


def test_a_failed_step_tells_its_error_on_one_line() -> None:
    failed = StepResult("load", StepStatus.FAILED, error_type="ValueError", error="no\nluck\ud800")
    state, first, _, tooltip = label(failed)
    assert (state, first) == ("failed", "✗ load")
    assert tooltip.split("\n")[2] == "ValueError: no luck "


def test_large_graphs_have_groups_that_tell_the_state_of_their_steps() -> None:
    graph = LiveGraph(large())
    (node,) = graph.groups
    assert len(graph.nodes) == 3
    assert "▤ 100 steps" in texts(graph, node)
    assert graph.svg.count('class="edge"') == 2  # one edge between two nodes
    ended = {f"f{n}": StepResult(f"f{n}", StepStatus.COMPLETED) for n in range(40)}
    assert graph.label(node, ended, 0.0)[2] == "40 of 100 ended"
    assert "60 pending, 40 completed" in graph.label(node, ended, 0.0)[3]


def test_an_opened_group_shows_its_steps_in_small() -> None:
    key = LiveGraph(large()).groups["node-1"]
    graph = LiveGraph(large(), [key])
    assert graph.groups == {}
    assert len(graph.nodes) == 102
    node = graph.node_of("f7")
    assert node is not None
    assert len(texts(graph, node)) == 1


def test_groups_in_a_compact_graph_have_one_line() -> None:
    pipeline = Pipeline("many")
    for number in range(400):
        pipeline.step(f"s{number}", "go", depends_on=[f"s{number - 1}"] if number % 9 else [])
    graph = LiveGraph(pipeline)
    assert len(graph.nodes) >= 40
    assert len(texts(graph, next(iter(graph.groups)))) == 1


C, P, F, R = StepStatus.COMPLETED, StepStatus.PENDING, StepStatus.FAILED, StepStatus.RUNNING


@pytest.mark.parametrize(
    ("states", "shown"),
    [
        ([C, F, R], "failed"),
        ([C, P, R], "running"),
        ([C, StepStatus.WAITING], "waiting"),
        ([C, StepStatus.CANCELLED], "cancelled"),
        ([C, C], "completed"),
        ([StepStatus.CACHED, StepStatus.CACHED], "cached"),
        ([C, StepStatus.CACHED], "completed"),
        ([C, P], "running"),
        ([P, StepStatus.READY], "pending"),
    ],
)
def test_the_state_of_a_group_is_that_of_its_most_urgent_step(states: list[StepStatus], shown: str) -> None:
    graph = LiveGraph(large())
    (node,) = graph.groups
    names = graph.nodes[node]
    steps = {name: StepResult(name, states[n % len(states)]) for n, name in enumerate(names)}
    assert graph.label(node, steps, 0.0)[0] == shown


def test_edges_of_one_kind_between_two_nodes_are_one_and_strong_ones_win() -> None:
    pipeline = large()
    pipeline.step("after", "go", depends_on=["f0:weak", "f1", "end"])
    assert LiveGraph(pipeline).svg.count('class="edge"') >= 3


def test_the_style_has_every_state_in_light_and_dark() -> None:
    style = live_style(".here")
    for status, look in STATUS_STYLES.items():
        assert f".here .tagent-{status.value}>text{{fill:{look.light.text}}}" in style
        assert f'light="false"] .here .tagent-{status.value}>text{{fill:{look.dark.text}}}' in style
    assert "url(" not in style
