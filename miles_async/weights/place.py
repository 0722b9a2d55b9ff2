"""Where a run's snapshots lie in memory, and that they go when the run has ended. Importing this file costs no torch."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

MEMORY_ROOT = Path("/dev/shm")


def in_memory(run_dir: Path) -> Path:
    """The directory in memory that is this run's, whether or not it exists."""
    mark = hashlib.sha1(str(run_dir.resolve()).encode()).hexdigest()[:12]
    return MEMORY_ROOT / f"miles_async-{os.getuid()}-{mark}"


def clear(run_dir: Path) -> None:
    """Give the memory back. Snapshots elsewhere stay: a disk was asked for, or the memory had no room."""
    root = in_memory(run_dir)
    if root.is_dir() and not root.is_symlink():
        shutil.rmtree(root, ignore_errors=True)
