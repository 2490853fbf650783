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
        "external_names": "listed missing_names outside_names",
        "foreign_words": "ANSWER EXECUTOR RESULT foreign_attribute foreign_name option_advice own_keywords",
        "free_variables": "QUERIES evaluated_names free_names quoted_attributes quoted_names",
        "graph": "dependencies_of find_cycle input_text input_value inputs_by_step",
        "hints": "map_warnings step_hints",
        "json": "pipeline_to_dict",
        "pipeline": "Pipeline",
        "python_body": "BYTECODE CELL_FUNCTION PythonBody source_of",
        "scheduler": "Change PipelineScheduler",
        "state_machine": "Phase Task TaskBasedStateMachine TaskStatus not_stored",
        "step": "PipelineStep",
        "step_validation": "OUTPUT_MODES checked_timeout is_number takes_context to_schema",
        "tool_schema": "ToolSchema describe schema_of",
        "variables": "checked_inputs is_variable shape_text",
    },
)
