"""Results, values and events as DataFrames, and DataFrames as stored data.

The only room that knows pandas and Arrow; both are imported when a function needs them.
"""

from tagent_nb.pipeline.frames.labels import levels_of
from tagent_nb.pipeline.frames.lists import plan_frame, runs_frame
from tagent_nb.pipeline.frames.rows import is_frame, rows_of
from tagent_nb.pipeline.frames.tables import (
    events_frame,
    output_frame,
    steps_frame,
    table_text,
    usage_frame,
    write_frame,
)
from tagent_nb.pipeline.report import result_html

__all__ = [
    "events_frame",
    "is_frame",
    "levels_of",
    "output_frame",
    "plan_frame",
    "result_html",
    "rows_of",
    "runs_frame",
    "steps_frame",
    "table_text",
    "usage_frame",
    "write_frame",
]
