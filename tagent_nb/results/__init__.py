"""What a run has given: records of steps, DataFrames, JSON and HTML."""

from tagent_nb.lazy_face import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "frames": (
            "events_frame",
            "output_frame",
            "steps_frame",
            "table_text",
            "usage_frame",
            "write_frame",
        ),
        "html": ("result_html",),
        "json": (
            "result_from_dict",
            "result_from_json",
            "result_to_dict",
            "result_to_json",
        ),
        "lists": (
            "plan_frame",
            "runs_frame",
        ),
        "outcomes": (
            "ending",
            "failed_items",
            "failure",
            "skipped_items",
        ),
        "result": (
            "ItemResult",
            "OutputMap",
            "PipelineResult",
            "StepResult",
        ),
        "rows": (
            "frame_of",
            "is_frame",
            "rows_of",
        ),
    },
)
