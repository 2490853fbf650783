"""Three steps, as someone would write them."""

from __future__ import annotations

from tagent_nb import Pipeline, PipelineExecutor

pipeline = Pipeline("three steps")


@pipeline.task
async def load() -> list[int]:
    return list(range(100))


@pipeline.task
async def square(load: list[int]) -> list[int]:
    return [number * number for number in load]


@pipeline.task
async def total(square: list[int]) -> int:
    return sum(square)


print(PipelineExecutor(pipeline).run().step_outputs["total"])
