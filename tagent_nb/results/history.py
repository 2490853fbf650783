"""Several recorded runs together, as DataFrames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import UnknownStepError, did_you_mean
from tagent_nb.formatting import count
from tagent_nb.results.frames import events_frame, items_frame, runs_frame, steps_frame

if TYPE_CHECKING:
    import pandas as pd

    from tagent_nb.results.result import PipelineResult


class RunHistory(Sequence["PipelineResult"]):
    """Results of recorded runs, the oldest first. Frames have the run's id first in their index.

    Args:
        results: The results.
        runs: What storage lists of them, :class:`tagent_nb.RunInfo` each.
    """

    def __init__(self, results: Sequence[PipelineResult], runs: Sequence[Any] = ()) -> None:
        self._results = list(results)
        self._runs = runs

    def __getitem__(self, place: Any) -> Any:
        return self._results[place]

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[PipelineResult]:
        return iter(self._results)

    def __repr__(self) -> str:
        return f"<RunHistory: {count(len(self), 'run')}>"

    def runs_frame(self) -> pd.DataFrame:
        """One row a run: start, status, steps, cost, seconds and size, as in ``%tagent_history``."""
        return runs_frame(self._runs)

    def steps_frame(self) -> pd.DataFrame:
        """One row for each step of each run; columns as in :meth:`PipelineResult.to_frame`."""
        return self._together(steps_frame)

    def items_frame(self, step: str) -> pd.DataFrame:
        """One row for each item of a mapped step in each run: ``status``, ``attempts``, ``seconds``, tokens,
        ``cost`` (USD), ``error``; where rows were sent in batches, the id of the ``batch`` that an answer
        came in; and where rows share calls (``rows_per_call``) ``requests``, ``rows_in_call``, and
        ``asked_alone``, which says why a row was asked for by itself.

        Raises:
            UnknownStepError: No run has such a mapped step.
        """
        mapped = {
            name
            for result in self._results
            for name, state in result.steps.items()
            if state.items is not None
        }
        if step not in mapped:
            raise UnknownStepError(
                f"No run has a mapped step {step!r}.{did_you_mean(step, mapped)} "
                f"Mapped steps: {', '.join(sorted(mapped)) or 'none'}."
            )
        have = [result for result in self._results if step in result.steps]
        return RunHistory(have)._together(lambda result: items_frame(result.steps[step]))

    def events_frame(self) -> pd.DataFrame:
        """One row for each event of each run; columns as in :meth:`PipelineResult.events_frame`."""
        return self._together(events_frame)

    def _together(self, frame_of: Callable[[PipelineResult], pd.DataFrame]) -> pd.DataFrame:
        import pandas as pd

        frames = {result.run_id: frame_of(result) for result in self._results}
        return pd.concat(frames or {"": frame_of(_nothing()).iloc[:0]}, names=["run"])


def _nothing() -> PipelineResult:
    """A result without anything, whose frames have columns and no rows."""
    from tagent_nb.results.result import PipelineResult

    return PipelineResult("", False, 0.0)
