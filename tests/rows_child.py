"""A pipeline over 2,000 real rows: lines of this repository's documentation.

``python rows_child.py FOLDER`` runs it, recorded in that folder, until a test kills it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from tagent_nb import Pipeline, PipelineExecutor, Price, SQLiteStorageBackend

DOCS = Path(__file__).parents[1] / "docs"
ROWS = 2000
AT_ONCE = 50
MODEL = "openai-chat:rows"


class Subject(BaseModel):
    """What a line is about."""

    subject: Literal["cost", "cache", "storage", "other"]


def lines() -> list[dict[str, Any]]:
    """Lines of prose: where each stands, and its text. No two have the same text."""
    texts: dict[str, str] = {}
    for path in sorted(DOCS.rglob("*.md")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if len(line) > 40:
                texts.setdefault(line, f"{path.relative_to(DOCS)}:{number}")
    return [{"place": place, "text": text} for text, place in texts.items()][:ROWS]


def executor(folder: Path, rows: list[dict[str, Any]], **options: Any) -> PipelineExecutor:
    """What asks the model once for each row, and never twice."""
    pipeline = Pipeline("lines", model=MODEL, inputs={"rows": rows})
    pipeline.step(
        "classify",
        "What is this line about? [{{ rows.place }}]\n{{ rows.text }}",
        map_over="rows",
        output_schema=Subject,
        output_mode="prompted",
        output_retries=0,
        max_retries=0,
        min_success=0.9,
    )

    @pipeline.task
    def answered(classify: list[Subject | None]) -> int:
        return sum(answer is not None for answer in classify)

    storage = SQLiteStorageBackend(folder / "runs.db", durability="fast")
    prices = {MODEL: Price(0.5, 1.5)}
    return PipelineExecutor(pipeline, storage=storage, max_concurrency=AT_ONCE, prices=prices, **options)


if __name__ == "__main__":
    executor(Path(sys.argv[1]), lines()).run()
