"""CPU seconds that a chain of records takes with joblib's ``Memory`` in the folder that is given."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import joblib

from tests.benchmarks.peers.programs.record_functions import RECORDS, record_functions
from tests.benchmarks.records import Record

folder = Path(sys.argv[1])
functions = record_functions(folder)
joblib.Memory(folder / "warm", verbose=0).cache(functions[0])()
began = time.process_time()
memory = joblib.Memory(folder / "cache", verbose=0)
value: Record = memory.cache(functions[0])()
for function in functions[1:]:
    value = memory.cache(function)(value)
taken = time.process_time() - began
assert value["number"] == RECORDS - 1
print(taken)
