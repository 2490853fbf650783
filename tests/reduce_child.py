"""The process that tests of reductions kill: ``python reduce_child.py STORAGE EFFECTS BLOCK``.

It carries on the newest run, or begins one, and notes each call of the model in EFFECTS. At the call whose
number is BLOCK it waits until what was answered before is recorded, says so and stands still.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import sys
from pathlib import Path

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from tagent_nb import Pipeline, PipelineExecutor, open_storage


def main() -> None:
    """Do what the command line says."""
    url, effects = sys.argv[1:3]
    calls = 0

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        nonlocal calls
        calls += 1
        task = str(messages[0].parts[0].content)
        with Path(effects).open("a") as file:
            file.write(hashlib.sha256(task.encode()).hexdigest() + "\n")
        if calls == int(sys.argv[3]):  # read here: what a model's function holds counts in fingerprints
            os.write(1, b"blocked\n")
            await asyncio.Event().wait()
        rows = len(re.findall(r"row \d", task)) + sum(map(int, re.findall(r"rows (\d+)", task)))
        return ModelResponse(parts=[TextPart(f"rows {rows}, " + "word " * 100)])

    async def run() -> None:
        storage = open_storage(url)
        rows = [f"row {place} {'x' * (place * 37 % 90)}" for place in range(600)]
        pipeline = Pipeline("killed", model=FunctionModel(answer), inputs={"load": rows})
        pipeline.step("report", "Count the rows.", reduce_over="load", max_retries=0, reduce_tokens=1000)
        resume = bool(await storage.runs(pipeline.id))
        executor = PipelineExecutor(pipeline, storage=storage, max_concurrency=1)
        result = await executor.execute(resume=resume)
        print("done", result.step_outputs.get("report", result.error_details), flush=True)

    asyncio.run(run())


if __name__ == "__main__":
    main()
