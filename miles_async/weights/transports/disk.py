"""Through a directory that engines reach: each reads the snapshot itself."""

from __future__ import annotations

from miles_async.weights.push import Wave
from miles_async.weights.transports.base import Transport
from miles_async.weights.update import Update


class Disk(Transport):
    """Every engine reads the snapshot directory itself, or the copy of it on its machine."""

    async def carry(self, wave: Wave, update: Update) -> None:
        await load_from_disk(wave, update)


async def load_from_disk(wave: Wave, update: Update) -> None:
    """Have the engines of ``wave`` load a directory: of ``update.copies`` their own, else ``update.path``."""
    config = wave.config
    await wave.pause(session=False)
    wave.touch()
    await wave.each(
        lambda r: r.client.update_from_disk(
            str(update.copies.get(r.name, update.path)),
            version=str(update.version),
            flush_cache=config.pause_mode != "in_place",
            timeout=config.timeout_s,
        )
    )
    await wave.confirm(update.version)
