"""Whether engines may load weights from a path: the run's own directories, whatever symbolic links say. No torch in here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec


def inside(path: Path | str, roots: Sequence[Path]) -> Path | None:
    """``path`` without its symbolic links; None: it, or a file of it, lies in none of ``roots``."""
    try:
        real, within = Path(path).resolve(), [root.resolve() for root in roots]
        files = [] if real in within else [file.resolve() for file in real.iterdir()]
    except (OSError, ValueError, RuntimeError):  # nothing is there, or links that go in circles
        return None
    lie = all(any(one.is_relative_to(root) for root in within) for one in (real, *files))
    return real if lie else None


class _FromDisk(msgspec.Struct):
    model_path: str


def is_place(body: bytes, roots: Sequence[Path]) -> bool:
    """Whether the ``model_path`` of an ``/update_weights_from_disk`` lies in one of ``roots``."""
    try:
        return inside(msgspec.json.decode(body, type=_FromDisk).model_path, roots) is not None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
