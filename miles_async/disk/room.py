"""Whether a disk has room, and a failure for want of it told as what it is: not every library says why it could not write."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIGNS = ("No space left on device", "Disk quota exceeded")
LEAST_BYTES = 1 << 20  # with less a disk is full: what failed may have been larger


def is_full(path: Path) -> bool:
    """Whether the disk of ``path`` has no room for us."""
    try:
        return os.access(path, os.W_OK) and shutil.disk_usage(path).free < LEAST_BYTES
    except OSError:
        return False


@contextmanager
def or_nothing(directory: Path) -> Iterator[None]:
    """Whoever fails inside for want of room leaves no ``directory``, which gives back what it had taken.

    Raises OSError (ENOSPC) then, and else what is raised inside.
    """
    try:
        yield
    except Exception as error:
        if not is_full(directory) and not any(sign in str(error) for sign in SIGNS):
            raise
        shutil.rmtree(directory, ignore_errors=True)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory)) from error
