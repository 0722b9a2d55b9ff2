"""Standard output and error that nobody has to read.

Promises: who reads may go away (``| head``, a closed terminal) or have no room (a full disk) at any moment, and what was
being said is lost then, but nothing else: a run goes on to its end and its exit code, a command ends without a traceback,
and whoever has to know can ask what was lost. A letter that the reader's encoding does not have costs itself, not its line.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO


class Outlet:
    """A text stream in front of another one, whose failures to write are not the writer's."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: Exception | None = None  # why something was not written, unless nobody reads any more

    def write(self, text: str) -> int:
        """All of ``text``, or as much of it as somebody takes; the length of ``text``."""
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:  # nothing of the text has been taken
                self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """What is left in the buffer would fail again when Python ends: it goes where everything is taken."""
        if not isinstance(error, BrokenPipeError):
            self.lost = error
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if isinstance(error, BrokenPipeError):
                os.dup2(nowhere, self._stream.fileno())
            else:  # a disk may have room again: only what could not be written is given up
                kept = os.dup(self._stream.fileno())
                os.dup2(nowhere, self._stream.fileno())
                with contextlib.suppress(OSError, ValueError):
                    self._stream.flush()
                os.dup2(kept, self._stream.fileno())
                os.close(kept)
            os.close(nowhere)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def install() -> None:
    """Put one in the place of ``sys.stdout`` and one in that of ``sys.stderr``."""
    sys.stdout, sys.stderr = Outlet(sys.stdout), Outlet(sys.stderr)  # type: ignore[assignment]
