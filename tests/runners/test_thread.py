"""Worker: an exception thrown into a body never hits anything but the body."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tagent_nb.runners.execution.thread as worker_module
from tagent_nb.runners.execution.capture import Lines
from tagent_nb.runners.execution.thread import Worker
from tagent_nb.user_objects import Interrupted


@pytest.fixture
def escaped(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Exceptions that ended a thread, while threads take turns as often as they can."""
    errors: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield errors
    sys.setswitchinterval(before)


def spin(turns: int) -> Callable[[], int]:
    def body() -> int:
        total = 0
        for number in range(turns):
            total += number
        return total

    return body


def test_an_interrupt_never_hits_code_outside_the_body(escaped: list[Any]) -> None:
    """Whenever it comes - before, in, or after the body - the thread ends in good order."""
    rng = random.Random(7)
    outcomes = set()
    for _ in range(400):
        ended = threading.Event()
        worker = Worker("race", spin(rng.choice([0, 10, 1000, 10_000])), Lines(lambda text: None), ended.set)
        worker.start()
        until = time.perf_counter() + rng.random() * 0.0003
        while time.perf_counter() < until:
            pass
        worker.interrupt()
        worker.interrupt()
        assert ended.wait(10)
        try:
            outcomes.add(type(worker.result()))
        except Interrupted:
            outcomes.add(Interrupted)
    assert escaped == []
    assert outcomes == {int, Interrupted}


def test_an_interrupt_before_the_body_keeps_it_from_starting() -> None:
    ended, ran = threading.Event(), threading.Event()
    worker = Worker("early", ran.set, Lines(lambda text: None), ended.set)
    worker.interrupt()
    worker.start()
    assert ended.wait(10)
    with pytest.raises(Interrupted):
        worker.result()
    assert not ran.is_set()


def test_an_interrupt_after_the_body_does_nothing() -> None:
    ended = threading.Event()
    worker = Worker("late", lambda: 5, Lines(lambda text: None), ended.set)
    worker.start()
    assert ended.wait(10)
    worker.interrupt()
    assert worker.result() == 5


@pytest.mark.parametrize("take_back", [True, False])
def test_a_body_that_swallows_the_exception_still_ends(
    monkeypatch: pytest.MonkeyPatch, take_back: bool
) -> None:
    """Thrown at once or taken back if it is slow, it arrives once and the value is kept."""
    monkeypatch.setattr(worker_module, "_must_take_back", lambda: take_back)
    ready, ended = threading.Event(), threading.Event()
    caught = []

    def body() -> str:
        try:
            ready.set()
            while True:
                sum(range(10))
        except Interrupted as error:
            caught.append(error)
        return "value"

    worker = Worker("stubborn", body, Lines(lambda text: None), ended.set)
    worker.start()
    assert ready.wait(10)
    worker.interrupt()
    assert ended.wait(10)
    assert worker.result() == "value"
    assert len(caught) == 1


def test_an_exception_that_was_taken_back_never_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_must_take_back", lambda: True)
    monkeypatch.setattr(worker_module, "TAKE_BACK_SECONDS", 0)
    ready, ended, release = threading.Event(), threading.Event(), threading.Lock()
    release.acquire()

    def body() -> str:
        ready.set()
        release.acquire()
        return "value"

    worker = Worker("stuck", body, Lines(lambda text: None), ended.set)
    worker.start()
    assert ready.wait(10)
    worker.interrupt()
    release.release()
    assert ended.wait(10)
    assert worker.result() == "value"


def test_errors_and_ends_the_program_are_results() -> None:
    ended = threading.Event()

    def body() -> None:
        raise SystemExit(3)

    worker = Worker("exit", body, Lines(lambda text: None), ended.set)
    worker.start()
    assert ended.wait(10)
    with pytest.raises(SystemExit):
        worker.result()


def test_a_listener_that_fails_does_not_keep_the_end_from_being_reported(escaped: list[Any]) -> None:
    def fail(text: str) -> None:
        raise ValueError("listener")

    ended = threading.Event()
    worker = Worker("loud", lambda: print("x", end=""), Lines(fail), ended.set)
    worker.start()
    assert ended.wait(10)
    assert worker.result() is None
    worker._thread.join(10)
    assert [error.exc_type for error in escaped] == [ValueError]
