"""Groups in a file, as recording learners leave them: each behind its length (8 bytes, little-endian)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from bus.codec import decode, encode
from bus.messages import Group


def write_groups(file: Path, groups: Iterable[Group]) -> None:
    """Replaces the file."""
    frames = [encode(group) for group in groups]
    file.write_bytes(b"".join(len(frame).to_bytes(8, "little") + frame for frame in frames))


def read_groups(file: Path) -> Iterator[Group]:
    """In the order in which they were written."""
    data, place = file.read_bytes(), 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 8], "little")
        yield decode(data[place + 8 : place + 8 + size], Group)
        place += 8 + size
