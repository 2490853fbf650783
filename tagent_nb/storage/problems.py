"""What storage found wrong and got over: noted, and told to whoever listens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Hear = Callable[[str], None]


class Reporting:
    """Notes problems that stop nobody, each once.

    Attributes:
        problems: What was found wrong and got over, such as a dropped torn record; one sentence each.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._unheard: list[str] = []
        self._hearers: list[Hear] = []
        self._telling = threading.Lock()

    @contextmanager
    def telling(self, hear: Hear) -> Iterator[None]:
        """Tell ``hear`` each problem as it is found, first those that nobody has heard yet.

        Args:
            hear: Takes a sentence, on any thread; must return fast.
        """
        with self._telling:
            unheard, self._unheard = self._unheard, []
            self._hearers.append(hear)
        try:
            for message in unheard:
                hear(message)
            yield
        finally:
            with self._telling:
                self._hearers.remove(hear)

    def _report(self, message: str) -> None:
        with self._telling:
            if message in self.problems:
                return
            self.problems.append(message)
            hearers = tuple(self._hearers)
            if not hearers:
                self._unheard.append(message)
        for hear in hearers:
            hear(message)
