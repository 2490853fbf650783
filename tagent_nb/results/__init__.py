"""What a run has given: records of steps, DataFrames, JSON and HTML."""

from tagent_nb.lazy_face import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "files": "write_frame",
        "frames": "NESTED plan_frame runs_frame table_text",
        "history": "RunHistory",
        "html": (
            "RunView about_words done_words error_text head_html phase_of result_html result_view run_html "
            "run_text"
        ),
        "items": "ONE_ROW Row StepRows agreed rows_to_map sample_key",
        "pace": "Pace",
        "progress": "BAR MapProgress map_progress progress_of",
        "records": "ItemResult LazyMap OutputMap StepResult ending failed_items failure waiting_words",
        "result": "PipelineResult",
        "rows": "frame_of grouped_frame is_frame is_missing label_keys plain rows_in rows_of",
    },
)
