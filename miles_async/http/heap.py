"""The memory of a process that carries answers: tens of kilobytes each, many at a time, gone a moment later.

glibc gives the top of the heap back to the system whenever so much of it is free, and the next answers take page faults to
have it again: a third of what an answer of 64 KB costs the router. Python looks for garbage after every 700 new objects, and
requests leave none.
"""

from __future__ import annotations

import ctypes
import gc

KEPT_BYTES = 64 << 20
OBJECTS = 20_000  # new ones before garbage is looked for
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def settle_memory() -> None:
    """Have this process keep up to ``KEPT_BYTES`` that are free (with glibc), and look for garbage rarely."""
    gc.freeze()  # what is imported stays
    gc.set_threshold(OBJECTS)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES // 2)
