"""The same with diskcache by hand: the key is the SHA-256 of the step and its input as JSON."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

import diskcache

from tests.benchmarks.records import Record, following

folder = Path(sys.argv[1])


def run(cache: diskcache.Cache, steps: int) -> int:
    value: Record | None = None
    for n in range(steps):
        key = hashlib.sha256(json.dumps([f"s{n}", value]).encode()).hexdigest()
        record = cache.get(key)
        if record is None:
            record = following(value)
            cache.set(key, record)
        value = record
    cache.close()
    return n


run(diskcache.Cache(folder / "warm"), 1)
began = time.process_time()
last = run(diskcache.Cache(folder / "cache"), 1000)
taken = time.process_time() - began
assert last == 999
print(taken)
