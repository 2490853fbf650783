# Made by `python -m tests.stubs` from the table in __init__.py.
from tagent_nb.notebook.session import current as current
