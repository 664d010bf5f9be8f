"""Calls of other threads reach the loop in their order, none is lost, and a crowd of them wakes it few times."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest

from unmask.serving.event_queue import GAP, EventQueue


def test_every_call_is_made_in_its_order() -> None:
    made: list[tuple[int, int]] = []
    woken = 0

    async def main() -> None:
        nonlocal woken
        queue, loop = EventQueue.of_current_loop(), asyncio.get_running_loop()
        assert EventQueue.of_current_loop() is queue
        wake = queue.wake

        def counted(call: object) -> object:
            nonlocal woken
            woken += 1
            return wake(call)  # type: ignore[arg-type]

        queue.wake = counted  # type: ignore[assignment]

        def leave(who: int) -> None:
            for number in range(2000):
                queue.put(partial(made.append, (who, number)))

        threads = [threading.Thread(target=leave, args=(who,)) for who in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) or queue.calls:
            await asyncio.sleep(0.001)
        assert loop.is_running()

    asyncio.run(main())
    assert len(made) == 6000
    for who in range(3):
        assert [number for one, number in made if one == who] == list(range(2000))
    assert woken < 6000


def test_looks_end_in_a_pause_and_begin_again() -> None:
    async def main() -> list[float]:
        queue, loop, waits = EventQueue.of_current_loop(), asyncio.get_running_loop(), list[float]()
        for pause in (0.0, 0.0, 4 * GAP, 4 * GAP):
            await asyncio.sleep(pause)
            heard, began = asyncio.Event(), loop.time()
            await asyncio.to_thread(queue.put, heard.set)
            await asyncio.wait_for(heard.wait(), 5)
            waits.append(loop.time() - began)
        assert queue.looking
        await asyncio.sleep(4 * GAP)
        assert not queue.looking
        return waits

    assert len(asyncio.run(main())) == 4


def test_a_closed_loop_is_said_so() -> None:
    async def main() -> EventQueue:
        return EventQueue.of_current_loop()

    queue = asyncio.run(main())
    with pytest.raises(RuntimeError):
        queue.put(lambda: None)
