"""Turns: SERIAL steps work one after the other, and whoever waits for a person gives its turn away."""

from __future__ import annotations

import asyncio

import pytest

from tagent_nb.engine.concurrency import Place, Turns


def turns(*steps: str) -> tuple[Turns, list[str]]:
    """Turns of some steps, and those that were started because somebody stepped aside."""
    started: list[str] = []

    def freed() -> None:
        step = found.next()
        if step is not None:
            started.append(step)

    found = Turns({step: place for place, step in enumerate(steps)}, freed)
    return found, started


def test_ready_steps_get_the_turn_one_by_one_in_the_order_of_their_definition() -> None:
    found, _ = turns("a", "b", "c")
    found.offer("c")
    found.offer("a")
    assert found.next() == "a"
    assert found.next() is None
    found.release("b")  # has no turn to give back
    assert found.next() is None
    found.release("a")
    assert found.next() == "c"


async def test_a_step_that_steps_aside_gives_its_turn_away_and_gets_it_back_in_order() -> None:
    found, started = turns("a", "b", "c")
    found.offer("a")
    assert found.next() == "a"
    found.offer("c")
    found.offer("b")
    found.step_aside("a")
    assert started == ["b"]
    back = asyncio.ensure_future(found.come_back("a", serial=True))
    await asyncio.sleep(0)
    assert not back.done()
    found.release("b")
    assert found.next() is None  # "a" has it, before "c"
    await back
    found.release("a")
    assert found.next() == "c"


async def test_a_concurrent_step_needs_no_turn_to_come_back() -> None:
    found, started = turns("a")
    found.step_aside("a")
    await found.come_back("a", serial=False)
    assert started == []


async def test_a_mapped_step_keeps_its_turn_while_one_of_its_workers_is_at_work() -> None:
    found, started = turns("a", "b")
    found.offer("a")
    assert found.next() == "a"
    found.offer("b")
    found.crew("a", 2)
    found.step_aside("a")
    assert started == []
    await found.come_back("a", serial=True)
    found.step_aside("a")
    found.leave("a")
    assert started == ["b"]


def test_a_mapped_step_whose_workers_end_keeps_its_turn_until_it_has_ended() -> None:
    found, started = turns("a", "b")
    found.offer("a")
    assert found.next() == "a"
    found.offer("b")
    found.crew("a", 1)
    found.leave("a")
    assert started == []


async def test_two_that_come_back_to_one_step_share_its_turn() -> None:
    found, _ = turns("a", "b")
    found.offer("a")
    assert found.next() == "a"
    found.crew("a", 2)
    found.offer("b")
    found.step_aside("a")
    found.step_aside("a")
    both = [asyncio.ensure_future(found.come_back("a", serial=True)) for _ in range(2)]
    await asyncio.sleep(0)
    both[0].cancel()
    await asyncio.wait([both[0]])
    found.release("b")
    assert found.next() is None
    await both[1]
    found.release("a")
    assert found.next() is None


async def test_a_turn_that_comes_with_the_cancellation_is_not_lost() -> None:
    found, _ = turns("a", "b")
    found.offer("a")
    assert found.next() == "a"
    found.offer("b")
    found.step_aside("a")
    back = asyncio.ensure_future(found.come_back("a", serial=True))
    await asyncio.sleep(0)
    found.release("b")
    assert found.next() is None
    back.cancel()
    with pytest.raises(asyncio.CancelledError):
        await back
    found.offer("b")
    assert found.next() is None
    found.release("a")
    assert found.next() == "b"


async def test_one_who_is_cancelled_as_the_turn_comes_keeps_it_from_nobody() -> None:
    found, _ = turns("a", "b")
    found.offer("a")
    assert found.next() == "a"
    found.crew("a", 2)
    found.offer("b")
    found.step_aside("a")
    found.step_aside("a")
    both = [asyncio.ensure_future(found.come_back("a", serial=True)) for _ in range(2)]
    await asyncio.sleep(0)
    both[0].cancel()
    found.release("b")
    assert found.next() is None
    await both[1]
    assert both[0].cancelled()


async def test_who_is_cancelled_in_line_leaves_the_line() -> None:
    found, started = turns("a", "b", "c")
    found.offer("a")
    assert found.next() == "a"
    found.offer("b")
    found.step_aside("a")
    assert started == ["b"]
    back = asyncio.ensure_future(found.come_back("a", serial=True))
    await asyncio.sleep(0)
    back.cancel()
    with pytest.raises(asyncio.CancelledError):
        await back
    found.offer("c")
    found.release("b")
    assert found.next() == "c"


async def test_a_place_holds_a_slot_while_it_works_and_none_while_it_is_aside() -> None:
    found, _ = turns("a")
    slots = asyncio.Semaphore(1)
    replaced: list[bool] = []
    place = Place("a", False, slots, found, lambda: replaced.append(True))
    await place.take()
    assert slots.locked()
    place.step_aside()
    assert (place.away, place.at_work, slots.locked()) == (True, False, False)
    await place.take()
    assert (place.away, place.at_work, slots.locked()) == (False, True, True)
    place.step_aside()
    place.end()
    place.end()
    place.give()
    assert (place.away, place.was_away, slots.locked()) == (False, True, False)
    assert replaced == [True]
