"""Who dies of a full disk: whether it was that, and how the supervisor's own small file waits for room.

Promises: a death by a full disk costs no restart of the budget, since only room mends it; the supervisor goes on without its
file, says so once, and writes it again when there is room.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from miles_async.disk.room import SIGNS, is_full
from miles_async.weights.place import MEMORY_ROOT

if TYPE_CHECKING:
    from actors.runtime.home import RunHome
    from actors.runtime.watch import Watch

AGAIN_S = 1.0
RESTART_S = 10.0  # how long one who died of it waits for room


def died_of_it(cause: str, run_dir: Path) -> bool:
    """Whether ``cause`` names a full disk, or one that the run writes to is full now."""
    return any(sign in cause for sign in SIGNS) or any(is_full(path) for path in (run_dir, MEMORY_ROOT))


async def keep_written(home: RunHome, watch: Watch) -> None:
    """Write what the disk did not take of the run's state, until cancelled."""
    told = False
    while True:
        home.write_again()
        if bool(home.unwritten) != told:
            told = bool(home.unwritten)
            if told:
                watch.tell("state_not_written", cause=home.unwritten)
            else:
                watch.tell("state_written")
        await asyncio.sleep(AGAIN_S)
