"""Hostile text in a real browser: in widgets, in outputs, in the reopened notebook and in exported HTML.

Nothing of it may run, and nothing may be fetched. Here outputs are trusted, as those of one's own runs are:
JupyterLab sanitises nothing.
"""

from __future__ import annotations

import pytest
from jupyterlab_page import Lab, LabPage, as_html
from playwright.sync_api import Page, Route, expect

pytestmark = [pytest.mark.requires("chromium"), pytest.mark.models]

AWAY = "http://away.invalid"
"""Whatever asks for this was made to by hostile text."""
PROLOGUE = f'''
AWAY = "{AWAY}"
HOSTILE = [
    "<script>window.__pwned = 1; fetch('" + AWAY + "/script')</script>",
    "</script><script>window.__pwned = 2</script>",
    "<img src='" + AWAY + "/image' onerror='window.__pwned = 3'>",
    "<svg onload='window.__pwned = 4'><image href='" + AWAY + "/svg'/></svg>",
    "</pre></td></table></details><iframe srcdoc='<script>parent.__pwned = 5</script>'></iframe>",
    "<a href='javascript:window.__pwned = 6'>click</a><style>@import url(" + AWAY + "/style)</style>",
    "<b><i><div style='position:fixed;inset:0;background:url(" + AWAY + "/css)'>",
    "\\"' onmouseover='window.__pwned = 7' x='",
    "[click](javascript:window.__pwned=8) $\\\\href{{javascript:window.__pwned=9}}{{x}}$",
    "\\x07 \\u202e right to left \\uff21",
]
ALL = " ".join(HOSTILE)
BROKEN = ALL + "half \\ud800 of a pair \\x00"
'''
CELLS = [
    f"%load_ext tagent_nb\n{PROLOGUE}",
    "import shlex\n"
    "for text in [*HOSTILE, BROKEN]:\n"
    "    try:\n"
    "        text = shlex.quote(text)\n"
    "        get_ipython().run_line_magic('tagent_pipeline', f'{text} --description {text}')\n"
    "    except Exception as error:\n"
    "        print(error)\n"
    "    for name in (text, 'a/b', '../../x', 'A*', '-rf', '__proto__'):\n"
    "        try:\n"
    "            get_ipython().run_cell_magic('tagent_step', name, 'Say hello')\n"
    "        except Exception as error:\n"
    "            print(error)\n"
    "%tagent_pipeline",
    "text = shlex.quote(ALL)\nget_ipython().run_line_magic('tagent_pipeline', shlex.quote(HOSTILE[2])\n"
    "    + f' --model test --no-cache --description {text} --constraint {text}')",
    "%%tagent_step texts --python\nprint(ALL)\nHOSTILE",
    "%%tagent_step odd --python\nprint(BROKEN)\n{'a': ALL.encode(), 'b': {1, ALL}, 'c': {ALL: BROKEN}}",
    "get_ipython().run_cell_magic('tagent_step', 'ask --constraint ' + shlex.quote(ALL),\n"
    "    '{% raw %}' + ALL + '{% endraw %} {{ texts }}')",
    "%%tagent_step each --python --map-over texts\nprint(texts)\ntexts",
    "%%tagent_step frame --python\nimport pandas as pd\npd.DataFrame({'text': HOSTILE, ALL: 1})",
    "%%tagent_step fails --python --max-retries 0\nprint(ALL)\nraise ValueError(BROKEN)",
    '%%tagent_step never --python --when "texts == 1"\nfails',
    "%tagent_panel",
    "%tagent_run",
    "%tagent_graph",
    "%tagent_status",
    "%tagent_results",
    "%tagent_results frame",
    "result",
    "%tagent_plan",
    "for step in ('texts', 'fails', 'each'):\n    %tagent_explain {step}",
    "%tagent_history",
    "import tagent_nb\ntagent_nb.current().pipeline",
    "print('the end')",
]
PANEL, RUN = 10, 11
END = len(CELLS) - 1


class Guard:
    """Records what a page asks of other places than its server."""

    def __init__(self, page: Page) -> None:
        self.asked: list[str] = []
        page.route("**/away.invalid/**", self._refuse)
        page.on("dialog", lambda dialog: (self.asked.append("dialog"), dialog.dismiss()))

    def _refuse(self, route: Route) -> None:
        self.asked.append(route.request.url)
        route.abort()


def assert_unharmed(page: Page, guard: Guard) -> None:
    """No script ran, nothing was fetched, and no element came out of a text.

    Except links: JupyterLab itself makes them of addresses in printed text. What is read out to people
    (``aria-label``) is text too, and does nothing.
    """
    # Whatever has been queued by the page has had its turn.
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)))")
    assert page.evaluate("() => window.__pwned ?? null") is None
    assert guard.asked == []
    requests = page.evaluate(
        """() => {
            const loads = /^(src|srcset|srcdoc|(xlink:)?href|data|poster|background|(form)?action|style)$/i;
            const acts = (one, {name, value}) => /^on/i.test(name) || (loads.test(name)
                && (/javascript:/i.test(value) || (/away\\.invalid/i.test(value) && one.tagName != 'A')));
            return [...document.querySelectorAll('.jp-OutputArea *, .output *')]
                .filter(one => ['SCRIPT', 'IFRAME', 'OBJECT', 'EMBED'].includes(one.tagName)
                    || [...one.attributes].some(attribute => acts(one, attribute)))
                .map(one => one.outerHTML.slice(0, 200));
        }"""
    )
    assert [request for request in requests if "data:image/svg" not in request] == []


def test_hostile_text_runs_no_script_and_fetches_nothing(lab: Lab, lab_page: LabPage) -> None:
    guard = Guard(lab_page.page)
    path = lab.write("hostile", CELLS)
    lab_page.page.set_viewport_size({"width": 1000, "height": 3000})
    book = lab_page.open(path)
    book.run_all(wait=False)
    expect(book.output(END)).to_contain_text("the end", timeout=120_000)
    panel = book.output(RUN)
    expect(panel).to_contain_text("onmouseover")
    for summary in panel.locator("summary:visible").all():
        summary.click()
    book.picture("hostile-run", panel)
    live = book.output(PANEL)
    for node in [*panel.locator("g.node[data-step]").all(), *live.locator("g.node[data-step]").all()]:
        node.click()  # opens its details
        book.page.mouse.move(5, 5)
        assert_unharmed(book.page, guard)
    expect(live).to_contain_text("onmouseover")
    book.picture("hostile-panel", live)
    for index in range(len(CELLS)):
        book.cell(index).scroll_into_view_if_needed()
    assert_unharmed(book.page, guard)
    book.picture("hostile-page")

    book.command("docmanager:save")
    book.shut_down()
    book.open(path)
    expect(book.output(RUN)).to_contain_text("onmouseover", timeout=60_000)
    for index in range(len(CELLS)):
        book.cell(index).scroll_into_view_if_needed()
    assert_unharmed(book.page, guard)
    book.picture("hostile-reopened")

    file = as_html(lab.root / path)
    book.page.goto(file.as_uri(), wait_until="domcontentloaded")
    assert_unharmed(book.page, guard)
    book.picture("hostile-nbconvert")
