"""A Redis that reads its data back after a start: how far it is, and whether it gets on.

Promises: a load has no time limit as long as it makes progress; one that makes none for ``STILL_S`` is an error that says
where it stands; how far it is is told every ``TELL_S``. A server of our own is looked at from
outside: it answers once for each thousand commands that it reads back, which can be gigabytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bus.append_only import appended_to
from bus.errors import NoRedisError, RedisLoadsError

STILL_S = 60.0
TELL_S = 5.0


class Loading(NamedTuple):
    """Bytes that Redis has read back, and has to."""

    loaded: int
    total: int

    def __str__(self) -> str:
        share = 100 * self.loaded / self.total if self.total else 0.0
        return f"redis loads its append-only file: {share:.0f} % of {self.total / 1e6:,.1f} MB"


def loading_of(info: Mapping[str, Any]) -> Loading | None:
    """What ``INFO persistence`` says of a load; None: there is none."""
    if not info.get("loading"):
        return None
    return Loading(int(info.get("loading_loaded_bytes", 0)), int(info.get("loading_total_bytes", 0)))


def reading(pid: int, directory: Path) -> Loading | None:
    """How far the server ``pid`` with its data in ``directory`` is; None: it reads nothing, or it cannot be seen."""
    file = appended_to(directory)
    if file is None:
        return None
    try:  # the place in an open file is known on Linux only
        places = [getattr(f, "position", 0) for f in psutil.Process(pid).open_files() if Path(f.path) == file.resolve()]
    except (psutil.Error, OSError):
        return None
    # one to append to, one to read
    return Loading(max(places), file.stat().st_size) if len(places) > 1 else None


def wait_not(text: str) -> None:
    """A ``tell`` for who does not wait for a load. Raises RedisLoadsError."""
    raise RedisLoadsError(text)


class LoadWatch:
    """Follows one load that somebody waits for; ``tell`` hears how far it is."""

    def __init__(
        self,
        tell: Callable[[str], None] = lambda text: None,
        after_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``tell`` hears of a load that has lasted for ``after_s``."""
        self._tell, self._after_s, self._clock = tell, after_s, clock
        self._loaded = -1
        self._moved_at, self._told_at = 0.0, -TELL_S
        self._began = (0.0, 0)

    def saw(self, loading: Loading) -> None:
        """Raises NoRedisError if nothing was read for ``STILL_S``, and what ``tell`` raises."""
        now, first = self._clock(), self._loaded < 0
        if loading.loaded != self._loaded:
            self._loaded, self._moved_at = loading.loaded, now
        elif now - self._moved_at >= STILL_S:
            raise NoRedisError(f"{loading}, but it has read nothing for {now - self._moved_at:.0f} s")
        if first:
            self._began = (now, loading.loaded)
        if now - self._began[0] >= self._after_s and now - self._told_at >= TELL_S:
            self._told_at = now
            self._tell(f"{loading}{self._left(now, loading)}")

    def _left(self, now: float, loading: Loading) -> str:
        then, loaded = self._began
        if loading.loaded <= loaded or now <= then:
            return ""
        left_s = (loading.total - loading.loaded) * (now - then) / (loading.loaded - loaded)
        return f", about {left_s:.0f} s left"
