"""Text columns of pandas: what each version of it has for them.

pandas 3 has ``str``, with NaN where a text is missing. pandas 2 keeps texts as objects unless it is asked for
``string``; 2.3 knows ``str`` by another name, and 2.2 has it with Arrow's storage only. A frame of a newer
pandas is read by an older one with the nearest that it has, which for ``str`` may be ``object``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_OLD = "_numpy"
"""At the end of a storage's name: how pandas 2 spells that NaN is what is missing."""


def parts_of_text(dtype: pd.StringDtype) -> list[str]:
    """A dtype for texts as ``["python" or "pyarrow", "NA" or "nan"]``: its storage, and what is missing."""
    import pandas as pd

    return [dtype.storage.removesuffix(_OLD), "NA" if dtype.na_value is pd.NA else "nan"]


def text_dtype(storage: str, missing: str) -> Any:
    """The dtype with these parts; the nearest one where this pandas has none.

    Raises:
        ValueError: There is no such storage.
    """
    import numpy as np
    import pandas as pd

    if missing == "NA":
        return pd.StringDtype(storage)
    try:
        return pd.StringDtype(storage, np.nan)
    except TypeError:  # pandas 2.2
        return pd.StringDtype(storage + _OLD) if storage == "pyarrow" else object
