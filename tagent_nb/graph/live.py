"""A picture whose states change while it is looked at: laid out once, then updated node by node.

Nodes keep space for what they will say later, so that nothing moves. Colours are those of a style
sheet, since a state is a class of its node and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tagent_nb.display import INPUT, KIND_STYLES, STATUS_STYLES, StatusStyle
from tagent_nb.formatting import seconds_text
from tagent_nb.graph.drawing import (
    GROUP_MARK,
    Drawing,
    Node,
    about_step,
    common_status,
    facts_of,
    short,
    states_text,
)
from tagent_nb.graph.grouping import Group, groups_of
from tagent_nb.graph.svg import laid_out
from tagent_nb.pipeline import Pipeline, PipelineStep, StepStatus
from tagent_nb.results import MapProgress, StepResult

__all__ = ["LiveGraph", "live_style"]

_WIDEST = {"python": "00 min 00 s", "agent": "00.0 s · 00.0k tokens · $0.0000"}
"""As wide as what a step of this kind says of itself when it has run."""
_NAME, _COMPACT_NAME = 30, 22


class LiveGraph:
    """The layout of a pipeline, and what each node says at one moment.

    Args:
        pipeline: What is drawn, as it is now; later changes need a new layout.
        opened: Keys of groups that are shown step by step.

    Attributes:
        svg: The SVG document: no style sheet, no links, no script; ids are ``node-0``, ``edge-0``...
        nodes: Node id to the names of its steps: one, or those of a group.
        groups: Node id to the key of its group.

    Raises:
        TagentError: The graph cannot be drawn.
    """

    def __init__(self, pipeline: Pipeline, opened: Collection[str] = ()) -> None:
        self._drawing = drawing = _LiveDrawing(pipeline, opened)
        self.svg = laid_out(drawing)
        self.nodes = {f"node-{index}": group.steps for index, group in enumerate(drawing.groups)}
        self.groups = {
            f"node-{index}": group.key for index, group in enumerate(drawing.groups) if len(group.steps) > 1
        }
        self._ids = {name: node for node, names in self.nodes.items() for name in names}
        self._abouts = {step.name: about_step(step) for step in pipeline.steps}

    def node_of(self, step: str) -> str | None:
        """The id of the node that shows a step."""
        return self._ids.get(step)

    def label(
        self,
        node: str,
        steps: Mapping[str, StepResult],
        now: float,
        items: Mapping[str, MapProgress] | None = None,
    ) -> list[str]:
        """What a node says: ``[state, first line, last line, tooltip]``, as text.

        Args:
            node: Its id.
            steps: States by name; steps without one are pending.
            now: Seconds since the epoch, for the clocks of steps that run.
            items: How far mapped steps are, where that is counted already.
        """
        states = [steps.get(name) or StepResult(name) for name in self.nodes[node]]
        if node in self.groups:
            return self._group_label(Group(self.groups[node], self.nodes[node]).title, states)
        (state,) = states
        style = STATUS_STYLES[state.status]
        facts = _facts(state, now, (items or {}).get(state.name))
        tooltip = f"{state.name}: {', '.join([style.word, *facts])}\n{self._abouts[state.name]}"
        if state.error:
            tooltip += f"\n{short(f'{state.error_type}: {state.error}', 300)}"
        return [state.status.value, self._first(style, state.name), " · ".join(facts), tooltip]

    def _group_label(self, name: str, states: list[StepResult]) -> list[str]:
        common = common_status(states)
        ended = sum(state.status.is_final for state in states)
        tooltip = f"{name}: {states_text(states)}\n{len(states)} steps; open the group to see them"
        return [
            common.value,
            self._first(STATUS_STYLES[common], name),
            f"{ended} of {len(states)} ended",
            tooltip,
        ]

    def _first(self, style: StatusStyle, name: str) -> str:
        return f"{style.mark} {short(name, _COMPACT_NAME if self._drawing.compact else _NAME)}"


class _LiveDrawing(Drawing):
    """Groups as nodes, with space for the longest that they may say."""

    def __init__(self, pipeline: Pipeline, opened: Collection[str]) -> None:
        self._opened = opened
        super().__init__(pipeline, None, "auto")

    def _groups(self) -> list[Group]:
        return groups_of(self.pipeline, opened=self._opened)

    def _node(self, ident: str, step: PipelineStep) -> Node:
        kind = "python" if step.is_python else "agent"
        lines = [f"▸ {short(step.name, _COMPACT_NAME if self.compact else _NAME)}"]
        if not self.compact:
            lines += [f"{KIND_STYLES[kind].mark} {short(about_step(step), 40)}", _widest_facts(step, kind)]
        return self._node_of(
            ident, step.name, lines, rounded=not step.is_python, double=step.runs_over is not None
        )

    def _group_node(self, ident: str, group: Group) -> Node:
        lines = [f"▸ {short(group.title, _COMPACT_NAME if self.compact else _NAME)}"]
        if not self.compact:
            count = len(group.steps)
            lines += [f"{GROUP_MARK} {count} steps", f"{count} of {count} ended"]
        return self._node_of(ident, group.key, lines, rounded=False, double=False)

    def _node_of(self, ident: str, name: str, lines: list[str], *, rounded: bool, double: bool) -> Node:
        style = STATUS_STYLES[StepStatus.PENDING]
        return Node(ident, name, "tagent-pending", style, lines, name, rounded, double)


def _widest_facts(step: PipelineStep, kind: str) -> str:
    return ("0000/0000 items · " if step.has_items else "") + _WIDEST[kind]


def _facts(state: StepResult, now: float, progress: MapProgress | None) -> list[str]:
    facts = facts_of(state, progress)
    if state.status is StepStatus.RUNNING and state.started_at is not None:
        clock = seconds_text(max(0.0, now - state.started_at))
        others = [fact for fact in facts if fact != seconds_text(state.seconds)]
        return [
            *(fact for fact in others if fact.endswith("items")),
            clock,
            *(fact for fact in others if not fact.endswith("items")),
        ]
    return facts


def live_style(scope: str) -> str:
    """A style sheet for the states of a live graph below ``scope``, in light and dark."""
    rules = []
    styles = {status.value: style for status, style in STATUS_STYLES.items()}
    for name, style in {**styles, "input": INPUT}.items():
        node = f".tagent-{name}"
        dash = {"dashed": "5,2", "dotted": "1,3"}.get(style.outline, "none")
        for page, colors in (("", style.light), ('body[data-jp-theme-light="false"] ', style.dark)):
            start = f"{page}{scope} {node}"
            rules += [
                f"{start}>:not(text){{stroke:{colors.line};stroke-width:{style.width};stroke-dasharray:{dash}}}",
                f'{start}>:not(text):not([fill="none"]){{fill:{colors.fill}}}',
                f"{start}>text{{fill:{colors.text}}}",
            ]
    return "\n".join(rules)
