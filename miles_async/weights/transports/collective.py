"""Over NCCL or gloo: the broadcaster is rank 0 of a process group with the engines of a wave, and broadcasts all buckets.

Promises: a group that fails is formed once more, without the engines that are gone; if those that are left still cannot take
the weights, those that refused are out; groups are kept from version to version. With adapters (``learner.lora_rank``) versions
differ in a part of the tensors: engines that have all confirmed an earlier one in the group that they are still in get what has
changed since; whoever joins, comes back, or is sent a version once more gets all of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from miles_async.weights.push import Wave
from miles_async.weights.transports.base import Transport
from miles_async.weights.update import Key, Receiver, Update

if TYPE_CHECKING:
    from miles_async.weights.buckets import Bucket
    from miles_async.weights.changes import Changes
    from miles_async.weights.group import WeightGroup, WeightGroups

_log = logging.getLogger(__name__)


class Collective(Transport):
    """One process group for each wave."""

    KEYS = ("weights.backend", "weights.bucket_mb")
    ASKS_FIRST: ClassVar[bool] = True
    ENGINES_READ: ClassVar[bool] = False

    @cached_property
    def groups(self) -> WeightGroups:
        """The groups in use."""
        from miles_async.weights.group import WeightGroups, choose_backend  # imports torch

        return WeightGroups(choose_backend(self.config))

    @cached_property
    def changes(self) -> Changes:
        """Between the versions that were prepared."""
        from miles_async.weights.changes import Changes  # imports torch

        return Changes()

    async def prepare(self, path: Path, key: Key) -> Update:
        update = await super().prepare(path, key)
        if self.config.learner.lora_rank:  # else everything has changed
            update = replace(update, number=await asyncio.to_thread(self._look, update))
        return update

    def _look(self, update: Update) -> int:
        from miles_async.weights.buckets import unflatten  # imports torch

        return self.changes.see({name: one for bucket in update.buckets for name, one in unflatten(bucket).items()})

    def form(self, waves: Iterable[Sequence[Receiver]]) -> None:
        self.groups.keep_only(waves)

    async def carry(self, wave: Wave, update: Update) -> None:
        """Broadcast to all of the wave; after a failure, once more to those that are left.

        A round that fails although everybody still answers is repeated once; then those that refused are out.
        """
        from miles_async.weights.group import GroupError  # imports torch

        spare_rounds = 1
        while wave.alive:
            members = list(wave.alive)
            group: WeightGroup | None = None
            try:
                group = await self.groups.get(members, wave.phase_s)
                buckets = await self._due(group, update)
                await wave.pause(session=True)
                if len(wave.alive) == len(members):
                    wave.touch()
                    wave.n_bytes = sum(bucket.n_bytes for bucket in buckets)
                    await _send(group, wave, update.version, buckets)
                    await wave.confirm(update.version)
                    group.holds = update.number if len(wave.served) == len(members) else None
                    return
                self.groups.discard(group)
            except GroupError as error:
                _log.warning("version %d: %s", update.version, error)
                if group is not None:
                    self.groups.discard(group)
                await wave.probe()
                if len(wave.alive) == len(members):
                    spare_rounds -= 1
                    if spare_rounds < 0:
                        guilty = [r for r in members if r.name in error.refusals] or members
                        for receiver in guilty:
                            wave.fail(receiver.name, str(error.refusals.get(receiver.name, error)))

    async def _due(self, group: WeightGroup, update: Update) -> tuple[Bucket, ...]:
        """What the group needs of ``update``. Until it has confirmed that, it holds nothing."""
        from miles_async.weights.buckets import make_buckets  # imports torch

        holds, group.holds = group.holds, None
        if not update.follows or holds is None or update.number is None:
            return update.buckets
        changed = self.changes.between(holds, update.number)
        if changed is None:
            return update.buckets
        return tuple(await asyncio.to_thread(make_buckets, changed, self.config.weights.bucket_mb * 1024 * 1024))

    async def close(self) -> None:
        await self.groups.close()


async def _send(group: WeightGroup, wave: Wave, version: int, buckets: Sequence[Bucket]) -> None:
    """The buckets, in order. The last one carries the version and flushes what the old weights cached."""
    config = wave.config
    for number, bucket in enumerate(buckets, 1):
        last = number == len(buckets)
        receive: dict[str, Awaitable[None]] = {
            r.name: r.client.update_from_distributed(
                names=bucket.names,
                dtypes=bucket.dtypes,
                shapes=bucket.shapes,
                group=group.name,
                flush_cache=last and config.pause_mode != "in_place",
                version=str(version) if last else None,
                timeout=wave.phase_s,
            )
            for r in wave.alive
        }
        await group.broadcast(bucket.flat, receive, wave.phase_s)
