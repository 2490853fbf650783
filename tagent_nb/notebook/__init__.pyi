# Made by `python -m tests.stubs` from the table in __init__.py.
from tagent_nb.notebook.extension import load_ipython_extension as load_ipython_extension
from tagent_nb.notebook.extension import unload_ipython_extension as unload_ipython_extension
from tagent_nb.notebook.session import current as current
