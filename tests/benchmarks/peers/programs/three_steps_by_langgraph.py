"""The three steps of ``three_steps.py``, with LangGraph."""

from __future__ import annotations

import asyncio
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    numbers: list[int]
    squares: list[int]
    sum: int


async def load(state: State) -> State:
    return {"numbers": list(range(100))}


async def square(state: State) -> State:
    return {"squares": [number * number for number in state["numbers"]]}


async def total(state: State) -> State:
    return {"sum": sum(state["squares"])}


builder: Any = StateGraph(State)
builder.add_node("load", load)
builder.add_node("square", square)
builder.add_node("total", total)
builder.add_edge(START, "load")
builder.add_edge("load", "square")
builder.add_edge("square", "total")
builder.add_edge("total", END)
print(asyncio.run(builder.compile().ainvoke({"numbers": []}))["sum"])
