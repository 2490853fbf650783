"""What is drawn: nodes, edges and their labels, as Graphviz source."""

from __future__ import annotations

import html
import shutil
import sysconfig
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from tagent_nb.display import INPUT, KIND_STYLES, MISSING, STATUS_STYLES, Colors, StatusStyle
from tagent_nb.errors import DefinitionError
from tagent_nb.formatting import cost_text, model_label, seconds_text, tokens_text
from tagent_nb.graph.grouping import MOST_NODES, Group, groups_of
from tagent_nb.pipeline import DependencyType, Pipeline, PipelineStep, StepStatus, inputs_by_step
from tagent_nb.results import MapProgress, StepResult, progress_of

if TYPE_CHECKING:
    import graphviz

Theme = Literal["auto", "light", "dark"]
THEMES: tuple[Theme, ...] = ("auto", "light", "dark")

GROUP_MARK = "▤"
"""Before the size of a group."""
_RANKS = (StepStatus.FAILED, StepStatus.RUNNING, StepStatus.WAITING, StepStatus.CANCELLED)
"""A group is in the first of these states that one of its steps is in."""
COMPACT_FROM = 40
"""Number of steps from which nodes are one small line without details."""
_WIDE = 640.0
"""Width in points that a notebook's output area shows without scrolling."""
INK = {"auto": "#7b838f", "light": "#6b7280", "dark": "#8b949e"}
"""Edges and legend text; the one for ``auto`` has a contrast over 3.8 on white and on #111."""
EDGES = {
    DependencyType.STRONG: ("solid", "needs"),
    DependencyType.WEAK: ("dashed", "weak"),
    DependencyType.OPTIONAL: ("dotted", "optional"),
}


class Node(NamedTuple):
    id: str
    name: str
    classes: str
    style: StatusStyle
    lines: list[str]
    tooltip: str
    rounded: bool
    double: bool
    shape: str = "box"


class Edge(NamedTuple):
    id: str
    source: str
    target: str
    type: DependencyType
    tooltip: str


class Drawing:
    """Nodes and edges with generated ids, before any layout."""

    def __init__(self, pipeline: Pipeline, steps: Mapping[str, StepResult] | None, theme: Theme) -> None:
        if theme not in THEMES:
            raise DefinitionError(f"theme {theme!r} is not known. Write one of {', '.join(THEMES)}.")
        self.pipeline, self.steps, self.theme = pipeline, steps, theme
        self.ids: dict[str, str] = {}
        # Two steps of one name are two nodes, so that they are seen: in groups, names are members.
        self.groups = self._groups()
        self.compact = (len(self.groups) or len(pipeline.steps)) >= COMPACT_FROM
        self.nodes = self._nodes()
        for node in self.nodes:
            self.ids.setdefault(node.name, node.id)
        self.edges = list(self._edges())
        self.size = 8 if self.compact else 10
        self.widths = {node.id: max(line_widths(node.lines, self.size)) + 18 for node in self.nodes}

    def _groups(self) -> list[Group]:
        """What the nodes are, in their order; empty where each step is one."""
        return groups_of(self.pipeline) if len(self.pipeline.steps) > MOST_NODES else []

    def _nodes(self) -> list[Node]:
        if not self.groups:
            return [self._node(f"node-{index}", step) for index, step in enumerate(self.pipeline.steps)]
        nodes = []
        for index, group in enumerate(self.groups):
            ident = f"node-{index}"
            self.ids.update(dict.fromkeys(group.steps, ident))
            if len(group.steps) == 1:
                nodes.append(self._node(ident, self.pipeline.get_step(group.steps[0])))
            else:
                nodes.append(self._group_node(ident, group))
        return nodes

    def _group_node(self, ident: str, group: Group) -> Node:
        count = len(group.steps)
        tooltip = [f"{count} steps: {', '.join(group.steps)}"]
        lines, style, classes = [f"{GROUP_MARK} {count} steps"], KIND_STYLES["python"], "tagent-group"
        if self.steps is not None:
            states = [self.steps.get(name) or StepResult(name) for name in group.steps]
            status = common_status(states)
            style, classes = STATUS_STYLES[status], f"tagent-{status.value}"
            ended = sum(state.status.is_final for state in states)
            lines, tooltip = [f"{ended} of {count} ended"], [states_text(states), *tooltip]
        name = group.title
        first = short(name, 22 if self.compact else 30)
        lines = [
            first if self.steps is None else f"{style.mark} {first}",
            *([] if self.compact else lines),
        ]
        return Node(ident, group.key, classes, style, lines, "\n".join([name, *tooltip]), False, False)

    def _node(self, ident: str, step: PipelineStep) -> Node:
        kind = "python" if step.is_python else "agent"
        state = None if self.steps is None else self.steps.get(step.name, StepResult(step.name))
        style = KIND_STYLES[kind] if state is None else STATUS_STYLES[state.status]
        classes = f"tagent-{kind}" if state is None else f"tagent-{state.status.value}"
        about = about_step(step)
        facts = [] if state is None else facts_of(state)
        mark = "" if state is None else f"{style.mark} "
        lines = [mark + short(step.name, 22 if self.compact else 30)]
        if not self.compact:
            lines += [f"{KIND_STYLES[kind].mark} {short(about, 40)}", *([" · ".join(facts)] if facts else [])]
        status = "" if state is None else f": {', '.join([style.word, *facts])}"
        tooltip = f"{step.name}{status}\n{about}" + (f"\n{state.error}" if state and state.error else "")
        return Node(
            ident, step.name, classes, style, lines, tooltip, not step.is_python, step.runs_over is not None
        )

    def _edges(self) -> Iterator[Edge]:
        """All of them; of groups, one between two nodes at the most, and none within one."""
        if not self.groups:
            yield from self._all_edges()
            return
        edges: dict[tuple[str, str], Edge] = {}
        for edge in self._all_edges():
            present = edges.get((edge.source, edge.target))
            inside = edge.source == edge.target and len(self.groups[int(edge.source[5:])].steps) > 1
            if not inside and (present is None or edge.type is DependencyType.STRONG):
                edges[edge.source, edge.target] = edge
        yield from edges.values()

    def _all_edges(self) -> Iterator[Edge]:
        count = 0
        inputs = inputs_by_step(self.pipeline)
        for step in self.pipeline.steps:
            for name in inputs.get(step.name, ()):
                if name not in self.ids:
                    self._add_input(name)
                ends = self.ids[name], self.ids[step.name]
                yield Edge(f"edge-{count}", *ends, DependencyType.STRONG, f"{name} (input) → {step.name}")
                count += 1
            for dependency in self.pipeline.dependencies(step):
                if dependency.name not in self.ids:
                    self._add_missing(dependency.name)
                kind = "" if dependency.type is DependencyType.STRONG else f" ({dependency.type.value})"
                tooltip = f"{dependency.name} → {step.name}{kind}"
                ends = self.ids[dependency.name], self.ids[step.name]
                yield Edge(f"edge-{count}", *ends, dependency.type, tooltip)
                count += 1

    def _add_input(self, name: str) -> None:
        ident = self.ids[name] = f"node-{len(self.nodes)}"
        lines = [f"{INPUT.mark} {short(name, 22)}", *([] if self.compact else [INPUT.word])]
        tooltip = f"{name}: an input, taken when a run begins"
        self.nodes.append(Node(ident, name, "tagent-input", INPUT, lines, tooltip, False, False, "note"))

    def _add_missing(self, name: str) -> None:
        ident = self.ids[name] = f"node-{len(self.nodes)}"
        lines = [f"{MISSING.mark} {short(name, 22)}", *([] if self.compact else [MISSING.word])]
        tooltip = f"{name}: no step of this name is defined yet"
        self.nodes.append(Node(ident, name, "tagent-missing", MISSING, lines, tooltip, False, False))

    def direction(self) -> str:
        """Left to right where that fits the page or is narrower; else top to bottom, as pages scroll."""
        levels: dict[int, list[float]] = {}
        for ident, level in self._levels().items():
            levels.setdefault(level, []).append(self.widths[ident])
        gap = 14 if self.compact else 36
        across = sum(max(widths) + gap for widths in levels.values())
        down = max((sum(widths) + gap * len(widths) for widths in levels.values()), default=0.0)
        return "LR" if across <= max(_WIDE, down) else "TB"

    def _levels(self) -> dict[str, int]:
        """How many steps stand before each node."""
        parents: dict[str, list[str]] = {node.id: [] for node in self.nodes}
        for edge in self.edges:
            parents[edge.target].append(edge.source)
        level: dict[str, int] = {}
        # Steps mostly stand after those they read, so two sweeps are near enough; a cycle cannot hang it.
        for _ in range(2):
            for ident, above in parents.items():
                level[ident] = 1 + max(
                    (level.get(parent, 0) for parent in above if parent != ident), default=0
                )
        return level

    def colors(self, style: StatusStyle) -> Colors:
        return style.dark if self.theme == "dark" else style.light


def common_status(states: Sequence[StepResult]) -> StepStatus:
    """The state of a group of steps."""
    statuses = {state.status for state in states}
    for status in _RANKS:
        if status in statuses:
            return status
    if len(statuses) == 1:
        return statuses.pop()
    if all(status.is_final for status in statuses):
        return StepStatus.COMPLETED
    return StepStatus.RUNNING if any(status.is_final for status in statuses) else StepStatus.PENDING


def states_text(states: Sequence[StepResult]) -> str:
    """How many steps of a group are in which state."""
    counts = Counter(state.status for state in states)
    return ", ".join(
        f"{counts[status]} {style.word}" for status, style in STATUS_STYLES.items() if status in counts
    )


def about_step(step: PipelineStep) -> str:
    """Kind, own model, schema and the like, in a few words."""
    words = ["python" if step.is_python else "agent"]
    if step.model is not None and not step.is_python:
        words.append(model_label(step.model))
    if step.output_schema is not None:
        words.append(f"→ {step.output_schema.__name__}")
    if step.map_over is not None:
        times = f"{step.samples} x " if step.samples > 1 else ""
        words.append(f"{times}each {'in' if step.flatten else 'of'} {step.map_over}")
    elif step.samples > 1:
        words.append(f"{step.samples} samples")
    if step.reduce_over is not None:
        words.append(f"all of {step.reduce_over}" + (f" by {step.group_by}" if step.group_by else ""))
    if step.batch:
        words.append("in batches")
    if step.when is not None:
        words.append("conditional")
    return " · ".join(words)


def facts_of(state: StepResult, progress: MapProgress | None = None) -> list[str]:
    """Seconds, tokens, USD and items of a step that has begun.

    Args:
        state: Of the step.
        progress: How far a mapped step is, where that is counted already.
    """
    facts = []
    if state.items_total is not None:
        progress = progress or progress_of(state)
        skipped = progress.ended[-1]
        facts.append(f"{progress.done}/{progress.total} items" + (f", {skipped} skipped" if skipped else ""))
    if state.status is StepStatus.CACHED:
        facts.append("from cache")
    elif state.seconds:
        facts.append(seconds_text(state.seconds))
    if state.usage.known_tokens != 0:
        facts += [f"{tokens_text(state.usage.known_tokens)} tokens", cost_text(state.cost)]
    return facts


def source(drawing: Drawing) -> graphviz.Digraph:
    import graphviz

    _find_dot()
    ink = INK[drawing.theme]
    dot = graphviz.Digraph(
        graph_attr={
            "rankdir": drawing.direction(),
            "bgcolor": "transparent",
            "nodesep": "0.12" if drawing.compact else "0.3",
            "ranksep": "0.3" if drawing.compact else "0.4",
            "pad": "0.06",
        },
        node_attr={
            "shape": "box",
            "fontname": "Helvetica",
            "fontsize": str(drawing.size),
            "margin": "0",
            "height": "0",
        },
        edge_attr={"color": ink, "arrowsize": "0.5" if drawing.compact else "0.65", "penwidth": "1"},
    )
    for node in drawing.nodes:
        colors = drawing.colors(node.style)
        shape_styles = ["filled", *(["rounded"] if node.rounded else []), node.style.outline]
        dot.node(
            node.id,
            _label(node, drawing.size),
            _attributes={"id": node.id, "class": node.classes},
            style=",".join(shape_styles),
            fillcolor=colors.fill,
            color=colors.line,
            fontcolor=colors.text,
            penwidth=str(node.style.width),
            peripheries="2" if node.double else "1",
            shape=node.shape,
        )
    for edge in drawing.edges:
        dot.edge(edge.source, edge.target, id=edge.id, style=EDGES[edge.type][0])
    return dot


def line_widths(lines: list[str], size: int) -> list[int]:
    """Width in points of each line of a label; the first is bold, the others are two points smaller."""
    sizes = [size * 1.05, *(size - 2.0 for _ in lines[1:])]
    return [min(int(text_width(line) * points), 600) for line, points in zip(lines, sizes, strict=True)]


def _label(node: Node, size: int) -> str:
    """An HTML-like label. Cells are as wide as wide fonts need, since every browser has its own."""
    rows: list[str] = []
    for line, width in zip(node.lines, line_widths(node.lines, size), strict=True):
        text = html.escape(line)
        inner = f'<FONT POINT-SIZE="{size - 2}">{text}</FONT>' if rows else f"<B>{text}</B>"
        rows.append(f'<TR><TD ALIGN="LEFT" WIDTH="{width}">{inner}</TD></TR>')
    edge = 3 if len(node.lines) == 1 else 7
    table = f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="1">{"".join(rows)}</TABLE>'
    return (
        f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="{edge}">'
        f"<TR><TD>{table}</TD></TR></TABLE>>"
    )


def text_width(text: str) -> float:
    """Width in units of the font's size, with space for a wider font than Graphviz reckons with."""
    return sum(1.05 if unicodedata.east_asian_width(letter) in "WF" else 0.6 for letter in text)


def short(text: str, limit: int) -> str:
    """One printable line of at most ``limit`` characters."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def _find_dot() -> None:
    """Without ``dot`` on PATH, let graphviz use the command that graphviz-pure bundles."""
    from graphviz.backend import dot_command

    if shutil.which("dot") is not None:
        dot_command.DOT_BINARY = Path("dot")
        return
    beside = Path(sysconfig.get_path("scripts")) / "graphviz-pure"
    program = shutil.which(str(beside)) or shutil.which("graphviz-pure")
    dot_command.DOT_BINARY = Path(program or "dot")
