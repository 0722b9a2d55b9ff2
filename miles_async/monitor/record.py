"""The record of a run on disk: ``metrics.jsonl``, ``events.jsonl`` and TensorBoard files, written by one thread.

Promises: handing a message over costs the caller a queue append and no disk; every message handed over before
``close`` is on disk after it; a line that a crash tore is cut off before the next one is written, and never read; a
full or failing disk ends the record, with its reason in ``error``, and not the run.
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

from bus.messages import Event, Metrics

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
TENSORBOARD_DIR = "tensorboard"

_FLUSH_S = 0.25  # what a kill of the supervisor can lose
_CLOSE_TIMEOUT_S = 10.0


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


Line = TypeVar("Line", MetricsLine, EventLine)


class RecordWriter:
    """Owns the files of one start of a run; :meth:`add` may be called from an event loop."""

    def __init__(self, run_dir: Path, *, tensorboard: bool, keep: bool) -> None:
        """``keep``: go on behind what the files hold (a resumed run); else they are set aside as ``*.jsonl.old``."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self.error = ""
        self._metrics = _open(run_dir / METRICS_FILE, keep)
        self._events = _open(run_dir / EVENTS_FILE, keep)
        self._tensorboard = run_dir / TENSORBOARD_DIR if tensorboard else None
        self._queue: queue.SimpleQueue[Metrics | Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)
        self._thread.start()

    def add(self, message: Metrics | Event) -> None:
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
        except OSError as error:
            self.error = f"the record ends early: {error}"
        finally:
            for file in (self._metrics, self._events):
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
                    event = EventLine(message.actor, message.kind, message.time, message.data)
                    self._events.write(encoder.encode(event) + b"\n")
            self._metrics.flush()
            self._events.flush()
            if board:
                board.flush()
        if board:
            board.close()

    def _open_board(self) -> _Board | None:
        try:
            return _Board(self._tensorboard) if self._tensorboard else None
        except ImportError as error:
            self.error = f"no TensorBoard files: {error}"
            return None

    def _take(self) -> tuple[list[Metrics | Event], bool]:
        """What came in within one flush interval after the first message, and whether more may come."""
        batch: list[Metrics | Event] = []
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
