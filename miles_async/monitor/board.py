"""TensorBoard event files by the tensorboard package's own writer (no torch, no tensorflow)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from miles_async.monitor.record_lines import MetricsLine


class Board:
    """The event files in one directory. Raises ImportError: the package is not there."""

    def __init__(self, directory: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        # generated classes, which only exist at run time
        self._event = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
        self._summary = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]
        self._log = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        self._writer = EventFileWriter(str(directory), flush_secs=30)

    def add(self, line: MetricsLine) -> None:
        values = [
            self._summary.Value(tag=tag(line.actor, name), simple_value=math.nan if value is None else value)
            for name, value in line.values.items()
        ]
        summary = self._summary(value=values)
        self._writer.add_event(self._event(wall_time=line.time, step=line.step, summary=summary))

    def restart(self, step: int, kept: Iterable[MetricsLine]) -> None:
        """Readers forget every point from ``step`` on, also those of earlier files; ``kept``: which of them are true still.

        https://github.com/tensorflow/tensorboard: tensorboard/backend/event_processing/event_accumulator.py,
        ``_CheckForRestartAndMaybePurge``.
        """
        self._writer.add_event(self._event(step=step, session_log=self._log(status=self._log.START)))
        for line in kept:
            self.add(line)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def tag(actor: str, name: str) -> str:
    """TensorBoard tag of a value: its own group if it has one (``perf/step_time``), else ``train`` or the actor."""
    if "/" in name:
        return name
    return f"train/{name}" if actor.startswith("learner") else f"{actor}/{name}"
