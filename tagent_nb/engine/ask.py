"""One question to an agent, without a pipeline of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from tagent_nb.engine.executor import PipelineExecutor, executor_keywords, split_options
from tagent_nb.errors import RunFailedError
from tagent_nb.events import TokenUsage
from tagent_nb.foreign_words import ANSWER, foreign_attribute
from tagent_nb.formatting import value_text
from tagent_nb.pipeline import Pipeline
from tagent_nb.results import PipelineResult, failure
from tagent_nb.templating import literal

if TYPE_CHECKING:
    from pydantic import BaseModel

T = TypeVar("T")
S = TypeVar("S", bound="BaseModel")

PIPELINE = "ask"
"""Name of the pipeline under which questions are recorded, where there is a storage."""

STEP = "answer"
"""Name of its one step."""


@dataclass(frozen=True, repr=False)
class AgentResult(Generic[T]):
    """What an agent answered, and what that took.

    Attributes:
        output: The answer: text, or an instance of the ``output_schema``.
        usage: Tokens, requests and calls of tools; those of attempts that failed as well.
        cost: USD; ``None`` where the price is unknown.
        result: The whole result: tool calls in its ``events``, warnings, and the ``run_id``.
    """

    output: T
    usage: TokenUsage
    cost: float | None
    result: PipelineResult

    def __repr__(self) -> str:
        output = value_text(self.result.steps[STEP].output, 2000)
        return f"<AgentResult {output}: {self.usage.total_tokens} tokens, {self.cost_text}>"

    @property
    def cost_text(self) -> str:
        """The cost in words."""
        return "price unknown" if self.cost is None else f"{self.cost:.4f} USD"

    if not TYPE_CHECKING:  # pragma: no branch

        def __getattr__(self, name: str) -> Any:
            raise foreign_attribute(self, name, ANSWER)


@overload
def run_agent(
    goal: str,
    *,
    tools: Iterable[Callable[..., Any]] = (),
    output_schema: type[S],
    model: Any = None,
    **options: Any,
) -> AgentResult[S]: ...


@overload
def run_agent(
    goal: str,
    *,
    tools: Iterable[Callable[..., Any]] = (),
    output_schema: None = None,
    model: Any = None,
    **options: Any,
) -> AgentResult[str]: ...


def run_agent(
    goal: str,
    *,
    tools: Iterable[Callable[..., Any]] = (),
    output_schema: type[BaseModel] | None = None,
    model: Any = None,
    **options: Any,
) -> AgentResult[Any]:
    """Ask an agent one question and wait for the answer; works in scripts, notebooks and running loops.

    It is a pipeline of one step: the same retries, budgets, limits, approvals and recordings, and the same
    rules about secrets. Without ``storage`` and ``cache`` nothing is kept, and each call asks.

    Args:
        goal: The question, sent as it is: braces mean nothing in it.
        tools: Functions that the agent may call, besides the registered ones.
        output_schema: Pydantic model of the answer; text without one.
        model: Whom to ask: ``"openai:gpt-5-mini"``, ``"local"``, ``"test"`` or a model object.
        **options: Fields of :class:`PipelineStep` (``constraints``, ``timeout``, ``settings``, ``checks``,
            ``agent="plan"``), keywords of :class:`PipelineExecutor` (``storage``, ``cache``, ``approver``,
            ``recording``), and ``offline`` and ``use_cache`` of its ``run``. ``budget`` is that of the run.

    Raises:
        RunFailedError: There is no answer; the message says why, and ``error.result`` has what was done.
        DefinitionError: An option is unknown or not allowed.
        PipelineValidationError: The question cannot be asked so, for example since it names no model.
        ModelError: The model cannot be used.
    """
    fields = {name: options.pop(name) for name in ("timeout",) if name in options}  # of each attempt
    running, others = split_options(options)
    executing = {name: others.pop(name) for name in list(others) if name in executor_keywords()}
    pipeline = question(literal(goal), tools=list(tools), output_schema=output_schema, **others, **fields)
    return answered(PipelineExecutor(pipeline, model=model, **executing), **running)


def question(goal: str, **fields: Any) -> Pipeline:
    """The pipeline of one step that asks; ``goal`` is a template."""
    return Pipeline(PIPELINE, "Questions asked one by one").step(STEP, goal, **fields)


def answered(executor: PipelineExecutor, **options: Any) -> AgentResult[Any]:
    """Run a :func:`question`. Options are those of :meth:`PipelineExecutor.run`.

    Raises:
        RunFailedError: There is no answer.
    """
    result = executor.run(**options)
    if not result.success or STEP not in result.step_outputs:
        raise RunFailedError(failure(result), result)
    return AgentResult(
        result.step_outputs[STEP], result.token_usage[STEP], result.cost_per_step[STEP], result
    )
