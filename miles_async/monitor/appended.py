"""A file of the record that is added to, on a disk that may be full for a while.

Promises: what was added is written in its order, and none of it twice, however often the disk refuses; a line that a crash
tore is cut off before the next one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


class Appended:
    """The file ``path``, which is made if it is not there. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._pending = bytearray()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def write(self, content: bytes) -> None:
        """Keep it for the next :meth:`flush`."""
        self._pending += content

    def flush(self) -> None:
        """Raises OSError, and keeps what the disk did not take."""
        while self._pending:
            del self._pending[: os.write(self._file, self._pending)]

    def close(self) -> None:
        os.close(self._file)


def open_lines(path: Path, *, keep: bool) -> Appended:
    """``keep``: go on behind the whole lines that are there; else they are set aside as ``*.old``. Raises OSError."""
    if not keep and path.exists():
        path.replace(path.with_name(path.name + ".old"))
    if path.exists():
        with path.open("r+b") as file:
            _cut_torn_line(file)
    return Appended(path)


def _cut_torn_line(file: BinaryIO) -> None:
    """Cut the file behind its last newline, reading backwards in blocks."""
    end = file.seek(0, 2)
    position = end
    while position:
        start = max(0, position - 65536)
        file.seek(start)
        newline = file.read(position - start).rfind(b"\n")
        if newline >= 0:
            position = start + newline + 1
            break
        position = start
    if position != end:
        file.truncate(position)
