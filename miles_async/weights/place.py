"""Where a run's snapshots lie in memory, and whose that place is. Importing this file costs no torch.

Promises: a launch holds its place for as long as its process lives, wherever its run directory can be seen from; who holds
a place is alone with it; a place that is held is the one that lies under its name, also where another process removes such
places at that moment.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from pathlib import Path

from miles_async.config.schema import Eval, RunConfig

MEMORY_ROOT = Path("/dev/shm")
PIN_NAME = re.compile(r"eval-i(\d+)-v(\d+)")  # a snapshot kept for an evaluation: incarnation, version
SPARE_PINS = 2  # snapshots that the evaluator has not decided about yet
OWNER_FILE = "run"  # in a place: the run directory, and the lock
PATIENCE_S = 10.0  # who removes what a killed launch left holds its place meanwhile


def in_memory(run_dir: Path) -> Path:
    """The directory in memory that is this run's, whether or not it exists."""
    mark = hashlib.sha1(str(run_dir.resolve()).encode()).hexdigest()[:12]
    return MEMORY_ROOT / f"{_prefix()}{mark}"


def listed(mark: str = "") -> list[Path]:
    """The places of this user, alive or not; those whose names begin with ``mark``, if it is given."""
    try:
        names = sorted(name for name in os.listdir(MEMORY_ROOT) if name.startswith(mark + _prefix()))
    except OSError:
        return []
    return [path for name in names if (path := MEMORY_ROOT / name).is_dir() and _is_ours(path)]


def _prefix() -> str:
    return f"miles_async-{os.getuid()}-"


def _is_ours(path: Path) -> bool:
    return not path.is_symlink() and path.lstat().st_uid == os.getuid()


class Place:
    """The place ``root``, held until :meth:`let_go` or the end of this process."""

    def __init__(self, root: Path, file: int) -> None:
        self.root, self._file = root, file

    @property
    def run_dir(self) -> Path:
        """Whose it is."""
        return Path(os.fsdecode(os.pread(self._file, 1 << 16, 0)))

    def let_go(self) -> None:
        """Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def claim(run_dir: Path) -> Place | None:
    """The place of the run in ``run_dir``, made if need be; None: there is no memory, or the place is not ours to have.

    Raises TimeoutError naming the place.
    """
    root, until = in_memory(run_dir), time.monotonic() + PATIENCE_S
    while MEMORY_ROOT.is_dir():
        try:
            root.mkdir(mode=0o700, exist_ok=True)
            place = hold(root, make=True)
        except (FileNotFoundError, FileExistsError):
            place = None  # it was removed this very moment
        except OSError:
            break
        if place is not None:
            os.ftruncate(place._file, 0)
            os.pwrite(place._file, os.fsencode(run_dir.resolve()), 0)
            return place
        if time.monotonic() > until:
            raise TimeoutError(f"another process did not let go of {root} within {PATIENCE_S:g} s")
        time.sleep(0.02)
    return None


def hold(root: Path, *, make: bool = False) -> Place | None:
    """The place ``root`` if nobody holds it. None: somebody does, or (without ``make``) nobody has said whose it is.

    Raises OSError: it is not ours.
    """
    if root.exists() and not _is_ours(root):
        raise PermissionError(f"{root} belongs to another user")
    owner = root / OWNER_FILE
    try:
        file = os.open(owner, os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if make else 0), 0o600)
    except FileNotFoundError:  # also: it was removed this very moment
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(owner).st_ino == os.fstat(file).st_ino:
            return Place(root, file)
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(file)
    return None


def pins_kept(config: Eval) -> int:
    """How many snapshots are kept for the evaluation at most: those it asks for, and what the learner has just written."""
    return 0 if config.eval_interval is None else config.keep_snapshots + SPARE_PINS


def weight_roots(config: RunConfig, run_dir: Path, model_path: str) -> tuple[Path, ...]:
    """The directories in which an engine of the run may be told to find weights."""
    named = (config.weights.snapshot_dir, config.weights.delta_dir, config.weights.mirror_dir)
    return (run_dir, in_memory(run_dir), *(Path(name) for name in named if name is not None), Path(model_path))
