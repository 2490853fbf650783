"""Runs that use the cache at this moment: what they stand on, and what their users were told."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

Warn = Callable[[str], None]


@dataclass
class _Run:
    """An active run: entries it stands on, and what its user was told already."""

    warn: Warn | None
    used: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)


class ActiveRuns:
    """The runs of this process that use a cache.

    Args:
        warn: Takes what is told while no run is active, and for runs that say nothing else;
            ``warnings.warn`` without one.
    """

    def __init__(self, warn: Warn | None) -> None:
        self._warn = warn
        self._outside = _Run(warn)
        self._runs: dict[str, _Run] = {}

    def begin(self, run_id: str, warn: Warn | None) -> None:
        """From now on this run stands on what it uses, and hears what is wrong."""
        self._runs[run_id] = _Run(warn or self._warn)

    def end(self, run_id: str) -> None:
        """It needs nothing any more."""
        self._runs.pop(run_id, None)

    def use(self, key: str) -> None:
        """Every active run may stand on this entry."""
        for run in tuple(self._runs.values()):
            run.used.add(key)

    def keys(self) -> set[str]:
        """The entries that must stay."""
        return {key for run in tuple(self._runs.values()) for key in run.used}

    def tell(self, kind: str, message: str) -> None:
        """Tell each active run, once for each kind of message."""
        for run in tuple(self._runs.values()) or (self._outside,):
            if kind not in run.told:
                run.told.add(kind)
                if run.warn is not None:
                    run.warn(message)
                else:
                    warnings.warn(message, RuntimeWarning, stacklevel=2)
