"""The heap of a process that carries answers: tens of kilobytes each, many at a time, gone a moment later.

glibc gives the top of the heap back to the system whenever so much of it is free, and the next answers take page faults to
have it again: a third of what an answer of 64 KB costs the router.
"""

from __future__ import annotations

import ctypes

KEPT_BYTES = 64 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_free_memory() -> None:
    """Have up to ``KEPT_BYTES`` of the heap stay with this process when they are free. Elsewhere than in glibc: nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES // 2)
