"""Blocking calls that may never return, beside an event loop: both ends of a collective use this."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from miles_async.hooks.faults import words

T = TypeVar("T")


async def in_thread(function: Callable[[], T]) -> T:
    """Run a blocking collective in a daemon thread: unlike an executor's, it cannot hold up the exit of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if not future.done():
            future.set_result(value) if error is None else future.set_exception(error)

    def work() -> None:
        value, error = None, None
        try:
            value = function()
        except BaseException as caught:  # also one that would end the thread without a word
            fits = isinstance(caught, Exception) and not isinstance(caught, StopIteration)  # which no future takes
            error = caught if fits else RuntimeError(words(caught)).with_traceback(caught.__traceback__)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, value, error)
        del error  # it holds this frame: the two would keep the group's connections open until garbage is collected

    threading.Thread(target=work, name="collective", daemon=True).start()
    return await future
