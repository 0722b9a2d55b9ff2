"""The points of a run's evaluation, as ``eval/points.jsonl`` has them: a line for each version, made or skipped.

Promises: reading changes nothing, and passes over a line that is torn.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

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


def known_points(directory: Path) -> frozenset[tuple[int, int]]:
    """Incarnation and version of every point in ``directory``, made or skipped; nothing is changed."""
    path = directory / POINTS_FILE
    content = path.read_bytes() if path.exists() else b""
    return frozenset((point.incarnation, point.version) for point in points(content))


def points(content: bytes) -> Iterator[Point]:
    """Those in the lines of a file."""
    for line in content.splitlines():
        try:
            yield msgspec.json.decode(line, type=Point)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # somebody else's, or torn: the record goes on all the same
