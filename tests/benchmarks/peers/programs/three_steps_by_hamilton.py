"""The three steps of ``three_steps.py``, with Hamilton's async driver."""

from __future__ import annotations

import asyncio

from hamilton import ad_hoc_utils, async_driver


async def load() -> list[int]:
    return list(range(100))


async def square(load: list[int]) -> list[int]:
    return [number * number for number in load]


async def total(square: list[int]) -> int:
    return sum(square)


async def main() -> int:
    module = ad_hoc_utils.create_temporary_module(load, square, total, module_name="three_steps")
    driver = await async_driver.Builder().with_modules(module).build()
    values = await driver.execute(["total"])
    answer: int = values["total"]
    return answer


print(asyncio.run(main()))
