"""pydantic-ai: 300 rows by ``Agent.run``, and by a model's ``request`` without an agent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from pydantic_ai import Agent, ModelRequest, ToolOutput
from pydantic_ai.messages import SystemPromptPart, ToolCallPart, UserPromptPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.tools import ToolDefinition

from tests.benchmarks.measure import Sides
from tests.benchmarks.peers.calls import AT_ONCE, ROWS, SYSTEM, raw_side
from tests.benchmarks.peers.rows import peer_row
from tests.benchmarks.raw_client import Sentiment, new_rows, own_cpu, server, with_server


def _asked(make: Callable[[], Callable[[str], Awaitable[object]]]) -> Sides:
    async def theirs() -> float:
        ask = make()

        async def all_rows(rows: list[str]) -> None:
            slots = asyncio.Semaphore(AT_ONCE)

            async def limited(text: str) -> None:
                async with slots:
                    assert isinstance(await ask(f"Say what it is: {text}"), Sentiment)

            await asyncio.gather(*map(limited, rows))

        await all_rows(new_rows(AT_ONCE))
        began = own_cpu()
        await all_rows(new_rows(ROWS))
        return own_cpu() - began

    return Sides(with_server(server(0.05), theirs), raw_side())


@peer_row("pydantic-ai, Agent.run", "agent-map")
def agent_run() -> Sides:
    def make() -> Callable[[str], Awaitable[object]]:
        output = ToolOutput(Sentiment, name="final_result")
        agent = Agent(OpenAIChatModel("bench"), output_type=output, instructions=SYSTEM)

        async def ask(text: str) -> object:
            return (await agent.run(text)).output

        return ask

    return _asked(make)


@peer_row("pydantic-ai, Model.request", "agent-map")
def model_request() -> Sides:
    def make() -> Callable[[str], Awaitable[object]]:
        model = OpenAIChatModel("bench")
        schema = Sentiment.model_json_schema()
        tool = ToolDefinition(
            name="final_result",
            parameters_json_schema=schema,
            description="One of three labels.",
            kind="output",
        )
        parameters = ModelRequestParameters(output_mode="tool", output_tools=[tool], allow_text_output=False)

        async def ask(text: str) -> object:
            parts = [SystemPromptPart(SYSTEM), UserPromptPart(text)]
            response = await model.request([ModelRequest(parts=parts)], None, parameters)
            call = next(part for part in response.parts if isinstance(part, ToolCallPart))
            return Sentiment.model_validate(call.args_as_dict())

        return ask

    return _asked(make)
