"""How a step gets its value: Python, agents, planners, tools and models."""

from tagent_nb.lazy_face import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "agent.estimate": "answer_range frame_tokens shared_frame_tokens",
        "agent.runner": "AgentRunner prompt prompt_pieces",
        "agent.shared_call": "fitting rows_prompt",
        "base": (
            "CallMiddleware ModelCall Quirks Refusal StepContext StepRunner ToolCall UNKNOWN_REASON "
            "USER_CODE calls_user_code"
        ),
        "calls": "call_refused edited_call edited_failure",
        "execution.capture": "Lines collected routed",
        "execution.files": "are_untouched changed_files reading unread_again",
        "execution.traceback": "user_traceback",
        "middleware.budget": "BudgetMiddleware",
        "middleware.canonical_request": "plain",
        "middleware.ledger": "Ledger",
        "middleware.otel": "traced",
        "middleware.rate_limit": "RateLimiter",
        "middleware.replay": "Cassette ReplayMiddleware WorkKey",
        "middleware.tracing": "Tracing",
        "models.accounting": "tokens_of",
        "models.batches": (
            "BatchedCall answer_of batch_of call_key cancel_batch create_batch ends_giving_up find_batch "
            "handle_of is_gone is_refusal parted passes progress_of request_id wait_of"
        ),
        "models.clients": "Models settings_problems",
        "models.local": "ABOUT install_model model_status",
        "models.resolve": (
            "asks_network batch_problem check_model least_window model_name model_parts models_behind price "
            "too_long unpriced"
        ),
        "models.settings": "misspelt_limits misspelt_prices",
        "planner.runner": "PlanRunner",
        "python": "PythonRunner lines_of raise_as_own unseen_files",
        "row_groups": "CallSlots RowGroups",
        "tools.mcp": "tools_from",
        "tools.registry": (
            "ToolOptions named_tools options_of registered_tools step_context tool tool_problems tools_for"
        ),
    },
)
