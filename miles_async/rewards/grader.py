"""Calls the reward function for a rollout worker, each call under its own deadline.

Promises: the event loop never blocks on a grader; a call that hangs, raises or kills its process costs that one sample,
which gets a ``RewardError`` with its reason, and the process is killed and replaced; a process is also replaced after
``max_tasks`` calls, since symbolic mathematics leaks; nothing outlives ``close``.

The cheap built-ins run inline. Everything else runs in ``num_processes`` processes, one call at a time each: an
``async`` function that forgets itself and blocks, or a regular expression that holds the interpreter, cannot be
stopped otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from types import TracebackType
from typing import Self

import msgspec

from miles_async.config import Reward
from miles_async.rewards.registry import INLINE, RewardConfigError
from miles_async.rewards.sample import HEADER_BYTES, Reply, RewardSample, frame

START_TIMEOUT_S = 120.0  # a user's module may import torch on a busy machine
MAX_TASKS = 2000
MAX_REPLY_BYTES = 1 << 20


class RewardError(Exception):
    """A sample has no reward. ``reason`` is "reward_timeout" or "reward_error"; the text says more, on one line."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class Grader:
    """The reward function of a run, callable from one event loop; ``async with`` starts and closes it."""

    def __init__(
        self,
        rm_type: str,
        *,
        timeout_s: float = 10.0,
        num_processes: int = 1,
        max_tasks: int = MAX_TASKS,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self.rm_type = rm_type
        self.timeout_s = timeout_s
        self._inline = INLINE.get(rm_type)
        self._children = [
            _Child(rm_type, max_tasks, start_timeout_s) for _ in range(0 if self._inline is not None else num_processes)
        ]
        self._idle: asyncio.Queue[_Child] = asyncio.Queue()
        for child in self._children:
            self._idle.put_nowait(child)

    @classmethod
    def from_config(cls, config: Reward) -> Self:
        """The grader that a run's ``[reward]`` section asks for."""
        return cls(config.rm_type, timeout_s=config.timeout_s, num_processes=config.num_processes)

    async def start(self) -> None:
        """Start the processes. Raises RewardConfigError: the function cannot be imported, or not in time."""
        try:
            await asyncio.gather(*(child.start() for child in self._children))
        except BaseException:
            await self.close()
            raise

    async def grade(self, sample: RewardSample) -> float:
        """The reward of one sample, finite. Raises RewardError.

        Waiting for a free process does not count towards the deadline; each call before this one has its own.
        """
        if self._inline is not None:
            try:
                return self._inline(sample)
            except Exception as error:
                raise RewardError("reward_error", f"{type(error).__name__}: {error}") from None
        child = await self._idle.get()
        try:
            reply = await child.call(sample, self.timeout_s)
        finally:
            self._idle.put_nowait(child)
        if reply.reward is None:
            raise RewardError("reward_error", reply.error)
        return reply.reward

    async def close(self) -> None:
        """End the processes; can be repeated. Calls under way fail."""
        await asyncio.gather(*(child.stop() for child in self._children))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Child:
    """One place for a grading process: started when needed, killed when it fails, then started afresh."""

    def __init__(self, rm_type: str, max_tasks: int, start_timeout_s: float) -> None:
        self._rm_type = rm_type
        self._max_tasks = max_tasks
        self._start_timeout_s = start_timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._tasks = 0

    async def start(self) -> None:
        """A process that has imported the function. Raises RewardConfigError."""
        # the same modules as here, and not whatever lies in the working directory (-P)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        environment.setdefault("OMP_NUM_THREADS", "1")
        command = (sys.executable, "-P", "-m", "miles_async.rewards.grading_process", self._rm_type, str(os.getpid()))
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment
        )
        self._tasks = 0
        try:
            async with asyncio.timeout(self._start_timeout_s):
                reply = await self._read()
        except TimeoutError:
            await self.stop()
            raise RewardConfigError(
                f'reward.rm_type = "{self._rm_type}": its process was not ready after {self._start_timeout_s:g} s'
            ) from None
        except BaseException:
            await self.stop()
            raise
        if reply.error:
            await self.stop()
            raise RewardConfigError(reply.error)

    async def call(self, sample: RewardSample, timeout_s: float) -> Reply:
        """The answer for one sample; a process that died answers with an error. Raises RewardError past the deadline."""
        if self._process is None:
            try:
                await self.start()
            except RewardConfigError as error:
                return Reply(error=str(error))
        assert self._process is not None and self._process.stdin is not None
        try:
            async with asyncio.timeout(timeout_s):
                # a process that died between two calls shows itself by the end of its output
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self._process.stdin.write(frame(sample))
                    await self._process.stdin.drain()
                reply = await self._read()
        except TimeoutError:
            await self.stop()
            raise RewardError("reward_timeout", f"{self._rm_type} gave no reward within {timeout_s:g} s") from None
        except BaseException:
            await self.stop()  # the answer of a cancelled call must not become that of the next one
            raise
        self._tasks += 1
        if self._tasks >= self._max_tasks:
            await self.stop()
        return reply

    async def _read(self) -> Reply:
        assert self._process is not None and self._process.stdout is not None
        try:
            length = int.from_bytes(await self._process.stdout.readexactly(HEADER_BYTES), "little")
            if length > MAX_REPLY_BYTES:
                raise msgspec.DecodeError(f"{length} bytes")
            return msgspec.msgpack.decode(await self._process.stdout.readexactly(length), type=Reply)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            await self.stop()
            return Reply(error=f"the grading process wrote what is no reply: {error}")
        except asyncio.IncompleteReadError:
            code = await self._process.wait()
            self._process = None
            how = f"by signal {-code}" if code < 0 else f"with exit status {code}"
            return Reply(error=f"the grading process ended {how}")

    async def stop(self) -> None:
        """Kill the process, if there is one, and wait for its end."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()
