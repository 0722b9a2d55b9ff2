"""The grading processes of a rollout worker, one call at a time each.

Promises: a call that hangs, raises or kills its process costs that one call; the process is killed with whatever it has
started, and replaced; a process is also replaced after ``max_tasks`` calls, since symbolic mathematics leaks; a function is
imported before the deadline of its first call begins; a reply is that of its own request; nothing outlives ``close``, nor a
worker that is killed (``grading_guard.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from pathlib import Path

import msgspec

from miles_async.rewards.graded import RewardError
from miles_async.rewards.registry import RewardConfigError
from miles_async.rewards.sample import HEADER_BYTES, GradingReply, GradingRequest, frame

MAX_REPLY_BYTES = 1 << 20
STOP_S = 10.0  # what the guard of a process may take to kill what came from it

_GUARD = Path(__file__).with_name("grading_guard.py")


class GradingPool:
    """Up to ``num_processes`` processes, callable from one event loop. Each is started when it is first needed."""

    def __init__(self, num_processes: int, max_tasks: int, start_timeout_s: float) -> None:
        self._places = [_Place(max_tasks, start_timeout_s) for _ in range(num_processes)]
        self._idle: asyncio.Queue[_Place] = asyncio.Queue()
        for place in self._places:
            self._idle.put_nowait(place)

    async def load(self, function: str, *, group: bool) -> None:
        """Start all processes and import ``function`` in them. Raises RewardConfigError: it fails, or takes too long."""
        await asyncio.gather(*(place.load(function, group) for place in self._places))

    async def call(self, request: GradingRequest, timeout_s: float) -> GradingReply:
        """The reply to a request with samples. Raises RewardError past the deadline.

        Waiting for a free process does not count towards the deadline; each call before this one has its own.
        """
        place = await self._idle.get()
        try:
            return await place.call(request, timeout_s)
        finally:
            self._idle.put_nowait(place)

    async def close(self) -> None:
        """End the processes; can be repeated. Calls under way fail."""
        await asyncio.gather(*(place.stop() for place in self._places))


class _Place:
    """One place for a process: started when needed, killed when it fails, then started afresh."""

    def __init__(self, max_tasks: int, start_timeout_s: float) -> None:
        self._max_tasks = max_tasks
        self._start_timeout_s = start_timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._loaded: set[str] = set()  # functions that the process has imported
        self._tasks = 0
        self._numbers = itertools.count(1)  # of requests

    async def load(self, function: str, group: bool) -> None:
        """A process that has imported ``function``. Raises RewardConfigError."""
        if self._process is None:
            await self._start()
        elif function in self._loaded:
            return
        try:
            async with asyncio.timeout(self._start_timeout_s):
                reply = await self._ask(GradingRequest(function, group=group))
        except TimeoutError:
            late = f"its process was not ready after {self._start_timeout_s:g} s"
            raise RewardConfigError(f'reward.rm_type = "{function}": {late}') from None
        if reply.error:
            # a process that died of the import does not know the key
            raise RewardConfigError(reply.error if self._process else f'reward.rm_type = "{function}": {reply.error}')
        self._loaded.add(function)

    async def call(self, request: GradingRequest, timeout_s: float) -> GradingReply:
        """The reply; a process that died answers with an error. Raises RewardError past the deadline."""
        try:
            await self.load(request.function, request.group)
        except RewardConfigError as error:
            return GradingReply(error=str(error))
        try:
            async with asyncio.timeout(timeout_s):
                reply = await self._ask(request)
        except TimeoutError:
            late = f"{request.function} gave no reward within {timeout_s:g} s"
            raise RewardError("reward_timeout", late) from None
        self._tasks += 1
        if self._tasks >= self._max_tasks:
            await self.stop()
        return reply

    async def _start(self) -> None:
        # the same modules as here, and not whatever lies in the working directory (-P)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        environment.setdefault("OMP_NUM_THREADS", "1")
        guard = (sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()))
        grader = (sys.executable, "-P", "-m", "miles_async.rewards.grading_process")
        self._process = await asyncio.create_subprocess_exec(
            *guard,
            *grader,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,  # nothing that is sent to the worker's group reaches it before its grader is ended
        )
        self._loaded, self._tasks = set(), 0

    async def _ask(self, request: GradingRequest) -> GradingReply:
        assert self._process is not None and self._process.stdin is not None
        request = msgspec.structs.replace(request, number=next(self._numbers))
        try:
            # a process that died between two calls shows itself by the end of its output
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._process.stdin.write(frame(request))
                await self._process.stdin.drain()
            reply = await self._read()
            if not reply.error and reply.number != request.number:
                await self.stop()
                return GradingReply(error="the grading process answered another request")
            return reply
        except BaseException:
            await self.stop()  # the answer to a call that was given up must not become that of the next one
            raise

    async def _read(self) -> GradingReply:
        assert self._process is not None and self._process.stdout is not None
        try:
            length = int.from_bytes(await self._process.stdout.readexactly(HEADER_BYTES), "little")
            if length > MAX_REPLY_BYTES:
                raise msgspec.DecodeError(f"{length} bytes")
            return msgspec.msgpack.decode(await self._process.stdout.readexactly(length), type=GradingReply)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            await self.stop()
            return GradingReply(error=f"the grading process wrote what is no reply: {error}")
        except asyncio.IncompleteReadError:
            code = await self._process.wait()
            self._process = None
            how = f"by signal {-code}" if code < 0 else f"with exit status {code}"
            return GradingReply(error=f"the grading process ended {how}")

    async def stop(self) -> None:
        """Kill the process, if there is one, with all that came from it, and wait for its end."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:  # the guard is stopped, or killed what it should not: without it, the grader ends, too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
