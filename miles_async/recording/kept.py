"""Where the groups of a run lie that its record keeps, also while it grows.

Promises: nothing is changed; a look costs the files that have changed since the last one; what has left the record is not there
any more; of a group that one lease made more than once each is kept, and told from the others; a file that is damaged is named
in ``trouble``, and takes no other one with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bus.codec import CodecError, decode
from bus.messages import Group
from miles_async.recording.learner_log_probs import OUTCOME, OfGroup, newest, read
from miles_async.recording.recorder import DIRECTORY
from miles_async.recording.segments import SUFFIX, Payloads, Place, SegmentError, check_body, scan

Key = tuple[str, str]  # a group's id, and the lease that it was made under; OUTCOME of what the learner adds


class _Seen(NamedTuple):
    """A file as it was looked at."""

    size: int
    places: dict[Key, tuple[Place, ...]]  # as they were written
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
        return bool(self._places(key))

    def check(self, keys: Iterable[Key]) -> None:
        """Whether the payloads of groups that are kept are as they were written: the blocks that they lie in are read.

        Raises SegmentError naming the group, OSError.
        """
        sound = set[tuple[Path, int]]()
        for key in keys:
            for place in self._places(key):
                if (place.file, place.block) in sound:
                    continue
                try:
                    check_body(place.file, place.block)
                except SegmentError as error:
                    raise SegmentError(f"group {key[0]}: {error}") from None
                sound.add((place.file, place.block))

    def payload(self, key: Key, graded: float = 0.0) -> bytes | None:
        """As the bus carried it; None: it is not kept. Raises SegmentError, OSError.

        ``graded``: when its rewards were there, in seconds since the epoch, by which one of several is known. 0: the last one.
        """
        places = self._places(key)
        for place in places if graded and len(places) > 1 else ():
            payload = self._payloads.read(place)
            if _graded(payload) == graded:
                return payload
        return self._payloads.read(places[-1]) if places else None

    def log_probs(self, group_id: str) -> OfGroup | None:
        """The learner's own of the group's tokens; None: they are not kept."""
        try:
            return read(newest(self._places((group_id, OUTCOME))), self._payloads)
        except OSError:  # the file has left the record just now
            return None

    def _places(self, key: Key) -> list[Place]:
        return [place for seen in self._files.values() for place in seen.places.get(key, ())]


def _seen(file: Path, size: int) -> _Seen:
    """Who is in the file, up to where it is damaged."""
    places: dict[Key, tuple[Place, ...]] = {}
    try:
        for entry, place in scan(file):
            key = entry.group_id, OUTCOME if entry.outcome == OUTCOME else entry.lease
            places[key] = (*places.get(key, ()), place)
    except (SegmentError, OSError) as error:
        return _Seen(size, places, str(error))
    return _Seen(size, places, "")


def _graded(payload: bytes) -> float | None:
    """None: it is no group."""
    try:
        return decode(payload, Group).finished
    except CodecError:
        return None
