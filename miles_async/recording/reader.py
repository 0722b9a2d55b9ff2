"""A run's record, read: which groups each step trained on, in their order, and each group as the learner got it.

Promises: nothing is changed; of a step that was recorded twice (its learner's ledger had lost its end) the last record counts;
a group is the one that was published, not another attempt at it; what is missing or damaged is named, with how far a replay can
go.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from miles_async.monitor.record_lines import TRANSITIONS_FILE, RecordError, TransitionLine, read_transitions
from miles_async.recording.recorder import DIRECTORY
from miles_async.recording.segments import SUFFIX, Payloads, Place, SegmentError, scan

HELD = "held"  # what put_into of the ledger's scripts says of a step that may be extended
LOST = "invalid_payload"  # the reason of a group that was quarantined because its payload was gone (actors/learner_share.py)


@dataclass
class RecordedStep:
    """What a step was recorded with."""

    groups: tuple[str, ...]
    sizes: tuple[int, ...]  # of the batches that it is of, more than one where its weights were held
    ended: bool = True  # whether its weights changed, as far as the record goes
    lost: set[str] = field(default_factory=set)  # of these, those whose payload was gone before the step trained
    max_lag: int | None = None  # that they were chosen under; None: an earlier version of this program did not say
    masks: bool = False  # whether tokens beyond it were left out of the loss


class RecordedRun:
    """The record in ``run_dir``. Raises RecordError: there is none, or a file of it is damaged."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.steps = run_dir, dict[int, RecordedStep]()
        if not (run_dir / TRANSITIONS_FILE).is_file():
            raise RecordError(f"{run_dir}: no run here that has a record (expected {TRANSITIONS_FILE})")
        self._published: dict[str, str] = {}  # under which lease
        for line in read_transitions(run_dir):
            if line.kind == "published":
                self._published[line.groups[0]] = line.by
            elif line.kind == "batched":
                self.steps[line.step] = _begun(line)
            elif line.kind == "extended" and (step := self.steps.get(line.step)) is not None:
                step.groups, step.sizes = (*step.groups, *line.groups), (*step.sizes, len(line.groups))
                step.ended = line.detail != HELD
            elif line.kind == "quarantined" and line.reason == LOST and line.step in self.steps:
                self.steps[line.step].lost.update(line.groups)
        if self.steps and not self.steps[self.last_step].ended:  # the run stopped in it
            del self.steps[self.last_step]
        if not self.steps:
            raise RecordError(f"{run_dir}: no step of this run is on record: there is nothing to train again")
        self._places = self._index()
        self._payloads = Payloads()

    @property
    def last_step(self) -> int:
        return max(self.steps)

    def _index(self) -> dict[tuple[str, str], Place]:
        """Where all groups lie that are kept, published or not. Raises RecordError."""
        directory = self.run_dir / DIRECTORY
        files = sorted(directory.glob(f"*{SUFFIX}"))
        if not files:
            raise RecordError(
                f'{directory}: no groups are kept there: the run had record.level = "off", or they were removed'
            )
        try:
            return {(entry.group_id, entry.lease): place for file in files for entry, place in scan(file)}
        except (SegmentError, OSError) as error:
            raise RecordError(str(error)) from None

    def payload(self, group_id: str) -> bytes:
        """The group as it was published, as the bus carried it. Raises RecordError: it is not kept, or damaged."""
        place = self._places.get((group_id, self._published.get(group_id, "")))
        if place is None:
            raise RecordError(
                f"group {group_id} is not in {self.run_dir / DIRECTORY}: it was removed, or never written"
            )
        try:
            return self._payloads.read(place)
        except (SegmentError, OSError) as error:
            raise RecordError(f"group {group_id}: {error}") from None

    def check(self, first: int, last: int) -> None:
        """Whether the steps ``first`` to ``last`` can be trained again. Raises RecordError for the first that cannot."""
        for step in range(first, last + 1):
            recorded = self.steps.get(step)
            if recorded is None:
                raise RecordError(
                    f"{self.run_dir}: step {step} is not on record; its steps are {min(self.steps)} to {self.last_step}"
                )
            kept = (g for g in recorded.groups if g not in recorded.lost)
            missing = [g for g in kept if (g, self._published.get(g, "")) not in self._places]
            if missing:
                upto = f"; up to step {step - 1} it can be done: --set run.num_steps={step - 1}" if step > first else ""
                raise RecordError(
                    f"{self.run_dir / DIRECTORY}: of step {step} {len(missing)} of {len(recorded.groups)} groups are not kept "
                    f"({missing[0]} for one){upto}"
                )


def _begun(line: TransitionLine) -> RecordedStep:
    """The step as it was recorded first."""
    return RecordedStep(
        line.groups,
        (len(line.groups),),
        ended=line.detail != HELD,
        max_lag=line.max_lag if line.max_lag >= 0 else None,
        masks=line.masked_tokens >= 0,
    )
