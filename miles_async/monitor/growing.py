"""A file of lines that is being written, read as it grows.

Promises: a line is given once, and only when it is whole; what was read is not read again, but where the file is another one
under the same name (steps that are trained again leave the metrics), and then it is said.
"""

from __future__ import annotations

import os
from pathlib import Path


class GrowingFile:
    """The file ``path``, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._number = self._place = 0

    def more(self) -> tuple[list[bytes], bool]:
        """The whole lines that have come since the last call, without their ends; whether the file is another one than then,
        and these are all of its lines. Raises OSError."""
        try:
            stream = self.path.open("rb")
        except FileNotFoundError:
            return [], False
        with stream:
            about = os.fstat(stream.fileno())
            anew = about.st_ino != self._number or about.st_size < self._place
            is_another = anew and self._number != 0
            if anew:
                self._number, self._place = about.st_ino, 0
            stream.seek(self._place)
            whole, end, _ = stream.read().rpartition(b"\n")
        self._place += len(whole) + len(end)
        return whole.split(b"\n") if end else [], is_another

    def rest(self) -> bytes:
        """What is behind the last whole line, as it is now. Raises OSError."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._place)
                return stream.read()
        except FileNotFoundError:
            return b""
