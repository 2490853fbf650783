"""Plans and lists of runs as DataFrames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def plan_frame(steps: Iterable[Any]) -> pd.DataFrame:
    """One row a step, indexed by its name; see :meth:`tagent_nb.Plan.to_frame`.

    Columns: ``action``, ``why``, ``items``, ``items_done``, ``seconds``, ``tokens``, ``cost`` (USD).
    """
    import pandas as pd

    rows = list(steps)
    dtypes = {
        "action": "str",
        "why": "str",
        "items": "Int64",
        "items_done": "Int64",
        "seconds": "float64",
        "tokens": "Int64",
        "cost": "float64",
    }
    index = pd.Index([row.step for row in rows], name="step", dtype="str")
    columns = {
        name: pd.Series([getattr(row, name) for row in rows], index, dtype=dtype)
        for name, dtype in dtypes.items()
    }
    return pd.DataFrame(columns, index)


def runs_frame(runs: Iterable[Any]) -> pd.DataFrame:
    """One row a recorded run, in the order given, indexed by its id.

    Columns: ``started`` (UTC), ``status``, ``host``, ``steps``, ``done``, ``cached``, ``failed``, ``cost``
    (USD; missing when no price of the run is known), ``unpriced`` (whether some price is unknown),
    ``seconds`` (from the first start to the last end, pauses between sessions included; missing while it
    runs) and ``size`` (bytes).

    Args:
        runs: :class:`tagent_nb.RunInfo` objects.
    """
    import pandas as pd

    rows = list(runs)
    index = pd.Index([row.run_id for row in rows], name="run", dtype="str")
    micros = pd.Series([round(row.started_at * 1e6) or None for row in rows], index, dtype="Int64")
    columns = {
        "started": pd.to_datetime(micros, unit="us", utc=True).astype("datetime64[us, UTC]"),
        "status": pd.Series([row.status for row in rows], index, dtype="str"),
        "host": pd.Series([row.host for row in rows], index, dtype="str"),
        "steps": pd.Series([row.steps for row in rows], index, dtype="int64"),
        "done": pd.Series([row.steps_done for row in rows], index, dtype="int64"),
        "cached": pd.Series([row.steps_cached for row in rows], index, dtype="int64"),
        "failed": pd.Series([row.steps_failed for row in rows], index, dtype="int64"),
        "cost": pd.Series([_cost(row) for row in rows], index, dtype="float64"),
        "unpriced": pd.Series([row.unpriced for row in rows], index, dtype="bool"),
        "seconds": pd.Series([_seconds(row) for row in rows], index, dtype="float64"),
        "size": pd.Series([row.size for row in rows], index, dtype="int64"),
    }
    return pd.DataFrame(columns, index)


def _cost(run: Any) -> float | None:
    return None if run.unpriced and not run.cost else run.cost


def _seconds(run: Any) -> float | None:
    return None if run.ended_at is None else max(0.0, run.ended_at - run.started_at)
