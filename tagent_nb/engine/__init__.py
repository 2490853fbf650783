"""Runs pipelines: decides, records, retries, resumes."""

from tagent_nb.lazy_face import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "approval.gate": "checked_approver",
        "ask": "AgentResult STEP answered question run_agent",
        "background": "submit",
        "dry_run.history": "Durations EarlierRuns",
        "dry_run.plan": "Plan StepPlan calls_text quote_text span_text",
        "executor": "PipelineExecutor run_pipeline",
        "handle": "CANCEL_GRACE RunHandle",
        "memory.entries": "StepMemoryEntry inputs_of",
        "memory.load": "PipelineMemoryManager read_memory schemas_of",
        "memory.memory": "PipelineMemory",
        "memory.state_machine": "PipelineStateMachine",
        "preflight": "expected_names looking_in part_of refuse_problems taken_names",
        "recordings": "read_recording",
        "unit.prepared": "source_of",
        "unit.map": "source_rows",
    },
)
