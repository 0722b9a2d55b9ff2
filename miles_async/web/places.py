"""Which runs the page shows: those directly below one directory, or one run.

Promises: a name that a browser sends stands for a run in that directory or for none; no link and no ``..`` leads out of it;
nothing is opened before that is known.
"""

from __future__ import annotations

from pathlib import Path

from miles_async.monitor.runs_table import found_in
from miles_async.monitor.status import is_run


class PlaceError(ValueError):
    """There is no run of that name."""


class Places:
    """The runs in ``root``, or ``root`` itself where it is one. Raises PlaceError: it is no directory."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise PlaceError(f"{root}: no such directory (expected a run's, or one that holds runs)")
        self.root = root.resolve()
        self.alone = is_run(self.root)  # it is the only one

    def all(self) -> list[Path]:
        """The directories of all runs that are there now, in no order. Raises PlaceError."""
        if self.alone:
            return [self.root]
        try:
            return [path for path in found_in(self.root) if self._is_inside(path)]
        except OSError as error:
            raise PlaceError(f"{self.root} cannot be read: {error.strerror}") from None

    def find(self, name: str) -> Path:
        """The directory of a run. Raises PlaceError: there is none of that name here."""
        if self.alone and name == self.root.name:
            return self.root
        path = self.root / name
        is_name = name not in ("", ".", "..") and "/" not in name and "\0" not in name
        if self.alone or not is_name or not self._is_inside(path) or not is_run(path):
            raise PlaceError(f'no run "{name}" here')
        return path

    def _is_inside(self, path: Path) -> bool:
        """Whether it is what it seems to be: no link to somewhere else."""
        try:
            return path.is_dir() and path.resolve().parent == self.root
        except (OSError, RuntimeError):
            return False
