"""Where the groups of a run lie that its record keeps, also while it grows.

Promises: nothing is changed; a look costs the files that have changed since the last one; what has left the record is not there
any more; a file that is damaged is named in ``trouble``, and takes no other one with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from miles_async.recording.learner_log_probs import OUTCOME, OfGroup, newest, read
from miles_async.recording.recorder import DIRECTORY
from miles_async.recording.segments import SUFFIX, Payloads, Place, SegmentError, check_body, scan

Key = tuple[str, str]  # a group's id, and the lease that it was made under; OUTCOME of what the learner adds


class _Seen(NamedTuple):
    """A file as it was looked at."""

    size: int
    places: dict[Key, Place]
    trouble: str


class KeptGroups:
    """Of the run in ``run_dir``. Not to be used by several threads at once."""

    def __init__(self, run_dir: Path) -> None:
        self.directory = run_dir / DIRECTORY
        self._files: dict[Path, _Seen] = {}
        self._payloads = Payloads()

    @property
    def is_empty(self) -> bool:
        """Whether there is no file at all."""
        return not self._files

    @property
    def trouble(self) -> str:
        """What is wrong with one of the files."""
        return next((seen.trouble for seen in self._files.values() if seen.trouble), "")

    def look(self) -> None:
        """Take in what was written since the last time. Raises OSError."""
        found = dict[Path, int]()
        for file in sorted(self.directory.glob(f"*{SUFFIX}")):
            try:
                found[file] = file.stat().st_size
            except FileNotFoundError:
                continue  # it has left the record
        for file in self._files.keys() - found.keys():
            del self._files[file]
        for file, size in found.items():
            if file not in self._files or self._files[file].size != size:
                self._files[file] = _seen(file, size)

    def has(self, key: Key) -> bool:
        """Whether it is kept."""
        return self._place(key) is not None

    def check(self, keys: Iterable[Key]) -> None:
        """Whether the payloads of groups that are kept are as they were written: the blocks that they lie in are read.

        Raises SegmentError naming the group, OSError.
        """
        sound = set[tuple[Path, int]]()
        for key in keys:
            place = self._place(key)
            if place is None or (place.file, place.block) in sound:
                continue
            try:
                check_body(place.file, place.block)
            except SegmentError as error:
                raise SegmentError(f"group {key[0]}: {error}") from None
            sound.add((place.file, place.block))

    def payload(self, key: Key) -> bytes | None:
        """As the bus carried it; None: it is not kept. Raises SegmentError, OSError."""
        place = self._place(key)
        return None if place is None else self._payloads.read(place)

    def log_probs(self, group_id: str) -> OfGroup | None:
        """The learner's own of the group's tokens; None: they are not kept."""
        added = (seen.places.get((group_id, OUTCOME)) for seen in self._files.values())
        try:
            return read(newest(place for place in added if place is not None), self._payloads)
        except OSError:  # the file has left the record just now
            return None

    def _place(self, key: Key) -> Place | None:
        return next((seen.places[key] for seen in self._files.values() if key in seen.places), None)


def _seen(file: Path, size: int) -> _Seen:
    """Who is in the file, up to where it is damaged."""
    places: dict[Key, Place] = {}
    try:
        for entry, place in scan(file):
            places[entry.group_id, OUTCOME if entry.outcome == OUTCOME else entry.lease] = place
    except (SegmentError, OSError) as error:
        return _Seen(size, places, str(error))
    return _Seen(size, places, "")
