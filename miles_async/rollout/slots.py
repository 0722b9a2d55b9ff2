"""The sample slots of a rollout worker: who is in flight at the engines, who waits for a slot, who has to give one back.

    group begins ─► expected ──asks──► waits for a slot ─► in flight ──tokens have ended──► free
                                             ▲                 │ canceled: aborted at its engine
                                             └──goes on later──┘ with the tokens it has

Promises: no more samples than ``limit`` are in flight, but for a request of more than that, which is alone then, and for a
limit that fell; older groups come before younger ones, also where they were canceled, so that a group that has begun ends; a
sample that was canceled is not said to have been aborted by its engine. One event loop; no I/O.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from msgspec.structs import replace

from bus.messages import UNSAMPLED, Begun
from miles_async.rollout.begun import GroupBegun, VersionsHeard
from miles_async.rollout.bounds import never
from miles_async.rollout.generate import mark_canceled
from miles_async.rollout.interface import Ask
from miles_async.rollout.timing import GroupTimes, Timing


class RolloutRequest:
    """One /generate request on its way. ``group``: of whose prompt group, which an engine may have cached."""

    def __init__(self, body: dict[str, Any], group: str = "", oldest: int = UNSAMPLED) -> None:
        """``oldest``: that a token of its group may be of, at least."""
        self.body, self.group, self.oldest = body, group, oldest

    @property
    def size(self) -> int:
        """How many prompts it is given."""
        prompts = self.body.get("input_ids") or self.body.get("text")
        return len(prompts) if isinstance(prompts, list) and isinstance(prompts[0], list | str) else 1

    @property
    def rids(self) -> list[str]:
        """What the engines know it by."""
        rid = self.body.get("rid") or []
        return [rid] if isinstance(rid, str) else rid

    def rename(self) -> None:
        """Before it is sent again: whoever had it first may still know its name."""
        if rid := self.body.get("rid"):
            self.body = self.body | {"rid": f"{rid}+" if isinstance(rid, str) else [f"{one}+" for one in rid]}


Send = Callable[[RolloutRequest], Awaitable[list[dict[str, Any]]]]


class Slots:
    """All slots of one worker. ``freed`` is set whenever something has changed that may let a group begin."""

    def __init__(
        self,
        limit: int,
        send: Send,
        clock: Callable[[], float] = time.monotonic,
        heard: VersionsHeard | None = None,
        outdated: Callable[[int], bool] = never,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``heard``: with times of ``clock``. ``outdated``: whether a group with a token of that version can be trained no
        more. ``wall``: seconds since the epoch."""
        self._limit, self.send, self.clock, self.outdated, self.wall = limit, send, clock, outdated, wall
        self.heard = heard or VersionsHeard()
        self.in_flight = self.waiting = 0  # samples
        self.canceled = 0  # samples, so far
        self.freed = asyncio.Event()
        self.timing = Timing()
        self.expected = 0  # samples of groups that have begun and not asked for anything yet
        self._held: set[_Slot] = set()
        self._queue: list[tuple[int, int, _Slot]] = []  # a heap, the oldest first
        self._numbers = itertools.count()

    @property
    def limit(self) -> int:
        """Samples that may be in flight."""
        return self._limit

    @limit.setter
    def limit(self, value: int) -> None:
        self._limit = value
        self._grant()
        self.freed.set()

    def room(self, size: int) -> int:
        """How many groups of ``size`` samples may begin; the last of them may have to wait for some of its slots."""
        free = self._limit - self.in_flight - self.waiting - self.expected
        return max(0, -(-free // size))

    def begin(self, size: int, name: str = "") -> GroupSlots:
        """One attempt at the group ``name`` of ``size`` samples, which are counted from here on; ``end`` it in any case."""
        return GroupSlots(self, next(self._numbers), size, name)

    def cancel(self, count: int) -> list[str]:
        """Call back the youngest ``count`` samples (somewhat more where a request holds several).

        Returns the rids to abort; with their answers they give their slots back and wait for new ones.
        """
        rids: list[str] = []
        for slot in sorted(self._held, key=lambda slot: slot.age, reverse=True):
            if count <= 0:
                break
            if slot.requests:
                count -= slot.size
                rids += self._cancel(slot)
        return rids

    def cancel_outdated(self) -> list[str]:
        """Call back the samples whose group may be too old for any step: what they have says whether it is. Else as
        :meth:`cancel`."""
        slots = [slot for slot in self._held if any(self.outdated(request.oldest) for request in slot.requests)]
        return [rid for slot in slots for rid in self._cancel(slot)]

    def _cancel(self, slot: _Slot) -> list[str]:
        self.canceled += 0 if slot.canceled else slot.size
        slot.canceled = True
        return [rid for request in slot.requests for rid in request.rids]

    def take(self, slot: _Slot) -> None:
        """``slot.granted`` is set as soon as there is room for it."""
        heapq.heappush(self._queue, (*slot.age, slot))
        self.waiting += slot.size
        self._grant()

    def leave(self, slot: _Slot) -> None:
        """Forget a slot that is in flight no more, or waits no more."""
        if slot in self._held:
            self._held.remove(slot)
            self.in_flight -= slot.size
            slot.granted.clear()
        else:
            self._queue.remove((*slot.age, slot))
            heapq.heapify(self._queue)
            self.waiting -= slot.size
        self._grant()
        self.freed.set()

    def next_age(self, group: int) -> tuple[int, int]:
        """What the slots of a group are compared by: their groups, then their own order."""
        return group, next(self._numbers)

    def _grant(self) -> None:
        while self._queue:
            slot = self._queue[0][-1]
            if self.in_flight and self.in_flight + slot.size > self._limit:
                return
            heapq.heappop(self._queue)
            self.waiting -= slot.size
            self.in_flight += slot.size
            self._held.add(slot)
            slot.granted.set()


class GroupSlots:
    """What the samples of one group ask through."""

    def __init__(self, slots: Slots, number: int, size: int, name: str) -> None:
        self.name, self.times, self.beginning = name, GroupTimes(), GroupBegun(slots.heard)
        self._slots, self._number, self._size = slots, number, size
        self._expected, self.is_outdated = size, False
        slots.expected += size

    @property
    def begun(self) -> Begun:
        """How far learner and engines were when the group began."""
        found, when = self.beginning.found, self.beginning.first_token
        if when is None:
            return found
        return replace(found, first_token_at=self._slots.wall() - (self._slots.clock() - when))

    def outdated(self, oldest: int) -> bool:
        """Whether the group can be trained no more, having a token of version ``oldest``; that is remembered."""
        self.is_outdated = self.is_outdated or self._slots.outdated(oldest)
        return self.is_outdated

    def end(self) -> None:
        """The attempt is over, in whatever way."""
        self.speaks()
        self._slots.timing.add(self.times, self._size)
        self._slots.freed.set()

    def speaks(self) -> None:
        """Count the samples of the group one by one from here on."""
        self._slots.expected -= self._expected
        self._expected = 0

    async def ask(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Send ``body``; its prompts have slots until the last of them is answered."""
        async with self._slot(RolloutRequest(body).size) as slot:
            sent = self._slots.clock()
            answers = await slot.ask(body)
            self.times.answered(sent, self._slots.clock(), answers)
            return answers

    @contextlib.asynccontextmanager
    async def sample(self) -> AsyncIterator[Ask]:
        """A slot for one sample, from its first token to its last, whatever it does between its requests."""
        async with self._slot(1) as slot:
            began = self._slots.clock()
            yield slot.ask
            self.times.ended(began, self._slots.clock())

    @contextlib.asynccontextmanager
    async def _slot(self, size: int) -> AsyncIterator[_Slot]:
        slot = _Slot(self._slots, self._slots.next_age(self._number), size, self)
        self._slots.take(slot)
        self.speaks()
        try:
            await slot.granted.wait()
            yield slot
        finally:
            slot.closed = True
            self._slots.leave(slot)


class _Slot:
    """The slot of one sample, or of the samples of one request."""

    def __init__(self, slots: Slots, age: tuple[int, int], size: int, group: GroupSlots) -> None:
        self.slots, self.age, self.size, self.group = slots, age, size, group
        self.granted = asyncio.Event()
        self.requests: set[RolloutRequest] = set()
        self.canceled = self.closed = False

    def _oldest(self) -> int:
        """What a token of the group may be of: it has one already, or engines serve it now."""
        served, has = self.slots.heard.engines, self.group.beginning.found.sampled_by
        return min(served if served >= 0 else UNSAMPLED, has if has >= 0 else UNSAMPLED)

    async def ask(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Send ``body``, once there is a slot. Somebody who kept this beyond the sample's end needs none."""
        if not self.closed:
            await self.granted.wait()
        request = RolloutRequest(body, self.group.name, self._oldest())
        self.requests.add(request)
        sent = self.slots.clock()
        self.group.beginning.asks()
        try:
            answers = await self.slots.send(request)
        finally:
            self.requests.remove(request)
        self.group.beginning.answered(sent, self.slots.clock(), answers)
        if self.canceled:
            mark_canceled(answers)
            if not self.requests and not self.closed:
                self.canceled = False
                self.slots.leave(self)
                self.slots.take(self)
        return answers
