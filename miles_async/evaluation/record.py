"""The points of a run on disk, in ``eval/``: what is shown of them, and what a restarted evaluator has to know.

    NAME-VERSION.jsonl   a line for each sample of a dataset (:class:`EvalSample`)
    points.jsonl         a line for each point, made or skipped

Promises: a point is in ``points.jsonl`` only after its samples are whole on disk; a line that a kill tore is cut off.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from miles_async.evaluation.point import Result
from miles_async.runs.points import POINTS_FILE, Point, points
from miles_async.text.unicode import well_formed


class EvalRecord:
    """The files of one run. One evaluator writes at a time."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.points: dict[int, Point] = {}  # the last one of each version
        self._read()

    def add_samples(self, version: int, results: Mapping[str, Result]) -> None:
        """Write the samples of every dataset; those of an earlier attempt at the version are replaced."""
        encoder = msgspec.json.Encoder()
        for name, result in results.items():
            final = self.directory / f"{name}-{version}.jsonl"
            draft = final.with_name(f".{final.name}.partial")
            lines = (encoder.encode(well_formed(msgspec.to_builtins(sample))) for sample in result.samples)
            draft.write_bytes(b"".join(line + b"\n" for line in lines))
            draft.replace(final)

    def add(self, point: Point) -> None:
        """Append ``point``."""
        self.points[point.version] = point
        with (self.directory / POINTS_FILE).open("ab") as file:
            file.write(msgspec.json.encode(point) + b"\n")

    def _read(self) -> None:
        path = self.directory / POINTS_FILE
        content = path.read_bytes() if path.exists() else b""
        whole = content.rpartition(b"\n")[0] + b"\n" if b"\n" in content else b""
        if whole != content:
            os.truncate(path, len(whole))
        for point in points(whole):
            self.points[point.version] = point
