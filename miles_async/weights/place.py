"""Where a run's snapshots lie in memory, and whose that place is. Importing this file costs no torch.

Promises: a launch holds its place for as long as its process lives, wherever its run directory can be seen from; who holds
a place is alone with it; a place that is held is the one that lies under its name, also where another process removes such
places at that moment. On several machines the processes of a run on one of them share its place there, and who leaves it
last takes it away.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
from pathlib import Path

from miles_async.config.schema import Eval, RunConfig

MEMORY_ROOT = Path("/dev/shm")
PIN_NAME = re.compile(r"eval-i(\d+)-v(\d+)")  # a snapshot kept for an evaluation: incarnation, version
SPARE_PINS = 2  # snapshots that the evaluator has not decided about yet
ON_DISK = "snapshots"  # in the run directory: where they go if memory has no room
OWNER_FILE = "run"  # in a place: the run directory, and the lock
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PATIENCE_S = 10.0  # who removes what a killed launch left holds its place meanwhile


def in_memory(run_dir: Path) -> Path:
    """The directory in memory that is this run's, whether or not it exists."""
    return MEMORY_ROOT / _name(run_dir)


def shared_root(config: RunConfig, run_dir: Path) -> Path:
    """On several machines: the directory for weights on their way that all of them see."""
    chosen = config.placement.shared_dir
    return run_dir / ON_DISK if chosen is None else Path(chosen) / _name(run_dir)


def memory_here() -> str:
    """What names the memory that this process sees, on whatever machine: one boot of it, and a file system of that.

    "": it sees none.
    """
    try:
        return f"{BOOT_ID.read_text().strip()}:{MEMORY_ROOT.stat().st_dev}"
    except OSError:
        return ""


def _name(run_dir: Path) -> str:
    return _prefix() + hashlib.sha1(str(run_dir.resolve()).encode()).hexdigest()[:12]


def listed(mark: str = "") -> list[Path]:
    """The places of this user, alive or not; those whose names begin with ``mark``, if it is given."""
    try:
        names = sorted(name for name in os.listdir(MEMORY_ROOT) if name.startswith(mark + _prefix()))
    except OSError:
        return []
    return [path for name in names if _is_place(path := MEMORY_ROOT / name)]


def _prefix() -> str:
    return f"miles_async-{os.getuid()}-"


def _is_place(path: Path) -> bool:
    try:
        return path.is_dir() and _is_ours(path)
    except OSError:  # somebody else has removed it this very moment
        return False


def _is_ours(path: Path) -> bool:
    return not path.is_symlink() and path.lstat().st_uid == os.getuid()


class Place:
    """The place ``root``, held, or shared, until :meth:`let_go` or the end of this process."""

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

    def leave(self) -> None:
        """Let go; of one that is shared, and that nobody else shares now, nothing is left."""
        with contextlib.suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            doomed = self.root.with_name(f".{self.root.name}.{os.getpid()}")  # its name is free at once
            self.root.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        self.let_go()


def claim(run_dir: Path) -> Place | None:
    """The place of the run in ``run_dir``, made if need be; None: there is no memory, or the place is not ours to have.

    Raises TimeoutError naming the place.
    """
    return _made(run_dir, fcntl.LOCK_EX)


def stay(run_dir: Path) -> Place | None:
    """The same place, shared with the other processes of the run on this machine."""
    return _made(run_dir, fcntl.LOCK_SH)


def _made(run_dir: Path, kind: int) -> Place | None:
    root, until = in_memory(run_dir), time.monotonic() + PATIENCE_S
    while MEMORY_ROOT.is_dir():
        try:
            root.mkdir(mode=0o700, exist_ok=True)
            place = hold(root, make=True, kind=kind)
        except (FileNotFoundError, FileExistsError):
            place = None  # it was removed this very moment
        except OSError:
            break
        if place is not None:
            about = os.fsencode(run_dir.resolve())
            os.pwrite(place._file, about, 0)
            os.ftruncate(place._file, len(about))
            return place
        if time.monotonic() > until:
            raise TimeoutError(f"another process did not let go of {root} within {PATIENCE_S:g} s")
        time.sleep(0.02)
    return None


def hold(root: Path, *, make: bool = False, kind: int = fcntl.LOCK_EX) -> Place | None:
    """The place ``root`` if nobody holds it. None: somebody does, or (without ``make``) nobody has said whose it is.

    ``kind``: LOCK_SH takes it beside others who share it. Raises OSError: it is not ours.
    """
    if root.exists() and not _is_ours(root):
        raise PermissionError(f"{root} belongs to another user")
    owner = root / OWNER_FILE
    try:
        file = os.open(owner, os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if make else 0), 0o600)
    except FileNotFoundError:  # also: it was removed this very moment
        return None
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
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
    ours = (run_dir, in_memory(run_dir), shared_root(config, run_dir))
    return (*ours, *(Path(name) for name in named if name is not None), Path(model_path))
