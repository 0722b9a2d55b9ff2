"""TensorBoard event files, in the tensorboard package's own format (no torch, no tensorflow)."""

from __future__ import annotations

import itertools
import math
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from miles_async.monitor.appended import Appended
from miles_async.monitor.record_lines import MetricsLine

_files = itertools.count()


class Board:
    """An event file of its own in ``directory``. Raises ImportError: the package is not there; OSError.

    It is written without the package's own writer, whose thread dies of a full disk: :meth:`flush` raises OSError, keeps what
    the disk did not take, and can be repeated.
    """

    def __init__(self, directory: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        # generated classes, which only exist at run time
        self._event: Any = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
        self._summary: Any = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]
        self._log: Any = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_files)}"
        self._file = Appended(directory / name)
        self._records = RecordWriter(self._file)
        self._add(self._event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, line: MetricsLine) -> None:
        values = [
            self._summary.Value(tag=tag(line.actor, name), simple_value=math.nan if value is None else value)
            for name, value in line.values.items()
        ]
        self._add(self._event(wall_time=line.time, step=line.step, summary=self._summary(value=values)))

    def restart(self, step: int, kept: Iterable[MetricsLine]) -> None:
        """Readers forget every point from ``step`` on, also those of earlier files; ``kept``: which of them are true still.

        https://github.com/tensorflow/tensorboard: tensorboard/backend/event_processing/event_accumulator.py,
        ``_CheckForRestartAndMaybePurge``.
        """
        self._add(self._event(step=step, session_log=self._log(status=self._log.START)))
        for line in kept:
            self.add(line)

    def _add(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def tag(actor: str, name: str) -> str:
    """TensorBoard tag of a value: its own group if it has one (``perf/step_time``), else ``train`` or the actor."""
    if "/" in name:
        return name
    return f"train/{name}" if actor.startswith("learner") else f"{actor}/{name}"
