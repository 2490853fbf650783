"""CPU seconds of a column of so many rows by Daft's function ``prompt``, with a schema.

Daft's types know no ``Literal``: the label is any text.
"""

from __future__ import annotations

import sys
import time

import daft
from daft.functions import prompt
from pydantic import BaseModel

from tests.benchmarks.peers.calls import SYSTEM
from tests.benchmarks.raw_client import new_rows


class Label(BaseModel):
    """One of three labels."""

    label: str


rows = new_rows(int(sys.argv[1]))
frame = daft.from_pydict({"text": [f"Say what it is: {text}" for text in rows]})
column = prompt(
    daft.col("text"),
    Label,
    system_message=SYSTEM,
    provider="openai",
    model="bench",
    use_chat_completions=True,
)
began = time.process_time()
values = frame.with_column("answer", column).to_pydict()["answer"]
taken = time.process_time() - began
assert values == [{"label": "positive"}] * len(rows)
print(taken)
