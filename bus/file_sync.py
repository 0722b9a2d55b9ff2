"""The append-only file is brought to the disk every second, by a thread of ours.

Redis could do that itself (``appendfsync everysec``), but while the disk takes its time it keeps what comes meanwhile to
itself, for up to two seconds, and answers all the same: what it has answered is lost when it is killed. Told not to sync, it
hands every command to the operating system before it answers.

Promises: a power cut loses about a second, a killed server nothing; a disk that takes long holds up nobody in this process.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from bus.append_only import appended_to

SYNC_S = 1.0


class FileSync:
    """Of the server whose data is in ``directory``, from :meth:`begin` to :meth:`end`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Safe to call again, for a server that was started again."""
        if self._thread is None:
            self._ended.clear()
            self._thread = threading.Thread(target=self._sync, name="append-only file", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """The server has stopped, and has synced its file itself. A sync that is under way is not waited for."""
        self._ended.set()
        self._thread = None

    def _sync(self) -> None:
        ended, synced = self._ended, (Path(), -1)
        while not ended.wait(SYNC_S):
            with contextlib.suppress(OSError):  # the server says what its disk lacks
                file = appended_to(self._directory)
                if file is None or (file, size := file.stat().st_size) == synced:
                    continue
                number = os.open(file, os.O_RDONLY)
                try:
                    os.fdatasync(number) if hasattr(os, "fdatasync") else os.fsync(number)
                finally:
                    os.close(number)
                synced = (file, size)
