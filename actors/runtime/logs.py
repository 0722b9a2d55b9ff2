"""Where the processes of a run write what they log: one file for each in the run directory's ``logs/``."""

from __future__ import annotations

import logging
from pathlib import Path

from miles_async.monitor.outlet import Outlet

PRIVATE = 0o077  # a umask: what a run writes is for its owner's eyes


def log_path(run_dir: Path, name: str) -> Path:
    """The log of the process ``name``."""
    return run_dir / "logs" / f"{name}.log"


def log_beside_the_actors(path: Path) -> None:
    """What this process refuses on the bus is in a log of its own, not on the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = logging.getLogger("bus")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    handler = logging.StreamHandler(Outlet(path.open("a", buffering=1)))  # a full disk costs the line
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.propagate = False
