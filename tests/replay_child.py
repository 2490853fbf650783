"""The process that tests of replay kill: ``python replay_child.py STORAGE EFFECTS AGENT BLOCK``.

It carries on the newest run, or begins one, and notes each call of the model and of a tool in EFFECTS. At
the call whose number is BLOCK it says so and stands still.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from tagent_nb import Pipeline, PipelineExecutor, open_storage

PLAN = {
    "tasks": [
        {"id": "t1", "description": "look a up", "tool": "look_up", "arguments": {"name": "a"}},
        {"id": "t2", "description": "look b up", "tool": "look_up", "arguments": {"name": "b"}},
        {"id": "t3", "description": "Join {{ t1 }} and {{ t2 }}", "tool": "llm", "arguments": {}},
    ]
}


def main() -> None:
    """Do what the command line says."""
    url, effects, agent, block = sys.argv[1:]
    calls = 0

    async def note(text: str) -> None:
        nonlocal calls
        calls += 1
        with Path(effects).open("a") as file:
            file.write(text + "\n")
        if calls == int(block):
            os.write(1, b"blocked\n")  # what a tool prints goes to its step
            await asyncio.Event().wait()

    async def look_up(name: str) -> str:
        """Look something up."""
        await note(f"tool {name}")
        return name.upper()

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        last = messages[-1]
        returns = [part for message in messages for part in message.parts if part.part_kind == "tool-return"]
        system = (last.instructions if last.kind == "request" else "") or ""
        if agent == "single":
            await note(f"model {len(returns)}")
            if len(returns) < 2:
                return ModelResponse(parts=[ToolCallPart("look_up", {"name": "ab"[len(returns)]})])
            return ModelResponse(parts=[TextPart(" and ".join(str(part.content) for part in returns))])
        await note(f"model {system[:60]} {''.join(str(part.content) for part in last.parts)[:60]!r}")
        text = json.dumps(PLAN) if "Make a plan" in system else "A and B"
        if "Judge whether" in system:
            text = json.dumps({"achieved": True, "reason": ""})
        if info.output_tools:
            return ModelResponse(parts=[ToolCallPart(info.output_tools[0].name, text)])
        return ModelResponse(parts=[TextPart(text)])

    async def run() -> None:
        storage = open_storage(url)
        pipeline = Pipeline("killed", model=FunctionModel(answer))
        pipeline.step("join", "Join a and b.", tools=[look_up], agent=agent, max_retries=0)
        resume = bool(await storage.runs(pipeline.id))
        result = await PipelineExecutor(pipeline, storage=storage).execute(resume=resume)
        usage = result.steps["join"].usage
        print("done", result.step_outputs.get("join", result.error_details), usage.requests, flush=True)

    asyncio.run(run())


if __name__ == "__main__":
    main()
