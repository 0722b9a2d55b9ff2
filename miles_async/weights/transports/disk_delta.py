"""What has changed, through a directory that all machines share: for engines that no collective reaches.

The broadcaster writes deltas there (``delta_sender.py``); beside each engine a mirror keeps a full copy (``delta_mirror.py``),
which the engine loads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from miles_async.weights.transports.disk import Disk
from miles_async.weights.update import Copies, Key, Update

if TYPE_CHECKING:
    from miles_async.weights.delta_sender import DeltaSender


class DiskDelta(Disk):
    """The transport ``disk``, of copies that mirrors keep."""

    KEYS = ("weights.delta_dir", "weights.mirror_dir")
    COPIED_BY = "the mirrors"
    ENGINES_READ = False

    @cached_property
    def sender(self) -> DeltaSender:
        """The shared directory's files, made when the first version is prepared."""
        from miles_async.weights.delta_mirror import shared_dir  # imports torch
        from miles_async.weights.delta_sender import DeltaSender

        return DeltaSender(shared_dir(self.config, self.run_dir), self.config.weights.timeout_s)

    def beside_engine(self, engine: str) -> AbstractAsyncContextManager[None]:
        """A full copy of the weights on this machine, kept current."""
        from miles_async.weights.delta_mirror import mirrored  # imports torch

        return mirrored(self.config, self.run_dir, engine)

    async def prepare(self, path: Path, key: Key) -> Update:
        update = await super().prepare(path, key)
        await self.sender.offer(path, key)
        return update

    async def deliver(self, engines: Sequence[str]) -> Copies:
        return await self.sender.wait(engines)

    def metrics(self) -> Mapping[str, float]:
        return {"weights/delta_bytes": float(self.sender.file_bytes)}
