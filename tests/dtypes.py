"""Names of dtypes that differ by version of pandas: what it makes of texts, and of times of Python."""

from __future__ import annotations

import pandas as pd

TEXT = str(pd.Series(["text"]).dtype)
"""Of a column of texts: ``str`` from pandas 3 on, ``object`` before."""

UNIT = "us" if int(pd.__version__.partition(".")[0]) >= 3 else "ns"
"""Of a column of ``datetime`` or ``timedelta`` objects of Python."""
