"""The lock of SERIAL steps: they work one after the other, and one that waits for a person yields it."""

from __future__ import annotations

import asyncio

import pytest

from tagent_nb.engine.concurrency import RunSignals, SerialLock, Slot, Slots


def lock_of(*steps: str) -> tuple[SerialLock, list[str]]:
    """The lock of some steps, and those that were started because another yielded it."""
    started: list[str] = []

    def freed() -> None:
        step = lock.next()
        if step is not None:
            started.append(step)

    lock = SerialLock({step: place for place, step in enumerate(steps)})
    lock.on_freed = freed
    return lock, started


def test_ready_steps_get_the_lock_one_by_one_in_the_order_of_their_definition() -> None:
    lock, _ = lock_of("a", "b", "c")
    lock.offer("c")
    lock.offer("a")
    assert lock.next() == "a"
    assert lock.next() is None
    lock.release("b")  # has no turn to give back
    assert lock.next() is None
    lock.release("a")
    assert lock.next() == "c"


async def test_a_step_that_yields_the_lock_gets_it_back_in_order() -> None:
    lock, started = lock_of("a", "b", "c")
    lock.offer("a")
    assert lock.next() == "a"
    lock.offer("c")
    lock.offer("b")
    lock.yield_lock("a")
    assert started == ["b"]
    back = asyncio.ensure_future(lock.take_back("a", serial=True))
    await asyncio.sleep(0)
    assert not back.done()
    lock.release("b")
    assert lock.next() is None  # "a" has it, before "c"
    await back
    lock.release("a")
    assert lock.next() == "c"


async def test_a_concurrent_step_needs_no_lock_to_go_on() -> None:
    lock, started = lock_of("a")
    lock.yield_lock("a")
    await lock.take_back("a", serial=False)
    assert started == []


async def test_a_mapped_step_keeps_the_lock_while_one_of_its_workers_is_at_work() -> None:
    lock, started = lock_of("a", "b")
    lock.offer("a")
    assert lock.next() == "a"
    lock.offer("b")
    lock.begin_workers("a", 2)
    lock.yield_lock("a")
    assert started == []
    await lock.take_back("a", serial=True)
    lock.yield_lock("a")
    lock.leave("a")
    assert started == ["b"]


def test_a_mapped_step_whose_workers_end_keeps_the_lock_until_it_has_ended() -> None:
    lock, started = lock_of("a", "b")
    lock.offer("a")
    assert lock.next() == "a"
    lock.offer("b")
    lock.begin_workers("a", 1)
    lock.leave("a")
    assert started == []


async def test_two_that_go_on_with_one_step_share_the_lock() -> None:
    lock, _ = lock_of("a", "b")
    lock.offer("a")
    assert lock.next() == "a"
    lock.begin_workers("a", 2)
    lock.offer("b")
    lock.yield_lock("a")
    lock.yield_lock("a")
    both = [asyncio.ensure_future(lock.take_back("a", serial=True)) for _ in range(2)]
    await asyncio.sleep(0)
    both[0].cancel()
    await asyncio.wait([both[0]])
    lock.release("b")
    assert lock.next() is None
    await both[1]
    lock.release("a")
    assert lock.next() is None


async def test_a_lock_that_comes_with_the_cancellation_is_not_lost() -> None:
    lock, _ = lock_of("a", "b")
    lock.offer("a")
    assert lock.next() == "a"
    lock.offer("b")
    lock.yield_lock("a")
    back = asyncio.ensure_future(lock.take_back("a", serial=True))
    await asyncio.sleep(0)
    lock.release("b")
    assert lock.next() is None
    back.cancel()
    with pytest.raises(asyncio.CancelledError):
        await back
    lock.offer("b")
    assert lock.next() is None
    lock.release("a")
    assert lock.next() == "b"


async def test_one_that_is_cancelled_as_the_lock_comes_keeps_it_from_none() -> None:
    lock, _ = lock_of("a", "b")
    lock.offer("a")
    assert lock.next() == "a"
    lock.begin_workers("a", 2)
    lock.offer("b")
    lock.yield_lock("a")
    lock.yield_lock("a")
    both = [asyncio.ensure_future(lock.take_back("a", serial=True)) for _ in range(2)]
    await asyncio.sleep(0)
    both[0].cancel()
    lock.release("b")
    assert lock.next() is None
    await both[1]
    assert both[0].cancelled()


async def test_what_is_cancelled_in_line_leaves_the_line() -> None:
    lock, started = lock_of("a", "b", "c")
    lock.offer("a")
    assert lock.next() == "a"
    lock.offer("b")
    lock.yield_lock("a")
    assert started == ["b"]
    back = asyncio.ensure_future(lock.take_back("a", serial=True))
    await asyncio.sleep(0)
    back.cancel()
    with pytest.raises(asyncio.CancelledError):
        await back
    lock.offer("c")
    lock.release("b")
    assert lock.next() == "c"


async def test_a_slot_is_taken_at_work_and_free_while_it_is_yielded() -> None:
    lock, _ = lock_of("a")
    slots = Slots(1, RunSignals())
    replaced: list[bool] = []
    slot = Slot("a", False, slots, lock, lambda: replaced.append(True))
    await slot.take()
    assert slots.free == 0
    slot.yield_slot()
    assert (slot.yielded, slot.at_work, slots.free) == (True, False, 1)
    await slot.take()
    assert (slot.yielded, slot.at_work, slots.free) == (False, True, 0)
    slot.yield_slot()
    slot.end()
    slot.end()
    slot.give_back()
    assert (slot.yielded, slot.was_yielded, slots.free) == (False, True, 1)
    assert replaced == [True]


async def test_who_waits_for_a_slot_gets_none_while_the_run_is_paused() -> None:
    """Nor when one becomes free; afterwards each gets one."""
    signals = RunSignals()
    slots, order = Slots(1, signals), []

    async def work(name: str) -> None:
        await slots.take()
        order.append(name)
        slots.give_back()

    await slots.take()
    waiting = [asyncio.create_task(work(name)) for name in "abc"]
    await asyncio.sleep(0)
    signals.pause()
    slots.give_back()
    for _ in range(10):
        await asyncio.sleep(0)
    assert (order, slots.free) == ([], 1)
    signals.unpause()
    await asyncio.gather(*waiting)
    assert (sorted(order), slots.free) == (["a", "b", "c"], 1)


async def test_slots_go_to_those_who_wait_in_the_order_they_came() -> None:
    slots = Slots(1, RunSignals())
    order: list[str] = []

    async def work(name: str) -> None:
        await slots.take()
        order.append(name)

    await work("first")
    assert not slots.take_now()
    waiting = [asyncio.create_task(work(name)) for name in ("second", "third", "fourth")]
    await asyncio.sleep(0)
    waiting[0].cancel()
    slots.give_back()  # the cancelled one is passed over
    assert not slots.take_now(), "it has gone to the third"
    await asyncio.sleep(0)
    slots.give_back()
    waiting[2].cancel()  # it has got the slot, and gives it back
    await asyncio.wait(waiting)
    assert (order, slots.free) == (["first", "third"], 1)


async def test_one_that_is_stopped_while_it_waits_for_a_slot_leaves_the_line() -> None:
    slots = Slots(1, RunSignals())
    assert slots.take_now()
    waiting = asyncio.create_task(slots.take())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    slots.give_back()
    assert (waiting.cancelled(), slots.free) == (True, 1)
