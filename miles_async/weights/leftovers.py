"""What runs leave of their weights in memory, and that it goes. Importing this file costs no torch.

Promises: nothing of a run that lives is touched; of a run that is dead what may be needed again stays (snapshots that
wait for an evaluation, which a resumed run makes), unless it is asked for; a place goes as a whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path

import msgspec

from miles_async.runs.points import known_points
from miles_async.weights.place import ON_DISK, OWNER_FILE, PIN_NAME, Place, hold, in_memory, listed

EVALUATIONS = "eval"


class Removed(msgspec.Struct, frozen=True):
    """What went from one directory of snapshots."""

    run_dir: str
    place: str
    bytes: int  # given back
    removed: tuple[str, ...]  # snapshots and what else lay there
    kept: tuple[str, ...] = ()  # that wait for an evaluation
    kept_bytes: int = 0


def tidy(
    run_dir: Path,
    *,
    on_disk: bool,
    keep_pins: bool,
    stays: bool = False,
    memory: bool = True,
    shared: Path | None = None,
) -> list[Removed]:
    """Remove what the run in ``run_dir`` has left, which the caller has made sure is not alive, or is the caller's own.

    ``on_disk``: in the run directory, too. ``keep_pins``: not what waits for an evaluation. ``stays``: the places
    themselves remain, for the snapshots to come. ``memory``: in this machine's. ``shared``: a directory that the run's
    machines share.
    """
    roots = [in_memory(run_dir)] if memory else []
    roots += [run_dir / ON_DISK] if on_disk else []
    roots += [] if shared is None else [shared]
    found: list[Removed] = []
    for root in dict.fromkeys(roots):
        if root.is_dir() and not root.is_symlink():
            with contextlib.suppress(FileNotFoundError):  # somebody else removes it at this moment
                found.append(_empty(root, run_dir, keep_pins=keep_pins, stays=stays))
    return found


def sweep(*, keep_pins: bool = True) -> list[Removed]:
    """Remove what launches of this user that do not live any more have left in memory."""
    found: list[Removed] = []
    for doomed in listed("."):  # its removal was interrupted
        shutil.rmtree(doomed, ignore_errors=True)
    for root in listed():
        try:
            place = hold(root)
        except OSError:
            continue
        if place is not None:
            found.append(_sweep(place, keep_pins))
    return [removed for removed in found if removed.removed]


def _sweep(place: Place, keep_pins: bool) -> Removed:
    try:
        return _empty(place.root, place.run_dir, keep_pins=keep_pins)
    finally:
        place.let_go()


def _empty(root: Path, run_dir: Path, *, keep_pins: bool, stays: bool = False) -> Removed:
    kept = _waiting(root, known_points(run_dir / EVALUATIONS)) if keep_pins and run_dir.is_dir() else ()
    goes = sorted(path for path in root.iterdir() if path.name not in (*kept, OWNER_FILE))
    before, kept_bytes = _size([root]), _size([root / name for name in kept])
    if kept or stays:
        for path in goes:
            shutil.rmtree(path, ignore_errors=True)
    else:
        doomed = root.with_name(f".{root.name}.{os.getpid()}")  # its name is free at once
        root.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    names = tuple(path.name for path in goes)
    return Removed(str(run_dir), str(root), before - kept_bytes, names, kept, kept_bytes)


def _waiting(root: Path, known: Collection[tuple[int, int]]) -> tuple[str, ...]:
    """The pins in ``root`` of which there is no point; ``known``: incarnation and version of those there are."""
    pins = [(path.name, found) for path in root.iterdir() if (found := PIN_NAME.fullmatch(path.name))]
    return tuple(sorted(name for name, found in pins if (int(found[1]), int(found[2])) not in known))


def _size(paths: Collection[Path]) -> int:
    """Bytes of all files in ``paths``, one that has several names once."""
    files: dict[int, int] = {}
    for path in paths:
        for file in path.rglob("*"):
            if file.is_file() and not file.is_symlink():
                found = file.stat()
                files[found.st_ino] = found.st_size
    return sum(files.values())
