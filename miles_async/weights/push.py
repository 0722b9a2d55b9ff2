"""Bring one wave of engines to one version: pause, begin, update, end, continue.

Promises: nothing is converted or packed while an engine is paused; an engine that was paused is let go on whatever
happens; an engine counts as updated only after ``/model_info`` names the version; an engine that dies costs the others
nothing but the time to form the group again without it; every phase ends by one deadline; a broadcaster that has been
replaced pauses none.

An engine that holds half of an update and cannot be given the rest must not label tokens with the old version: its
requests are aborted before it goes on, and it is reported as failed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from miles_async.config.schema import Weights
from miles_async.disk.fence import before_it_counts
from miles_async.engines.client import EngineError
from miles_async.hooks.daemon_thread import in_thread
from miles_async.weights.update import PushReport, Receiver, Update

RESCUE_TIMEOUT_S = 5.0  # for each call that lets a failed engine go on
PHASE_SHARE = 0.25  # of the deadline, for one phase: an engine that hangs leaves the others time for a second round
_log = logging.getLogger(__name__)

Carry = Callable[["Wave", Update], Awaitable[None]]  # pauses a wave, gives it the weights and has it confirm them


async def probe(receivers: Sequence[Receiver], config: Weights) -> dict[str, str]:
    """The engines that do not answer, and why: in a collective they would hold up all others."""
    wave = Wave(receivers, config)
    await wave.probe()
    return wave.failed


async def push(
    receivers: Sequence[Receiver], update: Update, carry: Carry, config: Weights, *, ask_first: bool = False
) -> PushReport:
    """Update ``receivers`` to ``update``, as ``carry`` does it. Never raises for an engine's sake: which failed is reported.

    ``ask_first``: those that do not answer are left out before anything is paused; else the caller may have done that by
    :func:`probe`.
    """
    started = time.monotonic()
    wave = Wave(receivers, config)
    try:
        async with asyncio.timeout(config.timeout_s):
            if ask_first:
                await wave.probe()
            await carry(wave, update)
            wave.fail_all(f"weights.transport did not have it confirm version {update.version}")
    except TimeoutError:
        wave.fail_all(
            f"the update to version {update.version} took longer than weights.timeout_s = {config.timeout_s:g}"
        )
    finally:
        await asyncio.shield(wave.go_on())
    return PushReport(
        version=update.version,
        n_bytes=update.n_bytes if wave.n_bytes is None else wave.n_bytes,
        seconds=time.monotonic() - started,
        paused_s=wave.paused_s,
        served=tuple(r.name for r in wave.served),
        failed=wave.failed,
    )


class Wave:
    """The engines of one push and what became of them."""

    def __init__(self, receivers: Sequence[Receiver], config: Weights) -> None:
        self.config = config
        self.phase_s = config.timeout_s * PHASE_SHARE
        self.alive = list(receivers)
        self.served: list[Receiver] = []
        self.failed: dict[str, str] = {}
        self.paused_s: dict[str, float] = {}
        self.n_bytes: int | None = None  # sent to each engine, where that is not all of the version
        self._paused: dict[str, tuple[Receiver, float]] = {}
        self._sessions: set[str] = set()
        self._dirty: set[str] = set()

    def fail(self, name: str, why: str) -> None:
        self.failed.setdefault(name, why)
        self.alive = [r for r in self.alive if r.name != name]
        self.served = [r for r in self.served if r.name != name]

    def fail_all(self, why: str) -> None:
        for receiver in list(self.alive):
            if receiver not in self.served:
                self.fail(receiver.name, why)

    async def each(self, call: Callable[[Receiver], Awaitable[object]]) -> None:
        """Do ``call`` for all that are alive, at once; those that fail drop out."""
        members = list(self.alive)
        answers = await asyncio.gather(*(call(r) for r in members), return_exceptions=True)
        for receiver, answer in zip(members, answers, strict=True):
            if isinstance(answer, EngineError):
                self.fail(receiver.name, str(answer))
            elif isinstance(answer, BaseException):
                raise answer

    async def probe(self) -> None:
        """Drop who does not answer."""
        await self.each(lambda r: r.client.model_info(timeout=min(RESCUE_TIMEOUT_S, self.phase_s)))

    async def pause(self, *, session: bool) -> None:
        """Before anything changes there. Whoever has been replaced comes no further."""
        await in_thread(before_it_counts)

        async def one(receiver: Receiver) -> None:
            if receiver.name not in self._paused:
                self._paused[receiver.name] = (receiver, time.monotonic())
                await receiver.client.pause(self.config.pause_mode, timeout=self.phase_s)
            if session and receiver.name not in self._sessions and await receiver.client.begin_update(self.phase_s):
                self._sessions.add(receiver.name)

        await self.each(one)

    def touch(self) -> None:
        """From here on the weights of those alive may be a mixture."""
        self._dirty.update(r.name for r in self.alive)

    async def confirm(self, version: int) -> None:
        """End the sessions and read back the version."""

        async def end(receiver: Receiver) -> None:
            if receiver.name in self._sessions:
                self._sessions.discard(receiver.name)
                await receiver.client.end_update()

        async def one(receiver: Receiver) -> None:
            # the version is that of the last bucket: reading it need not wait for the session's end
            _, info = await asyncio.gather(end(receiver), receiver.client.model_info())
            serves = info.get("weight_version")
            if serves != str(version):
                raise EngineError(
                    receiver.name, "/model_info", f"serves version {serves!r} after an update to {version}"
                )

        await self.each(one)
        for receiver in self.alive:
            self._dirty.discard(receiver.name)
            self.served.append(receiver)

    async def go_on(self) -> None:
        """Let every paused engine go on, the failed ones emptied of what half an update would corrupt."""
        await asyncio.gather(*(self._release(receiver, since) for receiver, since in self._paused.values()))

    async def _release(self, receiver: Receiver, since: float) -> None:
        client, name = receiver.client, receiver.name
        ok = receiver in self.served
        steps: list[Callable[[], Awaitable[None]]] = []
        if name in self._sessions:
            steps.append(lambda: client.end_update(timeout=RESCUE_TIMEOUT_S))
        if name in self._dirty:
            steps.append(lambda: client.abort(abort_all=True, timeout=RESCUE_TIMEOUT_S))
        steps.append(lambda: client.resume(timeout=self.config.timeout_s if ok else RESCUE_TIMEOUT_S))
        for step in steps:
            try:
                await step()
            except EngineError as error:
                _log.debug("letting %s go on: %s", name, error)
                if ok:  # it has the version but does not generate: of no use to anybody
                    self.fail(name, str(error))
                if error.status is None:  # it gave no answer: the next call would not get one either
                    break
        self.paused_s[name] = time.monotonic() - since
