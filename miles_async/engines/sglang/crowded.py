"""How long a start has lasted, in the time that its machine had for it.

Promises: where there is a core for everybody who wants one, that is the time by the clock; where four want each, a quarter of
it. So a deadline in this time means the same on a machine that is busy with something else; it is no further than 1 / LEAST
of it by the clock.
"""

from __future__ import annotations

import os
import time

LEAST = 0.05


def share(load: float, cores: int) -> float:
    """What a process gets of a core, of ``cores`` that ``load`` processes want."""
    return max(LEAST, min(1.0, cores / load)) if load > 0 else 1.0


class OwnTime:
    """Seconds since this was made, as above; by the clock in ``by_the_clock``. Right if looked at often."""

    def __init__(self) -> None:
        self._began = self._looked = time.monotonic()
        self._seconds = 0.0

    def look(self) -> float:
        before, self._looked = self._looked, time.monotonic()
        # both are the machine's, also for who may use a part of it
        self._seconds += (self._looked - before) * share(os.getloadavg()[0], os.cpu_count() or 1)
        return self._seconds

    def by_the_clock(self) -> float:
        return time.monotonic() - self._began
