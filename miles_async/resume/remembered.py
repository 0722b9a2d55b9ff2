"""Which run a directory is of, where the file that says so is lost."""

from __future__ import annotations

from pathlib import Path

from miles_async.runs import launches
from miles_async.runs.state import RunState
from miles_async.train.checkpoint import CheckpointError, latest, read_state

# how many incarnations a launch may have had whose count is lost: they have to be new, not next to each other
UNKNOWN_RESTARTS = 10_000


def remembered(run_dir: Path) -> RunState | None:
    """Id and incarnation of the run, where the file that says so is lost: from its launches, else from its checkpoint."""
    if (found := next(launches.provenances(run_dir), None)) is not None:
        return RunState(found.run_id, found.incarnation + UNKNOWN_RESTARTS)
    try:
        checkpoint = latest(run_dir / "checkpoints")
        extra = read_state(checkpoint).extra if checkpoint else {}
    except (CheckpointError, OSError):
        return None
    if not isinstance(extra.get("run_id"), str) or not isinstance(extra.get("incarnation"), int):
        return None
    return RunState(extra["run_id"], extra["incarnation"] + UNKNOWN_RESTARTS)
