"""What other libraries add to the same work: ``python -m tests.benchmarks.peers`` (``make bench-peers``).

Each environment has a file of requirements and a module of rows, both by its name. A row names that of
ours whose workload and limit it has. Modules of rows run in their environment: they import nothing of
tagent_nb, nor what imports it.
"""
