"""A grading process: reads requests from stdin, calls reward functions, writes replies to stdout, one at a time.

Promises: a failing reward is an answer, not an end; what a function prints goes to stderr; the process ends with its
parent, even while a function holds the interpreter. Started by ``GradingPool``: ``python -m ... PARENT_PID``.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import inspect
import os
import signal
import sys
from functools import cache
from typing import Any, BinaryIO

import msgspec

from miles_async.rewards import boxed
from miles_async.rewards.graded import numbers, numbers_of_group
from miles_async.rewards.registry import NEEDS, RewardConfigError, RewardFunction, resolve_reward
from miles_async.rewards.sample import HEADER_BYTES, Reply, Request, frame

_PR_SET_PDEATHSIG = 1


def main(parent: int) -> None:
    """Serve until stdin ends."""
    _end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal group; the worker decides
    source = os.fdopen(os.dup(0), "rb")
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    decoder = msgspec.msgpack.Decoder(Request)
    with asyncio.Runner() as runner:  # one loop for all calls: a client session that a function keeps stays usable
        while header := source.read(HEADER_BYTES):
            request = decoder.decode(source.read(int.from_bytes(header, "little")))
            _write(sink, _answer(runner, request))


def _answer(runner: asyncio.Runner, request: Request) -> Reply:
    try:
        function = _load(request.function, request.group)
        if not request.samples:
            return Reply()
        result = function(request.samples if request.group else request.samples[0])
        if inspect.isawaitable(result):
            result = runner.run(_await(result))
        return Reply(numbers_of_group(result, len(request.samples)) if request.group else [numbers(result)])
    except RewardConfigError as error:
        return Reply(error=str(error))
    except Exception as error:
        return Reply(error=f"{type(error).__name__}: {error}".replace("\n", " "))


@cache
def _load(name: str, group: bool) -> RewardFunction:
    function = resolve_reward(name, group=group)
    if needed := NEEDS.get(name.removeprefix(boxed.PREFIX)):
        importlib.import_module(needed[0])
    return function


async def _await(awaitable: Any) -> Any:
    return await awaitable


def _write(sink: BinaryIO, reply: Reply) -> None:
    sink.write(frame(reply))
    sink.flush()


def _end_with_parent(parent: int) -> None:
    """Die with the parent (Linux). Elsewhere the end of stdin does it, once the current call returns."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call above
            os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
