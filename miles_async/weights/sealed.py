"""A file of weights that says itself whose it is, with a checksum over all of it.

Promises: a file that was cut short, or changed in any byte, has another checksum than the one that it was given when it was
written. That is the SHA-256 of the header (with zeros in the checksum's own place) and of the SHA-256 of each ``CHUNK_BYTES``
behind it, so that several cores share the work. No torch in here.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

CHECKSUM = "checksum"  # in the file's metadata
NO_CHECKSUM = "0" * 64  # in its place until the file is whole
CHUNK_BYTES = 32 << 20
THREADS = 8
MAX_HEADER_BYTES = 1 << 30


class SnapshotError(RuntimeError):
    """A snapshot is missing or is not one."""


def seal(file: Path) -> None:
    """Write a file's checksum into its header, where zeros hold the place."""
    checksum = checksum_of(file)
    with file.open("r+b") as stream:
        place = _header(stream.read(8), stream).find(NO_CHECKSUM.encode())
        stream.seek(8 + place)
        stream.write(checksum.encode())


def checksum_of(file: Path) -> str:
    """Hex digits. Raises SnapshotError: it cannot be read."""
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header_end = 8 + len(_header(data[:8], stream))
            header = data[:header_end]
            said = json.loads(header[8:]).get("__metadata__", {}).get(CHECKSUM, "")
            whole = hashlib.sha256(header.replace(str(said).encode(), NO_CHECKSUM.encode(), 1) if said else header)
            with memoryview(data) as view:
                for part in _digests(view, header_end):
                    whole.update(part)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise SnapshotError(f"cannot read {file}: {error}") from None
    return whole.hexdigest()


def _digests(data: memoryview, first: int) -> list[bytes]:
    """The SHA-256 of each chunk from the byte ``first`` on."""
    starts = range(first, len(data), CHUNK_BYTES)

    def digest(start: int) -> bytes:
        with data[start : start + CHUNK_BYTES] as chunk:
            return hashlib.sha256(chunk).digest()

    if len(starts) < 2:  # to start threads would take longer
        return [digest(start) for start in starts]
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(digest, starts))


def _header(length: bytes, stream: BinaryIO) -> bytes:
    """The JSON text behind the eight bytes of its length. Raises ValueError: the file is cut short."""
    size = int.from_bytes(length, "little")
    stream.seek(8)
    if size > MAX_HEADER_BYTES or len(text := stream.read(size)) != size:
        raise ValueError("it is cut short, or no safetensors file")
    return text


def said_by(file: Path) -> dict[str, str]:
    """The metadata of a file. Raises SnapshotError."""
    try:
        with file.open("rb") as stream:
            header = json.loads(_header(stream.read(8), stream))
        said = header.get("__metadata__", {})
        return {str(name): str(value) for name, value in said.items()}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise SnapshotError(f"cannot read {file}: {error}") from None
