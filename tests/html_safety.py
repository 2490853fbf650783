"""Hostile text, and what HTML must be like that shows it."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'</div>&amp;\x07\ud800\u202e"


class Reader(HTMLParser):
    """What a browser would see: tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.names: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


SAFE_TAGS = {
    *("div", "span", "b", "table", "thead", "tbody", "tr", "th", "td"),
    *("details", "summary", "pre", "br"),
}
SAFE_NAMES = {
    "class",
    "style",
    "role",
    "aria-hidden",
    "aria-label",
    "aria-valuenow",
    "aria-valuemin",
    "aria-valuemax",
}


def assert_safe(html: str) -> None:
    """No tag or attribute that can act or fetch, and text that can be sent."""
    seen = Reader(html)
    assert set(seen.tags) <= SAFE_TAGS
    assert seen.names <= SAFE_NAMES
    assert "url(" not in html
    html.encode("utf-8")
