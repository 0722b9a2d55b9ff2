"""``miles-async launch --dry-run``: what a launch would do, of which nothing is done.

Promises: whatever a launch would refuse is refused by the same checks; every key is shown, with what the run's prompts come
to and what is otherwise than in the launch before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from miles_async.cli.launch_check import read_data
from miles_async.config.schema import RunConfig
from miles_async.config.secrets import masked
from miles_async.config.toml import dump
from miles_async.resume.begin import review


def report(config: RunConfig, run_dir: Path) -> tuple[dict[str, Any], str]:
    """What a launch would be, as a document and for a reader. Raises ConfigError, DataError or TokenizerError."""
    changed, _ = review(config, run_dir)
    prompts = read_data(config)
    said = [f"# {name}: {found}\n" for name, found in prompts.items()]
    said += [f"# {change}, otherwise than in the launch before\n" for change in changed]
    document = {
        "run_dir": str(run_dir),
        "config": msgspec.to_builtins(masked(config)),
        "prompts": {name: {"read": found.read, "left_out": found.left_out} for name, found in prompts.items()},
        "changed": {change.key: {"was": change.was, "now": change.now} for change in changed},
    }
    return document, f"{dump(config)}\n{''.join(said)}# would run in {run_dir}; nothing was started"
