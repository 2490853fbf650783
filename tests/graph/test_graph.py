"""The picture of a pipeline: what it shows, for whom it is readable, and that nothing in it is live."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from pydantic import BaseModel

from tagent_nb.display import STATUS_STYLES
from tagent_nb.errors import DefinitionError, TagentError
from tagent_nb.events import TokenUsage
from tagent_nb.formatting import cost_text, model_label, seconds_text, tokens_text
from tagent_nb.graph import LiveGraph, save_picture, save_svg, to_dot, to_svg
from tagent_nb.pipeline import Pipeline, StepStatus
from tagent_nb.results import ItemResult, StepResult

SVG = "{http://www.w3.org/2000/svg}"


class Sentiment(BaseModel):
    label: str


def reviews() -> Pipeline:
    pipeline = Pipeline("reviews", model="local")

    @pipeline.task
    def load() -> list[int]:
        return [1]

    pipeline.step("classify", "Say {{ load }}", map_over="load", output_schema=Sentiment)
    pipeline.step("report", "Write {{ classify }}", depends_on=["load:weak"], when="classify", model="test")
    return pipeline


def chain(count: int) -> Pipeline:
    pipeline = Pipeline("chain")
    for number in range(count):
        pipeline.step(f"s{number}", "go", depends_on=[f"s{number - 1}"] if number else [])
    return pipeline


def groups(svg: str, kind: str) -> dict[str, ET.Element]:
    """The drawn nodes or edges by id."""
    groups = ET.fromstring(svg).iter(f"{SVG}g")
    return {group.get("id", ""): group for group in groups if kind in group.get("class", "").split()}


def words(element: ET.Element) -> str:
    return "\n".join(text.text or "" for text in element.iter(f"{SVG}text"))


def legend(svg: str) -> list[str]:
    for group in ET.fromstring(svg).iter(f"{SVG}g"):
        if group.get("class") == "tagent-legend":
            return words(group).split("\n")
    return []


def test_a_definition_shows_kind_schema_and_what_a_step_is_mapped_over() -> None:
    nodes = groups(to_svg(reviews()), "node")
    assert words(nodes["node-0"]) == "load\nƒ python"
    assert words(nodes["node-1"]) == "classify\n✦ agent · → Sentiment · each of load"
    assert words(nodes["node-2"]) == "report\n✦ agent · test · conditional"


def test_edges_tell_the_type_of_dependency_by_their_line_and_title() -> None:
    pipeline = Pipeline("p").step("a", "go").step("b", "go").step("c", "go")
    pipeline.step("d", "{{ c }}", depends_on=["a:weak", "b:optional", "absent:optional"])
    edges = groups(to_svg(pipeline), "edge")
    drawn = {
        edge.findtext(f"{SVG}title"): edge.find(f"{SVG}path").get("stroke-dasharray")  # type: ignore[union-attr]
        for edge in edges.values()
    }
    assert set(drawn) == {"a → d (weak)", "b → d (optional)", "c → d"}
    assert drawn["c → d"] is None
    assert len(set(drawn.values())) == 3


def test_an_inferred_edge_is_drawn_as_an_explicit_one() -> None:
    def edges(pipeline: Pipeline) -> list[str]:
        return [line for line in to_dot(pipeline).body if "->" in line]

    inferred = Pipeline("p").step("a", "go").step("b", "{{ a }}")
    explicit = Pipeline("p").step("a", "go").step("b", "go", depends_on=["a"])
    assert edges(inferred) == edges(explicit) != []


@pytest.mark.parametrize("status", StepStatus)
def test_every_state_has_its_own_mark_and_word_besides_its_colour(status: StepStatus) -> None:
    pipeline = Pipeline("p").step("a", "go")
    svg = to_svg(pipeline, {"a": StepResult("a", status)})
    node = groups(svg, "node")["node-0"]
    assert node.get("class") == f"node tagent-{status.value}"
    assert words(node).startswith(f"{STATUS_STYLES[status].mark} a")
    assert (node.findtext(f"{SVG}title") or "").startswith(f"a: {STATUS_STYLES[status].word}")
    assert legend(svg) == [STATUS_STYLES[status].mark, STATUS_STYLES[status].word]


def test_no_two_states_share_a_mark_a_word_or_a_colour() -> None:
    for part in ("mark", "word", "light", "dark"):
        assert len({getattr(look, part) for look in STATUS_STYLES.values()}) == len(StepStatus)


def test_what_a_step_took_is_shown() -> None:
    done = ItemResult("0", 0, StepStatus.COMPLETED)
    steps = {
        "load": StepResult("load", StepStatus.CACHED, seconds=0.2),
        "classify": StepResult(
            "classify", StepStatus.RUNNING, items={"0": done, "1": ItemResult("1", 1)}, items_total=40
        ),
        "report": StepResult(
            "report", StepStatus.FAILED, seconds=12, usage=TokenUsage(1200, 90), cost=None, error="no <key>"
        ),
    }
    nodes = groups(to_svg(reviews(), steps), "node")
    assert "from cache" in words(nodes["node-0"])
    assert "1/40 items" in words(nodes["node-1"])
    assert "12 s · 1.3k tokens · $?" in words(nodes["node-2"])
    assert "no <key>" in (nodes["node-2"].findtext(f"{SVG}title") or "")


def test_a_step_without_a_recorded_state_is_pending() -> None:
    nodes = groups(to_svg(reviews(), {}), "node")
    assert all("tagent-pending" in (node.get("class") or "") for node in nodes.values())


def test_the_legend_has_only_what_occurs() -> None:
    plain = Pipeline("p").step("a", "go").step("b", "{{ a }}")
    assert legend(to_svg(plain)) == []
    assert legend(to_svg(reviews())) == ["agent", "python", "once per item", "needs", "weak"]
    assert legend(to_svg(reviews(), legend=False)) == []


def test_an_undefined_dependency_and_a_cycle_are_drawn() -> None:
    pipeline = Pipeline("p").step("a", "{{ b }}").step("b", "{{ a }} {{ nowhere }}")
    svg = to_svg(pipeline)
    nodes = groups(svg, "node")
    assert words(nodes["node-2"]) == "? nowhere\nnot defined yet"
    assert len(groups(svg, "edge")) == 3
    assert legend(svg) == ["?", "not defined yet"]


def test_two_steps_of_one_name_and_no_steps_at_all_are_drawn() -> None:
    assert len(groups(to_svg(Pipeline("p").step("a", "go").step("a", "go")), "node")) == 2
    assert groups(to_svg(Pipeline("p")), "node") == {}


def test_many_steps_are_drawn_in_groups_as_the_live_graph_draws_them() -> None:
    """From 81 steps on: a node says of how many steps it is, its title of which, its state what theirs is."""
    pipeline = chain(99)
    pipeline.step("end", "go", depends_on=["s97:weak", "s98"])
    pipeline.step("ring", "go", depends_on=["ring", "absent"])
    live = LiveGraph(pipeline)
    nodes = groups(to_svg(pipeline), "node")
    assert set(live.nodes) == nodes.keys() - {f"node-{len(live.nodes)}"}
    assert words(nodes["node-0"]) == "s0 … s2\n▤ 3 steps"
    assert nodes["node-0"].findtext(f"{SVG}title") == "s0 … s2\n3 steps: s0, s1, s2"
    alone = next(ident for ident, names in live.nodes.items() if names == ("ring",))
    assert words(nodes[alone]) == "ring\n✦ agent"
    edges = [edge.findtext(f"{SVG}title") for edge in groups(to_svg(pipeline), "edge").values()]
    assert "ring → ring" in edges
    assert "absent → ring" in edges
    assert "s98 → end" in edges  # of two between the same nodes, the stronger one
    ends = {
        (live.node_of(dependency.name), live.node_of(step.name))
        for step in pipeline.steps
        for dependency in pipeline.dependencies(step)
    }
    assert len(edges) == sum(above != below or above == alone for above, below in ends)

    states = {
        "s0": StepResult("s0", StepStatus.COMPLETED),
        "s1": StepResult("s1", StepStatus.FAILED),
        "s3": StepResult("s3", StepStatus.RUNNING),
        "ring": StepResult("ring", StepStatus.SKIPPED),
    }
    nodes = groups(to_svg(pipeline, states), "node")
    assert "tagent-failed" in nodes["node-0"].get("class", "")
    assert words(nodes["node-0"]).startswith(f"{STATUS_STYLES[StepStatus.FAILED].mark} s0")
    assert nodes["node-0"].findtext(f"{SVG}title") == (
        "s0 … s2\n1 pending, 1 completed, 1 failed\n3 steps: s0, s1, s2"
    )
    assert "tagent-running" in nodes["node-1"].get("class", "")
    assert "tagent-skipped" in nodes[alone].get("class", "")


def test_few_groups_say_more() -> None:
    """Where a large pipeline is a few nodes, there is space for their size and for how far they are."""
    pipeline = Pipeline("p").step("a", "go")
    for number in range(90):
        pipeline.step(f"f{number}", "go", depends_on=["a"])
    assert words(groups(to_svg(pipeline), "node")["node-1"]) == "f0 … f89\n▤ 90 steps"
    states = {f"f{number}": StepResult(f"f{number}", StepStatus.COMPLETED) for number in range(40)}
    assert words(groups(to_svg(pipeline, states), "node")["node-1"]).split("\n")[1] == "40 of 90 ended"


def test_eighty_steps_are_one_small_line_each() -> None:
    pipeline = chain(80)
    svg = to_svg(pipeline, {"s3": StepResult("s3", StepStatus.COMPLETED, seconds=3)})
    nodes = groups(svg, "node")
    assert words(nodes["node-3"]) == "✓ s3"
    assert {text.get("font-size") for node in nodes.values() for text in node.iter(f"{SVG}text")} == {"8.00"}


@pytest.mark.parametrize(("depth", "direction"), [(5, "LR"), (8, "TB")])
def test_a_graph_runs_across_where_it_fits_and_down_where_not(depth: int, direction: str) -> None:
    assert to_dot(chain(depth)).graph_attr["rankdir"] == direction


def test_a_wide_fan_out_runs_across() -> None:
    pipeline = Pipeline("p").step("a", "go")
    for number in range(60):
        pipeline.step(f"b{number}", "{{ a }}")
    assert to_dot(pipeline).graph_attr["rankdir"] == "LR"


HOSTILE = '<script>alert(1)</script>"\\N\\n]]>&amp; javascript:alert(1) onload=x \x07'


def test_hostile_texts_stay_text_and_nothing_is_a_link() -> None:
    class Named:
        model_name = HOSTILE

    pipeline = Pipeline(HOSTILE.strip("\x07"), model=Named())
    pipeline.step("a", HOSTILE, model=HOSTILE).step("b", "go", model=Named())
    svg = to_svg(pipeline, {"a": StepResult("a", StepStatus.FAILED, error=HOSTILE.replace("\x07", ""))})
    root = ET.fromstring(svg)
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags <= {"svg", "g", "title", "path", "polygon", "text", "style", "rect", "line"}
    assert not any(
        name.endswith("href") or name.startswith("on") for element in root.iter() for name in element.attrib
    )
    assert "<script" not in svg


def test_control_characters_of_an_error_do_not_break_the_picture() -> None:
    error = "bell \x07 null \x00 lone \ud800 end"
    svg = to_svg(Pipeline("p").step("a", "go"), {"a": StepResult("a", StepStatus.FAILED, error=error)})
    title = groups(svg, "node")["node-0"].findtext(f"{SVG}title") or ""
    assert title.startswith("a: failed")
    assert title.endswith("end")
    svg.encode("utf-8")


def test_wide_letters_get_wide_boxes() -> None:
    def width(name: str) -> float:
        node = groups(to_svg(Pipeline("p").step(name, "go")), "node")["node-0"]
        text = (node.find(f"{SVG}path").get("d") or "").replace("M", "").replace("C", " ")  # type: ignore[union-attr]
        xs = [float(pair.split(",")[0]) for pair in text.split()]
        return max(xs) - min(xs)

    assert width("分析する文章と感情") > width("abcdefghi") * 1.4


def test_long_names_are_cut_in_the_box_and_whole_in_the_tooltip() -> None:
    name = "n" * 64
    node = groups(to_svg(Pipeline("p").step(name, "go")), "node")["node-0"]
    assert words(node).startswith("n" * 29 + "…\n")
    assert (node.findtext(f"{SVG}title") or "").startswith(name)


def test_themes_differ_and_only_auto_follows_the_page() -> None:
    pipeline = reviews()
    auto, light, dark = (to_svg(pipeline, theme=theme) for theme in ("auto", "light", "dark"))  # type: ignore[arg-type]
    assert "<style>" in auto
    assert "data-jp-theme-light" in auto
    assert "<style>" not in light + dark
    assert "#2a2644" in dark
    assert "#2a2644" not in light
    with pytest.raises(DefinitionError, match="theme 'neon' is not known"):
        to_dot(pipeline, theme="neon")  # type: ignore[arg-type]


def test_it_has_no_background_and_a_name_for_screen_readers() -> None:
    root = ET.fromstring(to_svg(reviews(), {"load": StepResult("load", StepStatus.COMPLETED)}))
    assert root.get("aria-label") == "Graph of pipeline reviews: 3 steps, 1 completed, 2 pending"
    first = next(root.iter(f"{SVG}g"))
    assert next(child.tag for child in first) != f"{SVG}polygon"


def test_save_svg_writes_utf8_and_returns_the_path(tmp_path: Path) -> None:
    path = save_svg(tmp_path / "graph.svg", reviews())
    assert ET.fromstring(path.read_text("utf-8")).tag == f"{SVG}svg"


def test_a_dot_on_the_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "dot"
    fake.write_text('#!/bin/sh\necho \'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"/>\'\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert groups(to_svg(reviews()), "node") == {}
    monkeypatch.setenv("PATH", "")
    assert len(groups(to_svg(reviews()), "node")) == 3


def test_a_failing_graphviz_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "dot"
    fake.write_text("#!/bin/sh\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(TagentError, match=r"'reviews' could not be drawn.*graphviz-pure"):
        to_svg(reviews())


def test_importing_the_graph_does_not_load_graphviz() -> None:
    code = "import sys, tagent_nb.graph; sys.exit('graphviz' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_numbers_are_short() -> None:
    assert [seconds_text(s) for s in (0.04, 9.94, 9.96, 59.4, 200, 7500)] == [
        "0.0 s", "9.9 s", "10 s", "59 s", "3 min 20 s", "2 h 05 min",
    ]  # fmt: skip
    assert [cost_text(c) for c in (None, 0, 0.00001, 0.0123, 1.5)] == [
        "$?",
        "$0",
        "<$0.0001",
        "$0.0123",
        "$1.50",
    ]
    assert [tokens_text(t) for t in (999, 12_345, 4_500_000)] == ["999", "12.3k", "4.5M"]
    assert model_label("openai:gpt") == "openai:gpt"
    assert model_label(3) == "int"


# -- files ----------------------------------------------------------------------------------------


def test_a_picture_is_saved_in_the_format_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PNG and PDF by Graphviz's own program. (A stand-in, so that it need not be installed.)"""
    flow = Pipeline("flow").step("a", "Go.")
    assert save_picture(tmp_path / "g.SVG", flow).read_text(encoding="utf-8").startswith("<svg")
    program = tmp_path / "dot"
    program.write_text('#!/bin/sh\ncat > /dev/null\necho "drawn as $2"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for kind in ("png", "pdf"):
        assert save_picture(tmp_path / f"g.{kind}", flow).read_text() == f"drawn as -T{kind}\n"
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(TagentError, match="'dot' could not draw pipeline 'flow' as PNG"):
        save_picture(tmp_path / "g.png", flow)


def test_a_picture_in_another_format_or_without_its_program_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Pipeline("flow").step("a", "Go.")
    for name in ("g.jpg", "g", "g.svg.txt"):
        with pytest.raises(DefinitionError, match=r"must end in \.svg, \.png, \.pdf"):
            save_picture(tmp_path / name, flow)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TagentError, match="A PDF needs Graphviz's program 'dot'.*or save the graph as .svg"):
        save_picture(tmp_path / "g.pdf", flow)
    assert list(tmp_path.iterdir()) == []
