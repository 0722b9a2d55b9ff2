"""The record of a run on disk: metrics, events, the ledger's transitions and TensorBoard files, written by one thread.

    metrics.jsonl       one line for each report of an actor
    events.jsonl        what happened once
    transitions.jsonl   every transition of the ledger: what ``miles-async inspect`` reads

Promises: handing a message over costs the caller a queue append and no disk; every message handed over before
``close`` is on disk after it; a line that a crash tore is cut off before the next one is written, and never read; each
step is in the metrics once, as it was trained last; a full or failing disk ends the record, with its reason in
``error``, and not the run. ``written_entry`` names the last entry of the bus's ``events`` that is on disk, so that the
bus keeps what is not; no entry is written twice.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from pathlib import Path
from typing import BinaryIO

import msgspec

from bus.messages import Metrics
from miles_async.monitor.board import Board
from miles_async.monitor.record_lines import (
    EVENTS_FILE,
    METRICS_FILE,
    TENSORBOARD_DIR,
    TRANSITIONS_FILE,
    EventLine,
    MetricsLine,
    TransitionLine,
    entry_order,
    is_step,
    last_entry,
)
from miles_async.monitor.record_mend import forget_steps

_FLUSH_S = 0.25  # what a kill of the supervisor can lose
_CLOSE_TIMEOUT_S = 10.0


class RecordWriter:
    """Owns the files of one start of a run; :meth:`add` may be called from an event loop."""

    def __init__(self, run_dir: Path, *, tensorboard: bool, keep: bool, last_step: int = 0) -> None:
        """``keep``: go on behind what the files hold (a resumed run), whose last step is ``last_step``; else they are set
        aside as ``*.jsonl.old``. Raises RecordError, OSError."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self.error = ""
        self._run_dir, self._last_step = run_dir, last_step
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
                    if is_step(message):
                        self._go_to(message.step, board)
                    line = MetricsLine(message.actor, message.step, message.time, dict(message.values))
                    self._metrics.write(encoder.encode(line) + b"\n")
                    if board:
                        board.add(line)
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

    def _go_to(self, step: int, board: Board | None) -> None:
        """``step`` comes next: what an earlier life of the learner made of it, and of those behind it, is void."""
        if step <= self._last_step:
            self._metrics.close()
            kept = forget_steps(self._run_dir, step)
            self._metrics = _open(self._run_dir / METRICS_FILE, keep=True)
            if board:
                board.restart(step, kept)
        self._last_step = step

    def _forget_until_closed(self) -> None:
        """Take what comes all the same: neither this process nor the bus may fill up with it."""
        while (item := self._queue.get()) is not None:
            self.written_entry = max(self.written_entry, _entry(item), key=entry_order)

    def _open_board(self) -> Board | None:
        try:
            return Board(self._tensorboard) if self._tensorboard else None
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


def _entry(message: Metrics | EventLine | TransitionLine) -> str:
    return "0" if isinstance(message, Metrics) else message.id or "0"


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
