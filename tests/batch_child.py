"""The process that tests of batches kill: ``python -m tests.batch_child STORAGE MODEL ROWS``."""

from __future__ import annotations

import sys

from tagent_nb import Pipeline, PipelineExecutor, open_storage


def flow(model: str, rows: int, *, batch: bool | str = True) -> Pipeline:
    """A pipeline of one answer a row."""
    pipeline = Pipeline("p", model=model, inputs={"rows": [f"row {number}" for number in range(rows)]})
    pipeline.step("judge", "Judge {{ item }}", map_over="rows", batch=batch)
    return pipeline


if __name__ == "__main__":
    storage, model, rows = sys.argv[1:]
    PipelineExecutor(flow(model, int(rows)), storage=open_storage(storage), batch_poll=(0.01, 0.02)).run()
