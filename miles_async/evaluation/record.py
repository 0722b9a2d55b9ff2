"""The points of a run on disk, in ``eval/``: what is shown of them, and what a restarted evaluator has to know.

    NAME-VERSION.jsonl   a line for each sample of a dataset (:class:`EvalSample`)
    points.jsonl         a line for each point, made or skipped

Promises: a point is in ``points.jsonl`` only after its samples are whole on disk; a line that a kill tore is cut off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from miles_async.evaluation.point import Result
from miles_async.unicode_text import well_formed

POINTS_FILE = "points.jsonl"
MADE = "made"


class Point(msgspec.Struct, frozen=True):
    """One version: ``outcome`` is "made", or why it was skipped ("busy", "gone", "crashed", "refused", ...)."""

    version: int
    incarnation: int  # of the learner that made the weights
    outcome: str
    time: float  # seconds since the epoch
    metrics: dict[str, float | None] = {}  # null: it was not finite
    cause: str = ""  # of a skip


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
        for point in _points(whole):
            self.points[point.version] = point


def known_points(directory: Path) -> frozenset[tuple[int, int]]:
    """Incarnation and version of every point in ``directory``, made or skipped; nothing is changed."""
    path = directory / POINTS_FILE
    content = path.read_bytes() if path.exists() else b""
    return frozenset((point.incarnation, point.version) for point in _points(content))


def _points(content: bytes) -> Iterator[Point]:
    for line in content.splitlines():
        try:
            yield msgspec.json.decode(line, type=Point)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # somebody else's, or torn: the record goes on all the same
