"""The same three coroutines without an engine."""

from __future__ import annotations

import asyncio


async def load() -> list[int]:
    return list(range(100))


async def square(load: list[int]) -> list[int]:
    return [number * number for number in load]


async def total(square: list[int]) -> int:
    return sum(square)


async def main() -> int:
    return await total(await square(await load()))


print(asyncio.run(main()))
