"""How soon the page answers clicks while 500 steps run: ``python tests/browser/measure_clicks.py``.

The panel with its live graph is open in a real JupyterLab. Clicks are those of a mouse; what is measured is
the browser's own "event timing": from the press until the page has been painted again. Beside it: how long
the run took with the panel and without it (both in this kernel), and how long the details of a step, which
the kernel writes, take to appear. Nothing of this is asserted in tests.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from jupyterlab_page import LabPage, chromium, serve
from playwright.sync_api import Page, expect

DEFINE = """
import asyncio, time, tagent_nb
%load_ext tagent_nb

async def work():
    await asyncio.sleep({pause})
    return 1

pipeline = tagent_nb.Pipeline("many", default_mode=tagent_nb.ExecutionMode.CONCURRENT)
before = []
for layer in range({steps} // 20):
    names = [f"step_{{layer}}_{{number}}" for number in range(20)]
    for number, name in enumerate(names):
        reads = [before[(number + shift) % 20] for shift in range(3)] if before else []
        pipeline.task(name=name, depends_on=reads, cache=False)(work)
    before = names
tagent_nb.current().adopt(pipeline)
"""
ALONE = (
    "began = time.perf_counter()\n"
    "tagent_nb.PipelineExecutor(pipeline, storage='memory:', max_concurrency=8).run()\n"
    "print('alone', time.perf_counter() - began)"
)
WATCH = """() => {
    window.__clicks = [];
    new PerformanceObserver(list => {
        for (const one of list.getEntries())
            if (['pointerdown', 'pointerup', 'click'].includes(one.name)) window.__clicks.push(one.duration);
    }).observe({type: 'event', durationThreshold: 16, buffered: true});
}"""


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--pause", type=float, default=0.1, help="seconds of each step")
    parser.add_argument("--picture", type=Path, help="also store a screenshot in mid-run")
    arguments = parser.parse_args()
    cells = [DEFINE.format(steps=arguments.steps, pause=arguments.pause), ALONE, "%tagent_panel"]
    with tempfile.TemporaryDirectory() as home, serve(Path(home)) as lab, chromium() as browser:
        page = browser.new_page(viewport={"width": 1000, "height": 1400})
        book = LabPage(lab, page).open(lab.write("clicks", cells))
        book.run_all()
        alone = float(book.output(1).inner_text().split()[-1])
        clicks, details, seconds = _clicked(book, page, arguments.picture)
        book.shut_down()
    slowest, middle = max(clicks, default=0.0), statistics.median(clicks or [0.0])
    print(
        f"{arguments.steps} steps: {alone:.2f} s alone, {seconds:.2f} s in the panel ({seconds / alone:.2f}x)"
    )
    print(
        f"clicks until painted: {len(clicks)} events of 16 ms or more, median {middle:.0f} ms, "
        f"slowest {slowest:.0f} ms (to reach: 200 ms)"
    )
    print(f"details until shown: median {statistics.median(details):.0f} ms, slowest {max(details):.0f} ms")


def _clicked(book: LabPage, page: Page, picture: Path | None) -> tuple[list[float], list[float], float]:
    """Clicks steps while the run goes on; milliseconds of clicks and of details, seconds of the run."""
    panel = book.output(2)
    rows = panel.locator("button.tagent-step:visible")
    expect(rows.first).to_be_visible(timeout=60_000)
    page.evaluate(WATCH)
    details: list[float] = []
    panel.locator("button:enabled").filter(has_text="Run").click()
    # Cheap questions only: to read the text of 500 rows would itself keep the page busy.
    panel.locator('tr[data-state="completed"]').first.wait_for(state="attached", timeout=60_000)
    stop = panel.locator("button:enabled").filter(has_text="Stop")
    for turn in range(1_000):
        if stop.count() == 0:
            break
        button = rows.nth(turn * 7 % 12)
        name = button.inner_text()
        began = time.perf_counter()
        button.click()
        panel.locator("b").filter(has_text=name).first.wait_for(state="visible", timeout=10_000)
        details.append(1000 * (time.perf_counter() - began))
        if picture is not None and turn == 3:
            page.screenshot(path=picture)
    expect(panel).to_contain_text("completed", timeout=60_000)
    words = panel.inner_text()[:300]
    clicks: list[float] = page.evaluate("() => window.__clicks")
    return clicks, details, _seconds(words)


def _seconds(words: str) -> float:
    """The seconds that the head of the panel says: ``many completed 500 of 500 steps · 7.1 s``."""
    part = next(part for part in words.split("·") if part.strip().split("\n")[0].endswith(" s"))
    return float(part.strip().split("\n")[0].split()[-2])


if __name__ == "__main__":
    main()
