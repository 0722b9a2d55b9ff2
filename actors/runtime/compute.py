"""One thread for blocking compute beside an event loop.

Promises: all calls run in the same thread, one after the other (torch's function modes and CUDA contexts are the thread's);
the loop stays free; a failing call raises at its caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class ComputeThread:
    """``async with ComputeThread("name") as compute: await compute(function, *args)``."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def __aenter__(self) -> ComputeThread:
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(function, *args, **kwargs))
