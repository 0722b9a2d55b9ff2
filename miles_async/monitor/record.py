"""The record of a run on disk: metrics, events, the ledger's transitions and TensorBoard files, written by one thread.

    metrics.jsonl       one line for each report of an actor
    events.jsonl        what happened once
    transitions.jsonl   every transition of the ledger: what ``miles-async inspect`` reads

Promises: handing a message over costs the caller a queue append and no disk; every message handed over before
``close`` is on disk after it; a line that a crash tore is cut off before the next one is written, and never read; a
full or failing disk ends the record, with its reason in ``error``, and not the run. ``written_entry`` names the last
entry of the bus's ``events`` that is on disk, so that the bus keeps what is not; no entry is written twice.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from bus.messages import Metrics, Transition

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
TRANSITIONS_FILE = "transitions.jsonl"
TENSORBOARD_DIR = "tensorboard"

_FLUSH_S = 0.25  # what a kill of the supervisor can lose
_CLOSE_TIMEOUT_S = 10.0
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
    rewards: tuple[float, ...] = ()
    versions: tuple[tuple[int, int], ...] = ()  # (weight version, tokens that it sampled)

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
    )


Line = TypeVar("Line", MetricsLine, EventLine, TransitionLine)


class RecordWriter:
    """Owns the files of one start of a run; :meth:`add` may be called from an event loop."""

    def __init__(self, run_dir: Path, *, tensorboard: bool, keep: bool) -> None:
        """``keep``: go on behind what the files hold (a resumed run); else they are set aside as ``*.jsonl.old``."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self.error = ""
        self._metrics = _open(run_dir / METRICS_FILE, keep)
        self._events = _open(run_dir / EVENTS_FILE, keep)
        self._transitions = _open(run_dir / TRANSITIONS_FILE, keep)
        self.written_entry = last_entry(run_dir)
        self._tensorboard = run_dir / TENSORBOARD_DIR if tensorboard else None
        self._queue: queue.SimpleQueue[Metrics | EventLine | TransitionLine | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)
        self._thread.start()

    def add(self, message: Metrics | EventLine | TransitionLine) -> None:
        """Hand over one message. Never blocks."""
        self._queue.put(message)

    def close(self) -> None:
        """Write what was handed over and end the thread. Safe to call twice."""
        self._queue.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            self.error = self.error or f"the disk did not take the record within {_CLOSE_TIMEOUT_S:g} s"

    def _run(self) -> None:
        try:
            self._write_until_closed()
        except Exception as error:  # of the disk, or a message that no file takes
            self.error = f"the record ends early: {error}"
            self._forget_until_closed()
        finally:
            for file in (self._metrics, self._events, self._transitions):
                with contextlib.suppress(OSError):
                    file.close()

    def _write_until_closed(self) -> None:
        board = self._open_board()
        encoder = msgspec.json.Encoder()
        open_ = True
        while open_:
            batch, open_ = self._take()
            for message in batch:
                if isinstance(message, Metrics):
                    line = MetricsLine(message.actor, message.step, message.time, dict(message.values))
                    self._metrics.write(encoder.encode(line) + b"\n")
                    if board:
                        board.add(message)
                else:
                    file = self._events if isinstance(message, EventLine) else self._transitions
                    file.write(encoder.encode(message) + b"\n")
            for file in (self._metrics, self._events, self._transitions):
                file.flush()
            self.written_entry = max([self.written_entry, *(_entry(m) for m in batch)], key=entry_order)
            if board:
                board.flush()
        if board:
            board.close()

    def _forget_until_closed(self) -> None:
        """Take what comes all the same: neither this process nor the bus may fill up with it."""
        while (item := self._queue.get()) is not None:
            self.written_entry = max(self.written_entry, _entry(item), key=entry_order)

    def _open_board(self) -> _Board | None:
        try:
            return _Board(self._tensorboard) if self._tensorboard else None
        except ImportError as error:
            self.error = f"no TensorBoard files: {error}"
            return None

    def _take(self) -> tuple[list[Metrics | EventLine | TransitionLine], bool]:
        """What came in within one flush interval after the first message, and whether more may come."""
        batch: list[Metrics | EventLine | TransitionLine] = []
        item = self._queue.get()
        until = time.monotonic() + _FLUSH_S
        while item is not None:
            batch.append(item)
            try:
                item = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return batch, True
        return batch, False


class _Board:
    """TensorBoard event files by the tensorboard package's own writer (no torch, no tensorflow)."""

    def __init__(self, directory: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        # generated classes, which only exist at run time
        self._event = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
        self._summary = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]
        self._writer = EventFileWriter(str(directory), flush_secs=30)

    def add(self, message: Metrics) -> None:
        values = [self._summary.Value(tag=tag(message.actor, k), simple_value=v) for k, v in message.values.items()]
        summary = self._summary(value=values)
        self._writer.add_event(self._event(wall_time=message.time, step=message.step, summary=summary))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def tag(actor: str, name: str) -> str:
    """TensorBoard tag of a value: its own group if it has one (``perf/step_time``), else ``train`` or the actor."""
    if "/" in name:
        return name
    return f"train/{name}" if actor.startswith("learner") else f"{actor}/{name}"


def read_metrics(run_dir: Path) -> Iterator[MetricsLine]:
    """Lines of the run's metrics, in the order they came. Raises RecordError; nothing if there is no such file."""
    return _read(run_dir / METRICS_FILE, MetricsLine)


def read_events(run_dir: Path) -> Iterator[EventLine]:
    """Lines of the run's events, in the order they came. Raises RecordError; nothing if there is no such file."""
    return _read(run_dir / EVENTS_FILE, EventLine)


def read_transitions(run_dir: Path) -> Iterator[TransitionLine]:
    """The run's transitions, in the order in which the ledger made them. Raises RecordError; nothing if there are none."""
    return _read(run_dir / TRANSITIONS_FILE, TransitionLine)


def entry_order(entry_id: str) -> tuple[int, int]:
    """Entry ids of a stream compare by this."""
    when, _, number = entry_id.partition("-")
    return int(when), int(number or 0)


def last_entry(run_dir: Path) -> str:
    """The id of the newest entry of the bus's ``events`` that the record holds; "0" if it holds none."""
    lines = [_tail(run_dir / EVENTS_FILE, EventLine), _tail(run_dir / TRANSITIONS_FILE, TransitionLine)]
    return max((line.id for found in lines for line in found if line.id), key=entry_order, default="0")


def _tail(path: Path, kind: type[Line]) -> list[Line]:
    """The whole lines among the last ones of ``path``."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        start = max(0, file.seek(0, 2) - _TAIL_BYTES)
        file.seek(start)
        lines = file.read().split(b"\n")
    decoder = msgspec.json.Decoder(kind)
    return [decoder.decode(line) for line in lines[1 if start else 0 : -1]]


def _entry(message: Metrics | EventLine | TransitionLine) -> str:
    return "0" if isinstance(message, Metrics) else message.id or "0"


def _read(path: Path, kind: type[Line]) -> Iterator[Line]:
    if not path.exists():
        return
    decoder = msgspec.json.Decoder(kind)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # torn by a crash, or being written now
            try:
                yield decoder.decode(line)
            except msgspec.DecodeError as error:
                raise RecordError(f"{path} line {number}: {error}") from None


def _open(path: Path, keep: bool) -> BinaryIO:
    if not keep and path.exists():
        path.replace(path.with_suffix(".jsonl.old"))
    file = path.open("a+b")
    _cut_torn_line(file)
    return file


def _cut_torn_line(file: BinaryIO) -> None:
    """Cut the file behind its last newline, reading backwards in blocks."""
    end = file.seek(0, 2)
    position = end
    while position:
        start = max(0, position - 65536)
        file.seek(start)
        newline = file.read(position - start).rfind(b"\n")
        if newline >= 0:
            position = start + newline + 1
            break
        position = start
    if position != end:
        file.truncate(position)
