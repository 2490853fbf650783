"""``python -m tagent_nb``: the command line, where its script is not on the path."""

from __future__ import annotations

import sys

from tagent_nb.cli import main

sys.exit(main())
