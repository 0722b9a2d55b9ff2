"""The end of an append-only file after a power cut: file systems leave zeros there, which Redis refuses to read.

Promises: only zero bytes are cut off, so that no command is lost and as many zeros make the file what it was.
"""

from __future__ import annotations

import os
from pathlib import Path

_BLOCK = 1 << 20


def appended_to(directory: Path) -> Path | None:
    """The file in ``directory`` that Redis appends to: one file up to 6.2, from 7 on the newest of several."""
    files = [directory / "appendonly.aof", *(directory / "appendonlydir").glob("*.incr.aof")]
    return max((file for file in files if file.is_file()), key=lambda file: file.stat().st_mtime, default=None)


def cut_zeros(path: Path) -> int:
    """Cut off the zero bytes in which ``path`` ends; returns how many."""
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            kept = len(file.read(end - start).rstrip(b"\0"))
            end = start + kept
            if kept:
                break
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())
    return size - end


def put_zeros_back(path: Path, count: int) -> None:
    """Undo :func:`cut_zeros`."""
    os.truncate(path, path.stat().st_size + count)
