"""The record of a run on disk: metrics, events, the ledger's transitions and TensorBoard files, written by one thread.

    metrics.jsonl       one line for each report of an actor
    events.jsonl        what happened once
    transitions.jsonl   every transition of the ledger: what ``miles-async inspect`` reads

Promises: handing a message over costs the caller a queue append and no disk; every message handed over before
``close`` is on disk after it; a line that a crash tore is cut off before the next one is written, and never read; each
step is in the metrics once, as it was trained last; a full or failing disk is waited for, with its reason in ``trouble``, and
holds up no run: what was handed over is written when there is room. ``written_entry`` names the last entry of the bus's
``events`` that is on disk, and all before it are, so that the bus keeps what is not; no entry is written twice.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from bus.messages import Metrics
from miles_async.monitor.appended import Appended, open_lines
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
_AGAIN_S = 1.0  # how often a full disk is tried
_CLOSE_TIMEOUT_S = 10.0

T = TypeVar("T")


class RecordWriter:
    """Owns the files of one start of a run; :meth:`add` may be called from an event loop."""

    def __init__(self, run_dir: Path, *, tensorboard: bool, keep: bool, last_step: int = 0) -> None:
        """``keep``: go on behind what the files hold (a resumed run), whose last step is ``last_step``; else they are set
        aside as ``*.jsonl.old``. Raises RecordError, OSError."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self.error = ""  # what is not in the record, and why
        self.trouble = ""  # why the disk takes nothing now
        self._run_dir, self._last_step = run_dir, last_step
        self._metrics = open_lines(run_dir / METRICS_FILE, keep=keep)
        self._events = open_lines(run_dir / EVENTS_FILE, keep=keep)
        self._transitions = open_lines(run_dir / TRANSITIONS_FILE, keep=keep)
        self._entries: Appended | None = None  # of the last two, where the last entry went
        self.written_entry = last_entry(run_dir)
        self._tensorboard = run_dir / TENSORBOARD_DIR if tensorboard else None
        self._board: Board | None = None
        self._encoder = msgspec.json.Encoder()
        self._queue: queue.SimpleQueue[Metrics | EventLine | TransitionLine | None] = queue.SimpleQueue()
        self._give_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)
        self._thread.start()

    def add(self, message: Metrics | EventLine | TransitionLine) -> None:
        """Hand over one message. Never blocks."""
        self._queue.put(message)

    @property
    def behind(self) -> int:
        """How many messages wait to be written."""
        return self._queue.qsize()

    def close(self) -> None:
        """Write what was handed over and end the thread. Safe to call twice."""
        self._queue.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            self.error = self.error or f"the disk did not take the record within {_CLOSE_TIMEOUT_S:g} s: {self.trouble}"
            self._give_up.set()

    def _run(self) -> None:
        try:
            self._write_until_closed()
        except Exception as error:  # of a disk that is given up, or a bug: what is not written stays on the bus
            self.error = self.error or f"the record ends early: {error}"
            while self._queue.get() is not None:
                pass
        finally:
            for file in (self._metrics, self._events, self._transitions, self._board):
                if file is not None:
                    with contextlib.suppress(OSError):
                        file.close()

    def _write_until_closed(self) -> None:
        self._board = self._open_board()
        open_ = True
        while open_:
            batch, open_ = self._take()
            for message in batch:
                try:
                    self._take_in(message)
                except (TypeError, ValueError, RecursionError) as error:  # of a message that no file takes
                    self.error = f"the record is without a {type(message).__name__}: {error}"
            self._sure(self._flush)
            self.written_entry = max([self.written_entry, *(_entry(m) for m in batch)], key=entry_order)

    def _take_in(self, message: Metrics | EventLine | TransitionLine) -> None:
        if isinstance(message, Metrics):
            line = MetricsLine(message.actor, message.step, message.time, dict(message.values))
            encoded = self._encoder.encode(line)
            if is_step(message):
                self._go_to(message.step)
            self._metrics.write(encoded + b"\n")
            if self._board:
                self._board.add(line)
            return
        file = self._events if isinstance(message, EventLine) else self._transitions
        encoded = self._encoder.encode(message)
        if self._entries not in (None, file):
            self._sure(self._entries.flush)  # so that what is on disk is never behind what is not
        self._entries = file
        file.write(encoded + b"\n")

    def _go_to(self, step: int) -> None:
        """``step`` comes next: what an earlier life of the learner made of it, and of those behind it, is void."""
        if step <= self._last_step:
            self._sure(self._metrics.flush)
            kept = self._sure(lambda: forget_steps(self._run_dir, step))
            self._metrics.close()
            self._metrics = self._sure(lambda: open_lines(self._run_dir / METRICS_FILE, keep=True))
            if self._board:
                self._board.restart(step, kept)
        self._last_step = step

    def _flush(self) -> None:
        for file in (self._metrics, self._events, self._transitions, self._board):
            if file is not None:
                file.flush()

    def _sure(self, write: Callable[[], T]) -> T:
        """``write``, again and again until the disk takes it. Raises OSError where nobody waits any more."""
        while True:
            try:
                done = write()
            except OSError as error:
                self.trouble = str(error)
                if self._give_up.wait(_AGAIN_S):
                    raise
            else:
                self.trouble = ""
                return done

    def _open_board(self) -> Board | None:
        directory = self._tensorboard
        try:
            return self._sure(lambda: Board(directory)) if directory is not None else None
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
