"""Which groups each step of a run trained on, and where they are kept: its transitions and its record, followed.

Promises: nothing is changed; a group is the attempt that was published; of a step that was recorded twice the last record
counts; what was removed from the record, or is damaged, costs itself, and is named.
"""

from __future__ import annotations

from pathlib import Path

from bus.codec import CodecError, decode
from bus.messages import Group
from miles_async.monitor.record_lines import TRANSITIONS_FILE, TransitionLine
from miles_async.recording.recorder import DIRECTORY
from miles_async.recording.segments import SUFFIX, Payloads, Place, SegmentError, scan
from miles_async.web.following import Follower


class NotKeptError(ValueError):
    """A group, or a step, is not on record, or cannot be read."""


class RecordIndex:
    """Of the run in ``run_dir``. Not to be used by several threads at once."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.trouble = run_dir, ""
        self.steps: dict[int, list[str]] = {}  # the groups of each, in their order
        self._published: dict[str, str] = {}  # the lease that a group was published under
        self._transitions = Follower(run_dir / TRANSITIONS_FILE, TransitionLine)
        self._files: dict[
            Path, tuple[int, dict[tuple[str, str], Place]]
        ] = {}  # bytes that were looked at, and what is there
        self._payloads = Payloads()

    def refresh(self) -> None:
        """Take in what was written since the last time. Raises OSError."""
        void, lines = self._transitions.read()
        if void:
            self.steps, self._published = {}, {}
        for line in lines:
            self._add(line)
        self._look_at_files()

    def _add(self, line: TransitionLine) -> None:
        if line.kind == "published":
            self._published[line.groups[0]] = line.by
        elif line.kind == "batched":
            for step in [step for step in self.steps if step > line.step]:  # a rollback of the ledger
                del self.steps[step]
            self.steps[line.step] = list(line.groups)
        elif line.kind == "extended":
            self.steps.setdefault(line.step, []).extend(line.groups)

    def _look_at_files(self) -> None:
        self.trouble = self._transitions.trouble
        found = dict[Path, int]()
        for file in sorted((self.run_dir / DIRECTORY).glob(f"*{SUFFIX}")):
            try:
                found[file] = file.stat().st_size
            except FileNotFoundError:
                continue  # it has left the record
        for file in self._files.keys() - found.keys():
            del self._files[file]
        for file, size in found.items():
            if file in self._files and self._files[file][0] == size:
                continue
            places: dict[tuple[str, str], Place] = {}
            try:
                places.update(((entry.group_id, entry.lease), place) for entry, place in scan(file))
            except (SegmentError, OSError) as error:
                self.trouble = str(error)
            self._files[file] = size, places

    def group(self, group_id: str) -> Group:
        """The group as it was published. Raises NotKeptError."""
        key = group_id, self._published.get(group_id, "")
        place = next((places[key] for _, places in self._files.values() if key in places), None)
        if place is None:
            kept = "it has left the record" if self._files else 'the run keeps no groups (record.level = "off"?)'
            raise NotKeptError(f"group {group_id} is not kept: {kept}")
        try:
            return decode(self._payloads.read(place), Group)
        except (SegmentError, CodecError, OSError) as error:
            raise NotKeptError(f"group {group_id}: {error}") from None
