"""Over NCCL or gloo: the broadcaster is rank 0 of a process group with the engines of a wave, and broadcasts all buckets.

Promises: a group that fails is formed once more, without the engines that are gone; if those that are left still cannot take
the weights, those that refused are out; groups are kept from version to version.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from miles_async.weights.push import Wave
from miles_async.weights.transports.base import Transport
from miles_async.weights.update import Receiver, Update

if TYPE_CHECKING:
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
                await wave.pause(session=True)
                if len(wave.alive) == len(members):
                    wave.touch()
                    await _send(group, wave, update)
                    await wave.confirm(update.version)
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

    async def close(self) -> None:
        await self.groups.close()


async def _send(group: WeightGroup, wave: Wave, update: Update) -> None:
    """All buckets, in order. The last one carries the version and flushes what the old weights cached."""
    config = wave.config
    for number, bucket in enumerate(update.buckets, 1):
        last = number == len(update.buckets)
        receive: dict[str, Awaitable[None]] = {
            r.name: r.client.update_from_distributed(
                names=bucket.names,
                dtypes=bucket.dtypes,
                shapes=bucket.shapes,
                group=group.name,
                flush_cache=last and config.pause_mode != "in_place",
                version=str(update.version) if last else None,
                timeout=wave.phase_s,
            )
            for r in wave.alive
        }
        await group.broadcast(bucket.flat, receive, wave.phase_s)
