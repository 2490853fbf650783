# Made by `python -m tests.stubs` from the table in __init__.py.
from tagent_nb.export.inputs import feed as feed
from tagent_nb.export.module import export_module as export_module
from tagent_nb.export.module import is_own as is_own
