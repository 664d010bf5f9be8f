"""Events on their way from the engine's thread to an event loop: one wake-up for as many as there are."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar
from weakref import WeakKeyDictionary


class Mailbox:
    """Calls that a loop is to make, in the order in which other threads left them. Waking a loop costs a system
    call and the interpreter's lock, and a step of 32 requests has 32 events."""

    of: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox]] = WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.wake, self.calls, self.woken = loop.call_soon_threadsafe, deque[Callable[[], Any]](), False

    @classmethod
    def of_running_loop(cls) -> Mailbox:
        loop = asyncio.get_running_loop()
        return cls.of.setdefault(loop, cls(loop))

    def leave(self, call: Callable[[], Any]) -> None:
        """From any thread; raises RuntimeError if the loop is closed."""
        self.calls.append(call)
        if not self.woken:
            self.woken = True
            self.wake(self._empty)

    def _empty(self) -> None:
        self.woken = False  # before the calls are read: one that is left now either is read or wakes again
        while self.calls:
            self.calls.popleft()()
