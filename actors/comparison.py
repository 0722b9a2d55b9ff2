"""Whether engines have the weights that the broadcaster has just brought them, by the checksums that they are asked for.

Promises: they are asked when ``weights.check_interval`` says so (``weights/check.py``); one that differs is on record with the
first tensor that is wrong, and taken out: it comes back like any engine that was down, with all of the weights.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from actors.announcements import Announcements
from actors.runtime.context import ActorContext
from bus.messages import Snapshot
from miles_async.engines.client import EngineClient, EngineError
from miles_async.engines.kinds.table import kind_of
from miles_async.weights.check import Checks, bucket_sums, engine_sums
from miles_async.weights.fleet import Fleet, Member, key
from miles_async.weights.update import Update


class Comparison:
    """Compares for one broadcaster. ``client`` gives the client of a member of the fleet."""

    def __init__(
        self, ctx: ActorContext, fleet: Fleet, told: Announcements, client: Callable[[Member], EngineClient]
    ) -> None:
        self.ctx, self.fleet, self.told = ctx, fleet, told
        self.config = ctx.config.weights
        self._checks = Checks(self.config.check_interval)
        self._client = client

    async def compare(self, served: Sequence[Member], snapshot: Snapshot, update: Update) -> None:
        """Ask those of ``served`` that are due, and take out those that are wrong."""
        asked = [member for member in served if self._checks.due(member.name, key(snapshot))]
        sums = await self._ask(asked)
        expected = None
        if sums and kind_of(self.ctx.config.engine).SUMS_LIKE_SNAPSHOTS:
            dtype = self.ctx.config.model.dtype
            expected = await asyncio.to_thread(bucket_sums, update.buckets, dtype)
        for name, why in self._checks.judge(key(snapshot), sums, expected).items():
            await self.ctx.event("weights_differ", engine=name, version=snapshot.version, cause=why)
            member = self.fleet.members.get(name)
            if member is not None and (
                member in asked or member.served == key(snapshot)
            ):  # not one of that name since then
                await self.told.down(member, f"version {snapshot.version}: {why}")

    async def _ask(self, members: Sequence[Member]) -> dict[str, dict[str, str]]:
        """The checksums of those that answer; the others are taken out."""
        questions = (engine_sums(self._client(member), self.config.timeout_s) for member in members)
        sums: dict[str, dict[str, str]] = {}
        for member, answer in zip(members, await asyncio.gather(*questions, return_exceptions=True), strict=True):
            if isinstance(answer, EngineError):
                await self.told.down(member, str(answer))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                sums[member.name] = answer
        return sums
