"""Events on their way from the engine's thread to an event loop, which is woken once and then looks by itself."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

GAP = 0.02  # seconds between looks while there is something: a stream that is read by a person does not show it


class EventQueue:
    """Calls that a loop is to make, in the order in which other threads left them. Waking a loop costs a system
    call and the interpreter's lock, which at every step of a few milliseconds the engine would wait for; so only the
    first call after a pause wakes it, and those that follow are found by looks that are GAP apart."""

    by_loop: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, EventQueue]] = WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.wake = loop.call_soon_threadsafe
        self.later = loop.call_later
        self.calls = deque[Callable[[], Any]]()
        self.looking = False

    @classmethod
    def of_current_loop(cls) -> EventQueue:
        loop = asyncio.get_running_loop()
        return cls.by_loop.setdefault(loop, cls(loop))

    def put(self, call: Callable[[], Any]) -> None:
        """From any thread; raises RuntimeError if the loop is closed."""
        self.calls.append(call)
        if not self.looking:
            self.looking = True
            self.wake(self._look)

    def _look(self) -> None:
        if not self.calls:
            self.looking = False
            if not self.calls:
                return
            self.looking = True  # one was left between the two lines, and woke nobody
        while self.calls:
            self.calls.popleft()()
        self.later(GAP, self._look)
