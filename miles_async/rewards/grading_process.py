"""A grading process: reads samples from stdin, calls the reward function, writes rewards to stdout, one at a time.

Promises: a failing reward is an answer, not an end; what the function prints goes to stderr; the process ends with its
parent, even while the function holds the interpreter. Started by ``Grader``: ``python -m ... RM_TYPE``.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import inspect
import math
import os
import signal
import sys
from typing import Any, BinaryIO

import msgspec

from miles_async.rewards.registry import NEEDS, RewardConfigError, RewardFunction, resolve_reward
from miles_async.rewards.sample import HEADER_BYTES, Reply, RewardSample, frame

_PR_SET_PDEATHSIG = 1


def main(rm_type: str, parent: int) -> None:
    """Serve until stdin ends."""
    _end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal group; the worker decides
    source = os.fdopen(os.dup(0), "rb")
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        function = resolve_reward(rm_type)
        if rm_type in NEEDS:
            importlib.import_module(NEEDS[rm_type][0])
    except RewardConfigError as error:
        _write(sink, Reply(error=str(error)))
        return
    _write(sink, Reply())
    decoder = msgspec.msgpack.Decoder(RewardSample)
    with asyncio.Runner() as runner:  # one loop for all calls: a client session that the function keeps stays usable
        while header := source.read(HEADER_BYTES):
            sample = decoder.decode(source.read(int.from_bytes(header, "little")))
            _write(sink, _grade(runner, function, sample))


def _grade(runner: asyncio.Runner, function: RewardFunction, sample: RewardSample) -> Reply:
    try:
        result = function(sample)
        if inspect.isawaitable(result):
            result = runner.run(_await(result))
        return Reply(reward=_number(result))
    except Exception as error:
        return Reply(error=f"{type(error).__name__}: {error}".replace("\n", " "))


async def _await(awaitable: Any) -> Any:
    return await awaitable


def _number(result: Any) -> float:
    """``result`` as a finite float; numpy and torch scalars have ``__float__`` too."""
    if isinstance(result, str | bytes) or not hasattr(result, "__float__"):
        raise TypeError(f"a reward must be a number, not {type(result).__name__}")
    value = float(result)
    if not math.isfinite(value):
        raise ValueError(f"a reward must be finite, not {value}")
    return value


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
    main(sys.argv[1], int(sys.argv[2]))
