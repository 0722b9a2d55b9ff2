"""Segments: files of recorded groups, appended to, read at random, and whole up to where a crash tore them.

    segment = block, block, ...      block = head, header (who is in it: a list of Entry), body (their payloads, zstd)

Promises: a block that was appended is read back as it was, or named by file and place as damaged; what a crash left of the last
block costs that block alone; to find out who is in a segment no payload is read. No clock.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec
import zstandard

SUFFIX = ".seg"
MAGIC = b"MAR1"  # the format's version is in it
LEVEL = 1  # zstd's: a group of 54 KB takes a fifth of a millisecond
_HEAD = struct.Struct("<4sIIII")  # MAGIC; bytes of header and body; CRC-32 of header and body
_MAX_HEADER = 64 << 20


class SegmentError(ValueError):
    """A segment is not as it was written; the message names the file and the byte."""


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """One group in a block. ``outcome``: "published", or the reason for which a filter refused it; of a learner's block
    "learner_log_probs" (``learner_log_probs.py``)."""

    group_id: str
    lease: str  # the worker that made it, or the learner's process, with its incarnation
    outcome: str
    size: int  # bytes of its payload, before compression


class Place(NamedTuple):
    """Where a payload lies: its block, and within its body."""

    file: Path
    block: int  # bytes from the beginning of the file
    start: int  # bytes from the beginning of the body, before compression
    size: int


def block(items: Sequence[tuple[Entry, bytes]]) -> bytes:
    """The bytes of one block."""
    header = msgspec.msgpack.encode([entry for entry, _ in items])
    body = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(
        b"".join([data for _, data in items])
    )
    return _HEAD.pack(MAGIC, len(header), len(body), zlib.crc32(header), zlib.crc32(body)) + header + body


def scan(file: Path) -> Iterator[tuple[Entry, Place]]:
    """Who is in the segment, in the order of writing, up to what a crash tore. Raises SegmentError, OSError."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        at = 0
        while at < size:
            found = _header(opened, file, at, size)
            if found is None:
                return
            entries, following = found
            start = 0
            for entry in entries:
                yield entry, Place(file, at, start, entry.size)
                start += entry.size
            at = following


def _header(opened: BinaryIO, file: Path, at: int, size: int) -> tuple[list[Entry], int] | None:
    """The entries of the block at ``at``, and where the next one begins; None: a crash tore it, or it is being written."""
    opened.seek(at)
    head = opened.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    magic, header_size, body_size, header_sum, _ = _HEAD.unpack(head)
    following = at + _HEAD.size + header_size + body_size
    if magic == MAGIC and header_size <= _MAX_HEADER and following <= size:
        header = opened.read(header_size)
        if zlib.crc32(header) == header_sum:
            try:
                return msgspec.msgpack.decode(header, type=list[Entry]), following
            except msgspec.DecodeError as error:
                raise SegmentError(f"{file} at byte {at}: its header is none: {error}") from None
    elif magic == MAGIC and header_size <= _MAX_HEADER:
        return None
    opened.seek(at)
    if not opened.read(size - at).strip(b"\0"):  # a power cut can leave a file longer than what was written
        return None
    raise SegmentError(f"{file} is damaged at byte {at}: what is behind it cannot be read")


class Payloads:
    """Payloads by their places; the block that was read last is kept, since its neighbours are asked for next."""

    def __init__(self) -> None:
        self._last: tuple[Path, int] | None = None
        self._body = b""

    def read(self, place: Place) -> bytes:
        """Raises SegmentError, OSError."""
        if self._last != (place.file, place.block):
            self._body, self._last = _body(place.file, place.block), (place.file, place.block)
        return self._body[place.start : place.start + place.size]


def check_body(file: Path, at: int) -> None:
    """Whether the payloads of the block at ``at`` are as they were written. Raises SegmentError, OSError."""
    _packed(file, at)


def _body(file: Path, at: int) -> bytes:
    return zstandard.ZstdDecompressor().decompress(_packed(file, at))


def _packed(file: Path, at: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(at)
        head = opened.read(_HEAD.size)
        if len(head) == _HEAD.size:
            magic, header_size, body_size, _, body_sum = _HEAD.unpack(head)
            opened.seek(header_size, 1)
            packed = opened.read(body_size)
            if magic == MAGIC and len(packed) == body_size and zlib.crc32(packed) == body_sum:
                return packed
    raise SegmentError(
        f"{file} is damaged at byte {at}: its groups do not have the checksum that they were written with"
    )
