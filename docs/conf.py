"""How Sphinx builds this documentation: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

import tagent_nb

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "tagent-nb"
author = "The tagent-nb contributors"
project_copyright = f"2026, {author}"
release = version = tagent_nb.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "magics_page"]
exclude_patterns = ["_build", "README.md"]
suppress_warnings = ["myst.header"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Options and quotes are copied from these pages: they must stay as they are typed.
smartquotes = False

html_theme = "furo"
html_title = "tagent-nb"
html_static_path: list[str] = []
