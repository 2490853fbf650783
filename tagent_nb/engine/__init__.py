"""Runs pipelines: decides, records, retries, resumes."""

from tagent_nb.lazy_face import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "approval.requests": "checked_approver",
        "ask": "AgentResult STEP answered question run_agent",
        "background": "submit",
        "dry_run.history": "Durations EarlierRuns",
        "dry_run.plan": "Plan StepPlan range_text",
        "executor": "PipelineExecutor run_pipeline",
        "handle": "CANCEL_GRACE RunHandle",
        "inputs": "expected_names looking_in taken_names",
        "memory.entries": "StepMemoryEntry inputs_of",
        "memory.load": "PipelineMemoryManager read_memory schemas_of",
        "memory.memory": "PipelineMemory",
        "memory.state_machine": "PipelineStateMachine",
        "preflight": "part_of refuse_problems",
        "recordings": "read_recording",
        "unit.prepared": "source_of",
        "unit.map": "source_rows",
    },
)
