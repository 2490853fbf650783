"""What is to be done, as plain data: steps, their order, conditions, budgets."""

from tagent_nb.lazy_face import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "agents": "AGENT_KINDS AgentKind OPTIONAL_KINDS chosen_kind",
        "approval": "ApprovalRequest Approved Approver Decision Edited Rejected Unit",
        "budget": "Budget Limit Price Share amount_text checked_limits checked_prices shares spent_amounts",
        "conditions": (
            "And Condition Contains DataExists IsEmpty IsEqualTo IsGreaterThan IsLessThan Not Or holds"
        ),
        "enums": "Dependency DependencyType ExecutionMode StepStatus",
        "environment": "Defaults defaults",
        "free_variables": "QUERIES evaluated_names free_names quoted_attributes quoted_names",
        "graph": (
            "checked_inputs dependencies_of find_cycle input_text input_value inputs_by_step is_variable "
            "shape_text"
        ),
        "hints": "listed map_warnings missing_names outside_names step_hints",
        "json": "pipeline_to_dict",
        "outside": "file_arguments",
        "pipeline": "Pipeline",
        "python_body": "BYTECODE CELL_FUNCTION PythonBody source_of",
        "reduction": "answers_step measured_goal rows_step",
        "retry_on": "error_classes",
        "scheduler": "NO_CHANGE Change PipelineScheduler",
        "state_machine": "Phase Task TaskBasedStateMachine TaskStatus not_stored",
        "step": "PipelineStep to_schema",
        "step_checks": ("ENDED_FOR_SHARE OUTPUT_MODES THEN_LIVE checked_timeout is_number takes_context "),
        "tool_schema": "ToolSchema describe schema_of",
    },
)
