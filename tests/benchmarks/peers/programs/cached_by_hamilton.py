"""CPU seconds that a chain of records takes with Hamilton's cache in the folder that is given."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from hamilton import driver

from tests.benchmarks.peers.programs.record_functions import RECORDS, record_functions

sys.setrecursionlimit(100_000)
folder = Path(sys.argv[1])
functions = record_functions(folder)
module = sys.modules[functions[0].__module__]


def made(name: str) -> driver.Driver:
    return driver.Builder().with_modules(module).with_cache(path=folder / name).build()


made("warm").execute(["s0"])
cached = made("cache")
began = time.process_time()
values = cached.execute([f"s{RECORDS - 1}"])
taken = time.process_time() - began
assert values[f"s{RECORDS - 1}"]["number"] == RECORDS - 1
print(taken)
