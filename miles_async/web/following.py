"""A file of a run's record, followed while it grows (``monitor/growing.py``), as what its lines say.

Promises: each line is given once, whole, in its order; a file that was replaced, or cut, is begun again, and the caller is
told; a line that cannot be read is left out and named in ``trouble``, and those behind it are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Generic

from miles_async.monitor.growing import GrowingFile
from miles_async.monitor.record_lines import Line, decode_line


class Follower(Generic[Line]):
    """``kind``: of the lines of ``path``, which may not be there yet."""

    def __init__(self, path: Path, kind: type[Line]) -> None:
        self.path, self._kind = path, kind
        self.trouble = ""  # the first line that could not be read
        self._file, self._number = GrowingFile(path), 0

    def read(self) -> tuple[bool, list[Line]]:
        """Whether what was read before is void, and the lines that are new. Raises OSError: the file cannot be read."""
        lines, is_another = self._file.more()
        if is_another:
            self.trouble, self._number = "", 0
        found: list[Line] = []
        for line in lines:
            self._number += 1
            try:
                found.append(decode_line(line, self._kind))
            except ValueError as error:
                self.trouble = self.trouble or f"{self.path.name} line {self._number} cannot be read: {error}"
        return is_another, found
