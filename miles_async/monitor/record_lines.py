"""What the files of a run's record hold, and how they are read.

    metrics.jsonl       one line for each report of an actor
    events.jsonl        what happened once
    transitions.jsonl   every transition of the ledger: what ``miles-async inspect`` reads

Promises: a line that a crash tore, or that is being written, is never read; one that cannot be read is named by its file
and number; whatever the monitor writes can be read, also what is not finite; files are streamed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bus.messages import Begun, Metrics, Transition

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
TRANSITIONS_FILE = "transitions.jsonl"
TENSORBOARD_DIR = "tensorboard"

LEARNER = "learner-0"  # the rank that reports for all

_TAIL_BYTES = 1 << 20  # holds the last transition, which may name a whole batch


class RecordError(ValueError):
    """A file of the record is not what it should be; the message names the file and the line."""


class MetricsLine(msgspec.Struct, frozen=True):
    """One line of ``metrics.jsonl``. A value that is not finite is written as null."""

    actor: str
    step: int
    time: float  # seconds since the epoch
    values: dict[str, float | None]


class EventLine(msgspec.Struct, frozen=True):
    """One line of ``events.jsonl``."""

    actor: str
    kind: str
    time: float  # seconds since the epoch
    data: dict[str, Any] = {}
    id: str = ""  # of the entry on the bus; empty for what the supervisor says itself


class TransitionLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of ``transitions.jsonl``: a :class:`bus.messages.Transition`, without what is at its default."""

    id: str  # of the entry on the bus: milliseconds since the epoch, a dash, a number
    kind: str
    groups: tuple[str, ...]
    by: str = ""
    step: int = 0
    reason: str = ""
    detail: str = ""
    attempt: int = 0
    lengths: tuple[int, ...] = ()
    rewards: tuple[float | None, ...] = ()  # null: it was not finite
    versions: tuple[tuple[int, int], ...] = ()  # (weight version, tokens that it sampled)
    max_lag: int = -1  # that the step's groups were chosen under; -1: not on record
    masked_tokens: int = -1  # beyond it, of the whole step so far; -1: there may be none
    begun: Begun = Begun()  # of a group that is published
    generated: float = (
        0.0  # of one: when its last token was there, in seconds since the epoch, by its worker's clock; 0: not said
    )
    graded: float = 0.0  # and when its rewards were

    @property
    def time(self) -> float:
        """Seconds since the epoch, by Redis' clock."""
        return int(self.id.partition("-")[0]) / 1000


def transition_line(entry_id: str, transition: Transition) -> TransitionLine:
    """The line for the entry ``entry_id`` of ``events``."""
    t, group = transition, transition.group
    return TransitionLine(
        entry_id,
        t.kind,
        t.group_ids,
        t.by,
        t.step,
        t.reason,
        t.detail,
        t.attempt,
        group.lengths if group else t.lengths,
        group.rewards if group else (),
        group.versions if group else (),
        t.max_lag,
        t.masked_tokens,
        group.begun if group else Begun(),
        group.generated if group else 0.0,
        group.graded if group else 0.0,
    )


Line = TypeVar("Line", bound=MetricsLine | EventLine | TransitionLine)

KINDS: dict[str, type[MetricsLine | EventLine | TransitionLine]] = {
    METRICS_FILE: MetricsLine,
    EVENTS_FILE: EventLine,
    TRANSITIONS_FILE: TransitionLine,
}


def is_step(line: Metrics | MetricsLine) -> bool:
    """Whether it reports an optimizer step; a step that is trained again is reported again."""
    return line.actor == LEARNER and "raw_reward" in line.values


def read_metrics(run_dir: Path) -> Iterator[MetricsLine]:
    """Lines of the run's metrics, in the order they came. Raises RecordError; nothing if there is no such file."""
    return _read(run_dir / METRICS_FILE, MetricsLine)


def read_events(run_dir: Path) -> Iterator[EventLine]:
    """Lines of the run's events, in the order they came. Raises RecordError; nothing if there is no such file."""
    return _read(run_dir / EVENTS_FILE, EventLine)


def read_transitions(run_dir: Path) -> Iterator[TransitionLine]:
    """The run's transitions, in the order in which the ledger made them. Raises RecordError; nothing if there are none."""
    return _read(run_dir / TRANSITIONS_FILE, TransitionLine)


def latest_metrics(run_dir: Path) -> list[MetricsLine]:
    """The last lines of the run's metrics, some hundreds or thousands, however long it is. Raises RecordError."""
    return _tail(run_dir / METRICS_FILE, MetricsLine)


def entry_order(entry_id: str) -> tuple[int, int]:
    """Entry ids of a stream compare by this."""
    when, _, number = entry_id.partition("-")
    return int(when), int(number or 0)


def last_entry(run_dir: Path) -> str:
    """The id of the newest entry of the bus's ``events`` that the record holds; "0" if it holds none. Raises RecordError."""
    lines = [_tail(run_dir / EVENTS_FILE, EventLine), _tail(run_dir / TRANSITIONS_FILE, TransitionLine)]
    return max((line.id for found in lines for line in found if line.id), key=entry_order, default="0")


def decode_line(line: bytes, kind: type[Line]) -> Line:
    """One whole line of a file. Raises ValueError saying what is wrong with it."""
    try:
        found = msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if not isinstance(found, MetricsLine):
        entry_order(found.id or "0")
    return found


def _tail(path: Path, kind: type[Line]) -> list[Line]:
    """The whole lines among the last ones of ``path``."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        start = max(0, file.seek(0, 2) - _TAIL_BYTES)
        file.seek(start)
        lines = file.read().split(b"\n")
    found: list[Line] = []
    whole = lines[1 if start else 0 : -1]
    for number, line in enumerate(whole):
        try:
            found.append(decode_line(line, kind))
        except ValueError as error:
            raise RecordError(f"{path}, {len(whole) - number} lines before its end: {error}") from None
    return found


def _read(path: Path, kind: type[Line]) -> Iterator[Line]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # torn by a crash, or being written now
            try:
                yield decode_line(line, kind)
            except ValueError as error:
                raise RecordError(f"{path} line {number}: {error}") from None
