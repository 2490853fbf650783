"""Our overhead against a limit, both measured alternately in one run: ``python -m tests.benchmarks``.

Every limit is a few lines of plain Python that do the same work without an engine. Ours run the whole
engine: events, statuses, retries and cancellation armed, results validated. Ratios are printed,
never asserted.
"""
