"""Work of the HTTP side that is not the event loop's: reading bodies, templates, text into tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from unmask.serving.api.errors import BUSY, APIError

T = TypeVar("T")
LARGE = 1 << 14  # bytes of a body from which on it waits in a line of its own
IN_LINE = 64  # large bodies that may wait


class Workers:
    """Threads for what requests need before they are decoded. Large bodies wait for each other, not small ones for
    them."""

    def __init__(self) -> None:
        self.quick = ThreadPoolExecutor(4, thread_name_prefix="unmask-quick")
        self.slow = ThreadPoolExecutor(1, thread_name_prefix="unmask-slow")
        self.waiting = 0

    async def do(self, call: Callable[[], T], size: int) -> T:
        """The result of a call for a body of so many bytes."""
        loop = asyncio.get_running_loop()
        if size <= LARGE:
            return await loop.run_in_executor(self.quick, call)
        if self.waiting >= IN_LINE:
            raise APIError(429, "too many large bodies at once; try again later", BUSY, code="queue_full")
        self.waiting += 1
        try:
            return await loop.run_in_executor(self.slow, call)
        finally:
            self.waiting -= 1
