"""A run from its configuration to its end, in this process: what ``launch`` and ``replay`` have in common."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from miles_async.cli.errors import OK, say

if TYPE_CHECKING:
    from miles_async.config.schema import RunConfig

SUPERVISOR = "actors.runtime.supervisor.Supervisor"  # by name: nothing of miles_async imports an actor


def default_run_dir(config_file: Path) -> Path:
    """``runs/<name of the file>-<date and time>``."""
    return Path("runs") / f"{config_file.stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def run_to_its_end(config: RunConfig, directory: Path, as_json: bool) -> int:
    """Train, and say what came of it; the exit code."""
    from miles_async.cli.launch_check import resolve
    from miles_async.monitor import Monitor
    from miles_async.monitor.summary import describe
    from miles_async.runs import placements

    monitor = Monitor(stream=sys.stderr if as_json else sys.stdout)
    placement = placements.load(placements.named(config).placement)(config, directory)
    code = int(resolve(SUPERVISOR)(config, directory, monitor, placement).run())
    summary = monitor.summary
    if summary is not None:
        say(summary, f"{describe(summary)}\nfiles    {directory}", as_json)
        for trouble in [*summary["troubles"], *([monitor.note] if monitor.note else [])]:
            print(f"miles-async: {trouble}", file=sys.stderr)
    if code != OK:
        reason = (summary or {}).get("reason") or f"the run ended with code {code}; see {directory}"
        print(f"miles-async: {reason}", file=sys.stderr)
    return code
