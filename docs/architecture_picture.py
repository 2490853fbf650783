"""Draws the packages and what they import, from the code: ``python docs/architecture_picture.py``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tagent_nb import Pipeline  # noqa: E402
from tagent_nb.graph import to_svg  # noqa: E402
from tests.house import package_imports  # noqa: E402
from tests.stubs import PACKAGE  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "architecture.svg"


def packages() -> Pipeline:
    """Each package as a step that depends on those it imports, without imports that follow from others."""
    graph = {
        name: {target for target in targets if (PACKAGE / target).is_dir()}
        for name, targets in package_imports().items()
        if (PACKAGE / name).is_dir() and name != "testing"
    }

    def below(name: str) -> set[str]:
        return graph[name].union(*(below(target) for target in graph[name]))

    picture = Pipeline("architecture")
    drawn: set[str] = set()
    while len(drawn) < len(graph):
        ready = [name for name in sorted(graph) if name not in drawn and graph[name] <= drawn]
        if not ready:
            raise RuntimeError(f"Packages import each other in a circle: {sorted(graph.keys() - drawn)}")
        for name in ready:
            direct = {other for other in graph[name] if all(other not in below(via) for via in graph[name])}
            picture.step(name, name, depends_on=sorted(direct))
            drawn.add(name)
    return picture


def arrows(svg: str) -> set[str]:
    """What is imported and what imports it, as the titles of a picture's arrows: ``"serde → storage"``."""
    return {title for title in re.findall(r"<title>([^<]*)</title>", svg) if "→" in title}


if __name__ == "__main__":
    # A package is a box with its name, without the kind that a step has below it.
    PICTURE.write_text(re.sub(r"<text[^>]*>[^<]*\bagent</text>", "", to_svg(packages())), encoding="utf-8")
