"""A run's record, read: which groups each step trained on, in their order, and each group as the learner got it.

Promises: nothing is changed; what is missing or damaged is named, with how far a replay can go.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from miles_async.monitor.record_lines import TRANSITIONS_FILE, RecordError, read_transitions
from miles_async.recording.kept import KeptGroups
from miles_async.recording.segments import SegmentError
from miles_async.recording.steps import Attempt, RecordedStep, Steps


class RecordedRun:
    """The record in ``run_dir``. Raises RecordError: there is none, or a file of it is damaged."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        if not (run_dir / TRANSITIONS_FILE).is_file():
            raise RecordError(f"{run_dir}: no run here that has a record (expected {TRANSITIONS_FILE})")
        steps = Steps()
        for line in read_transitions(run_dir):
            steps.add(line)
        self.steps, self._published = steps.recorded, steps.published
        if self.steps and not self.steps[self.last_step].ended:  # the run stopped in it
            del self.steps[self.last_step]
        if not self.steps:
            raise RecordError(f"{run_dir}: no step of this run is on record: there is nothing to train again")
        self._kept = _whole(run_dir)

    @property
    def last_step(self) -> int:
        return max(self.steps)

    def payload(self, group_id: str) -> bytes:
        """The group as it was published, as the bus carried it. Raises RecordError: it is not kept, or damaged."""
        try:
            payload = self._kept.payload(self._key(group_id), self._attempt(group_id).graded)
        except (SegmentError, OSError) as error:
            raise RecordError(f"group {group_id}: {error}") from None
        if payload is None:
            raise RecordError(f"group {group_id} is not in {self._kept.directory}: it was removed, or never written")
        return payload

    def _key(self, group_id: str) -> tuple[str, str]:
        return group_id, self._attempt(group_id).lease

    def _attempt(self, group_id: str) -> Attempt:
        return self._published.get(group_id, Attempt())

    def check(self, first: int, last: int) -> None:
        """Whether the steps ``first`` to ``last`` can be trained again. Raises RecordError for the first that cannot."""
        for step in range(first, last + 1):
            recorded = self.steps.get(step)
            if recorded is None:
                raise RecordError(
                    f"{self.run_dir}: step {step} is not on record; its steps are {min(self.steps)} to {self.last_step}"
                )
            missing = [group_id for group_id in _wanted(recorded) if not self._kept.has(self._key(group_id))]
            if missing:
                raise RecordError(
                    f"{self._kept.directory}: of step {step} {len(missing)} of {len(recorded.groups)} groups are not kept "
                    f"({missing[0]} for one){_up_to(step, first)}"
                )

    def check_payloads(self, first: int, last: int) -> None:
        """Whether what the steps ``first`` to ``last`` train on is as it was written: all of it is read.

        Raises RecordError for the first that is not.
        """
        for step in range(first, last + 1):
            try:
                self._kept.check(self._key(group_id) for group_id in _wanted(self.steps[step]))
            except (SegmentError, OSError) as error:
                raise RecordError(f"step {step}, {error}{_up_to(step, first)}") from None


def _wanted(step: RecordedStep) -> Iterator[str]:
    """The groups that it takes to train the step again."""
    return (group_id for group_id in step.groups if group_id not in step.lost)


def _up_to(step: int, first: int) -> str:
    """How far a replay from ``first`` can go, if ``step`` cannot be trained again."""
    return f"; up to step {step - 1} it can be done: --set run.num_steps={step - 1}" if step > first else ""


def _whole(run_dir: Path) -> KeptGroups:
    """Every group that is kept, published or not. Raises RecordError: none is, or a file is damaged."""
    kept = KeptGroups(run_dir)
    try:
        kept.look()
    except OSError as error:
        raise RecordError(str(error)) from None
    if kept.is_empty:
        raise RecordError(
            f'{kept.directory}: no groups are kept there: the run had record.level = "off", or they were removed'
        )
    if kept.trouble:
        raise RecordError(kept.trouble)
    return kept
