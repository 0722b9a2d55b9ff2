"""A launch that is kept where its actors are (``placement.launch_restarts``): the command begins it there and follows it.

Promises: the launch that is kept is told so by its environment, and is a launch like any other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from miles_async.cli.again import words
from miles_async.cli.errors import say
from miles_async.config.schema import RunConfig
from miles_async.monitor.summary import last_summary
from miles_async.runs import placements


def is_asked_for(config: RunConfig) -> bool:
    """Whether this process is to have the launch kept, and is not that launch."""
    return config.placement.launch_restarts > 0 and placements.KEPT not in os.environ


def follow(config: RunConfig, config_file: Path, overrides: Sequence[str], run_dir: Path, *, as_json: bool) -> int:
    """To its end; returns its exit code. What it says goes to standard error where a JSON has the other one."""
    keep = placements.load(placements.named(config).keep)
    said = words(config_file.absolute(), overrides, run_dir)
    code = int(keep(config, run_dir, said, sys.stderr if as_json else sys.stdout))
    if as_json and (summary := last_summary(run_dir)) is not None:
        say(summary, "", as_json)
    return code
