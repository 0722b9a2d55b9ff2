"""The checksums of a directory's files, in a file that is not pickle: what is read of a checkpoint is verified first.

    checksums.json   {"files": {"common.pt": {"bytes": 23315, "xxh3_64": "9e3f..."}, ...}}

Promises: a file that is missing, shorter, longer or has another byte than when the sums were taken is named; reading takes
one buffer of memory for each thread. XXH3 (0.16 s for a GiB on one core of a laptop) is for damage: who can write here can
write the sums, too.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import xxhash

CHECKSUMS = "checksums.json"
THREADS = 4  # files at once
_BUFFER = 1 << 22


class FileSum(msgspec.Struct, frozen=True):
    """What a file was when its sum was taken."""

    bytes: int
    xxh3_64: str


class Sums(msgspec.Struct, frozen=True):
    """Checksums by path within the directory."""

    files: dict[str, FileSum]


def write(directory: Path) -> None:
    """Take the sums of all files below ``directory``. It should be followed by an fsync of ``checksums.json``."""
    names = [name for name in _files(directory) if name != CHECKSUMS]
    with ThreadPoolExecutor(THREADS) as pool:
        sums = dict(zip(names, pool.map(lambda name: _sum(directory / name), names), strict=True))
    (directory / CHECKSUMS).write_bytes(msgspec.json.format(msgspec.json.encode(Sums(sums))) + b"\n")


def faults(directory: Path) -> list[str] | None:
    """What is not as it was when :func:`write` saw it, a line for each file; None: no sums were written here."""
    try:
        sums = msgspec.json.decode((directory / CHECKSUMS).read_bytes(), type=Sums)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        return [f"{CHECKSUMS} cannot be read ({error})"]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda item: _fault(directory, *item), sums.files.items())
        return [fault for fault in found if fault]


def _fault(directory: Path, name: str, expected: FileSum) -> str:
    path = directory / name
    try:
        if (size := path.stat().st_size) != expected.bytes:
            return f"{name} has {size} bytes instead of {expected.bytes}"
        return "" if _sum(path) == expected else f"{name} has another checksum than when it was written"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error})"


def _sum(path: Path) -> FileSum:
    total, size, buffer = xxhash.xxh3_64(), 0, memoryview(bytearray(_BUFFER))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total.update(buffer[:count])
            size += count
    return FileSum(size, total.hexdigest())


def _files(directory: Path) -> list[str]:
    found = (Path(where) / name for where, _, names in os.walk(directory) for name in names)
    return sorted(str(path.relative_to(directory)) for path in found)
