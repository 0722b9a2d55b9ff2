"""Which groups each step of a run trained on, and where they are kept: its transitions and its record, followed.

Promises: what a replay reads (``recording/steps.py``, ``recording/kept.py``), read as it is written; what was removed from the
record, or is damaged, costs itself, and is named.
"""

from __future__ import annotations

from pathlib import Path

from bus.codec import CodecError, decode
from bus.messages import Group
from miles_async.monitor.record_lines import TRANSITIONS_FILE, TransitionLine
from miles_async.recording.kept import KeptGroups
from miles_async.recording.learner_log_probs import OfGroup
from miles_async.recording.segments import SegmentError
from miles_async.recording.steps import Attempt, Steps
from miles_async.web.following import Follower


class NotKeptError(ValueError):
    """A group, or a step, is not on record, or cannot be read."""


class RecordIndex:
    """Of the run in ``run_dir``. Not to be used by several threads at once."""

    def __init__(self, run_dir: Path) -> None:
        self._steps, self._kept = Steps(), KeptGroups(run_dir)
        self._transitions = Follower(run_dir / TRANSITIONS_FILE, TransitionLine)

    @property
    def trouble(self) -> str:
        """What cannot be read."""
        return self._kept.trouble or self._transitions.trouble

    def refresh(self) -> None:
        """Take in what was written since the last time. Raises OSError."""
        void, lines = self._transitions.read()
        if void:
            self._steps = Steps()
        for line in lines:
            self._steps.add(line)
        self._kept.look()

    def steps(self) -> list[int]:
        """Those that are on record, in their order."""
        return sorted(self._steps.recorded)

    def trained(self, step: int) -> tuple[str, ...]:
        """The groups that a step of :meth:`steps` trained on, in their order."""
        return self._steps.recorded[step].trained

    def group(self, group_id: str) -> Group:
        """The group as it was published. Raises NotKeptError."""
        attempt = self._steps.published.get(group_id, Attempt())
        try:
            payload = self._kept.payload((group_id, attempt.lease), attempt.graded)
            if payload is not None:
                return decode(payload, Group)
        except (SegmentError, CodecError, OSError) as error:
            raise NotKeptError(f"group {group_id}: {error}") from None
        kept = 'the run keeps no groups (record.level = "off"?)' if self._kept.is_empty else "it has left the record"
        raise NotKeptError(f"group {group_id} is not kept: {kept}")

    def log_probs(self, group_id: str) -> OfGroup | None:
        """The learner's own of its tokens; None: they are not kept."""
        return self._kept.log_probs(group_id)
