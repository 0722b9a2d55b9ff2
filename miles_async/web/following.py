"""A file of a run's record, followed while it grows.

Promises: each line is given once, whole, in its order; a file that was replaced, or cut, is begun again, and the caller is
told; a line that cannot be read is left out and named in ``trouble``, and those behind it are read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Generic

from miles_async.monitor.record_lines import Line, decode_line


class Follower(Generic[Line]):
    """``kind``: of the lines of ``path``, which may not be there yet."""

    def __init__(self, path: Path, kind: type[Line]) -> None:
        self.path, self._kind = path, kind
        self.trouble = ""  # the first line that could not be read
        self._inode = self._offset = self._number = 0

    def read(self) -> tuple[bool, list[Line]]:
        """Whether what was read before is void, and the lines that are new. Raises OSError: the file cannot be read."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return self._begin_again(0), []
        with file:
            about = os.fstat(file.fileno())
            inode, size = about.st_ino, about.st_size
            void = self._begin_again(inode) if inode != self._inode or size < self._offset else False
            file.seek(self._offset)
            content = file.read(size - self._offset)
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return void, self._lines(whole)

    def _lines(self, content: bytes) -> list[Line]:
        found: list[Line] = []
        for line in content.split(b"\n")[:-1]:
            self._number += 1
            try:
                found.append(decode_line(line, self._kind))
            except ValueError as error:
                self.trouble = self.trouble or f"{self.path.name} line {self._number} cannot be read: {error}"
        return found

    def _begin_again(self, inode: int) -> bool:
        """Whether anything had been read."""
        void = self._offset > 0
        self._inode, self._offset, self._number, self.trouble = inode, 0, 0, ""
        return void
