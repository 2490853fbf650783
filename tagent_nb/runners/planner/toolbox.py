"""The tools of a planning step, which calls them itself. Imports pydantic-ai: load it late."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_ai import RunContext
from pydantic_ai.exceptions import ModelRetry, ToolFailed
from pydantic_ai.models import Model
from pydantic_ai.toolsets import AbstractToolset, FunctionToolset, ToolsetTool
from pydantic_ai.usage import RunUsage

from tagent_nb.errors import did_you_mean
from tagent_nb.pipeline import PipelineStep
from tagent_nb.runners.base import StepContext
from tagent_nb.runners.tools.adapter import toolset, validation_text
from tagent_nb.runners.tools.registry import named_tools, options_of


class CallFailedError(Exception):
    """A tool's call gave no result.

    Attributes:
        passing: Whether the same call may succeed a moment later.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class Toolbox:
    """The tools of one attempt, by name."""

    def __init__(
        self,
        tools: AbstractToolset[Any],
        tools_by_name: Mapping[str, ToolsetTool[Any]],
        call: RunContext[Any],
        pure: frozenset[str] = frozenset(),
    ) -> None:
        self._tools = tools
        self._by_name = tools_by_name
        self._call = call
        self._pure = pure

    @classmethod
    async def of(cls, step: PipelineStep, context: StepContext, model: Model[Any]) -> Toolbox:
        """The tools that a step may use.

        Raises:
            StepError: ``tools_filter`` names a tool that does not exist, or one has a reserved name.
            DefinitionError: A tool cannot be described to a model.
        """
        named = named_tools(step)
        pure = frozenset(name for name, function in named.items() if options_of(function).effect == "pure")
        tools: FunctionToolset[Any] = FunctionToolset(tools=toolset(named))
        call = RunContext(deps=context, model=model, usage=RunUsage())
        return cls(tools, await tools.get_tools(call), call, pure)

    @property
    def names(self) -> Sequence[str]:
        """Their names."""
        return list(self._by_name)

    def is_pure(self, tool: str) -> bool:
        """Whether the same call may be made again any number of times."""
        return tool in self._pure

    def described(self) -> list[tuple[str, str, Mapping[str, Any]]]:
        """Name, description and JSON schema of the arguments of each."""
        tools = [tool.tool_def for tool in self._by_name.values()]
        return [(tool.name, tool.description or "", tool.parameters_json_schema) for tool in tools]

    def problems(self, tool: str, arguments: Mapping[str, Any], *, complete: bool) -> str:
        """What is wrong with a call, in words; without ``complete``, with the names of its arguments."""
        schema = self._by_name[tool].tool_def.parameters_json_schema
        fields = schema.get("properties", {})
        wrong = [f"it lacks {name!r}" for name in schema.get("required", ()) if name not in arguments]
        if schema.get("additionalProperties", True) is False:
            wrong += [
                f"it has no {name!r}.{did_you_mean(name, fields)}" for name in arguments if name not in fields
            ]
        if complete and not wrong:
            try:
                self._by_name[tool].args_validator.validate_python(dict(arguments))
            except ValidationError as error:
                wrong = [validation_text(error)]
        return f"wrong arguments for {tool!r}: {'; '.join(wrong)}." if wrong else ""

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> Any:
        """What the tool gives.

        Raises:
            CallFailedError: It gives nothing; the message is for the model.
            StepError: The tool ends the step.
        """
        definition = self._by_name[tool]
        try:
            checked = definition.args_validator.validate_python(dict(arguments))
        except ValidationError as error:
            raise CallFailedError(f"wrong arguments for {tool!r}: {validation_text(error)}.") from error
        try:
            return await self._tools.call_tool(tool, checked, self._call, definition)
        except (ModelRetry, ToolFailed) as error:
            passing = isinstance(error.__cause__, ConnectionError | TimeoutError)
            raise CallFailedError(str(error), passing=passing) from error
