"""A grading process: reads requests from its pipe, calls reward functions, writes replies, one at a time.

Promises: a failing reward is an answer, not an end, whatever its exception is or does (also ``sys.exit``; ``os._exit`` is an
end); what returns something else than a reward is named; what a function prints goes to stderr, and what it reads is empty; the
pipes are this process's alone: what a function forks or starts has none of them, and every reply has its request's number; the
process ends with its parent, even while a function holds the interpreter. Started by a guard (``grading_guard.py``) of a
``GradingPool``.
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
from io import TextIOWrapper
from typing import Any, BinaryIO

import msgspec

from miles_async.hooks.calls import name_of
from miles_async.hooks.faults import one_line, place, trace, words
from miles_async.rewards.graded import numbers, numbers_of_group
from miles_async.rewards.registry import RewardConfigError, RewardFunction, resolve_reward
from miles_async.rewards.sample import HEADER_BYTES, GradingReply, GradingRequest, frame
from miles_async.rewards.table import built_in

_PR_SET_PDEATHSIG = 1


class _OfTheFunction(Exception):
    """An ``async`` function has raised what would end the loop."""


def main(parent: int) -> None:
    """Serve until the requests end."""
    _end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's
    own, (source, sink) = os.getpid(), _take_the_pipes()
    decoder = msgspec.msgpack.Decoder(GradingRequest)
    with asyncio.Runner() as runner:  # one loop for all calls: a client session that a function keeps stays usable
        while header := source.read(HEADER_BYTES):
            request = decoder.decode(source.read(int.from_bytes(header, "little")))
            reply = _answer(runner, request)
            if os.getpid() != own:
                os._exit(0)  # a child that a function has forked and that has come back from it
            _write(sink, msgspec.structs.replace(reply, number=request.number))


def _take_the_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Requests and replies, out of the reach of ``input``, ``print`` and of whatever a function starts."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # to print a lone surrogate costs nobody a reward
    return source, sink


def _answer(runner: asyncio.Runner, request: GradingRequest) -> GradingReply:
    own = os.getpid()
    try:
        function = _load(request.function, request.group)
        if not request.samples:
            return GradingReply()
        result = function(request.samples if request.group else request.samples[0])
        if inspect.isawaitable(result):
            result = runner.run(_await(result))
        return _graded(function, request, result)
    except RewardConfigError as error:
        return GradingReply(error=one_line(str(error)))
    except BaseException as error:  # also SystemExit, KeyboardInterrupt, CancelledError: they are the function's own
        cause = error.__cause__ if isinstance(error, _OfTheFunction) and error.__cause__ is not None else error
        if isinstance(cause, SystemExit) and os.getpid() != own:
            raise cause from None  # a child that the function has forked ends as it says
        return _failed(cause)


def _graded(function: RewardFunction, request: GradingRequest, result: Any) -> GradingReply:
    """What ``function`` returned, or that it is no reward."""
    try:
        return GradingReply(numbers_of_group(result, len(request.samples)) if request.group else [numbers(result)])
    except (TypeError, ValueError) as error:
        return GradingReply(error=one_line(f"{name_of(function)}: {error}"))


def _failed(error: BaseException) -> GradingReply:
    return GradingReply(error=words(error), place=place(error), trace=trace(error))


@cache
def _load(name: str, group: bool) -> RewardFunction:
    function = resolve_reward(name, group=group)
    if (entry := built_in(name)) is not None and entry.needs is not None:
        importlib.import_module(entry.needs[0])  # its first call does not pay for that
    return function


async def _await(awaitable: Any) -> Any:
    try:
        return await awaitable
    except (SystemExit, KeyboardInterrupt, asyncio.CancelledError) as error:  # the runner takes these for its own
        raise _OfTheFunction from error


def _write(sink: BinaryIO, reply: GradingReply) -> None:
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
