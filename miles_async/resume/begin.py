"""What a launch finds in its run directory, and whether it may go on with it; decided before anything is started.

Promises: what cannot change is refused by key while everything is as it was; a run that is finished is said to be, and so
is how to go on; the configuration and the provenance of each launch are on record before anything of it runs.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miles_async.config.schema import ConfigError, RunConfig
from miles_async.monitor.record_lines import TRANSITIONS_FILE
from miles_async.monitor.summary import is_finished
from miles_async.resume import fork
from miles_async.resume.changes import Change, changes
from miles_async.runs import launches
from miles_async.train.checkpoint import CheckpointError, LearnerState, latest, read_state
from miles_async.train.target_reward import reached

# what a finished run has done with them, a relaunch with other ones has not
DONE_AT_THE_END = ("eval.", "checkpoint.save_hf", "checkpoint.post_save_function")

INPUTS = "inputs"  # of the run directory: what was made locally from these keys
MADE_FROM = ("model.hf_checkpoint", "run.seed")


@dataclass(frozen=True)
class Beginning:
    """A launch that may begin. ``events``: what is to be said of it, as ``(kind, data)``; ``over``: why it need not."""

    events: Sequence[tuple[str, dict[str, Any]]] = ()
    over: str = ""


def begin(config: RunConfig, run_dir: Path, run_id: str, incarnation: int, *, resumed: bool) -> Beginning:
    """Look at what an earlier launch left, and put this one on record. Raises ConfigError, OSError.

    Nothing is written where the launch is refused or the run is over.
    """
    changed, events = review(config, run_dir) if resumed else ([], [])
    state = newest_state(run_dir) if resumed else None
    if over := _over(config, run_dir, state, changed):
        return Beginning(over=over)
    number = launches.add(run_dir, config, run_id, incarnation)
    if any(change.key in MADE_FROM for change in changed):
        shutil.rmtree(run_dir / INPUTS, ignore_errors=True)
    goes_on = ("resumes", {"after_step": state.version if state else 0, "launch": number})
    if not resumed and (origin := fork.read(run_dir)) is not None:
        events = [("forked", {"run": origin.run, "step": origin.step})]
    return Beginning([goes_on, *events] if resumed else events)


def review(config: RunConfig, run_dir: Path) -> tuple[list[Change], list[tuple[str, dict[str, Any]]]]:
    """What is otherwise than in the launch before, and the events that say so. Raises ConfigError: it cannot be.

    Of a directory without a run: nothing.
    """
    state = newest_state(run_dir)
    if state is not None and config.run.num_steps < state.version:
        raise ConfigError(
            f"run.num_steps = {config.run.num_steps}: the run in {run_dir} has done {state.version} steps already; "
            "it counts the steps of the whole run, so give more to go on"
        )
    earlier = launches.last_config(run_dir)
    if earlier is None:
        unknown = f"no launch in {run_dir} has left a configuration that can be read: what has changed is not known"
        return [], [("config_unknown", {"cause": unknown})] if state is not None else []
    found = changes(earlier, config, begun=state is not None or _has_dealt(run_dir))
    return found, [("config_changed", {"key": c.key, "was": c.was, "now": c.now}) for c in found]


def _over(config: RunConfig, run_dir: Path, state: LearnerState | None, changed: Sequence[Change]) -> str:
    """Why there is nothing left to do; empty: there is."""
    if state is None or not is_finished(run_dir) or any(change.key.startswith(DONE_AT_THE_END) for change in changed):
        return ""
    if config.checkpoint.save_hf and not (run_dir / "hf" / "config.json").is_file():
        return ""
    done = f"the run in {run_dir} is finished: {state.version} steps are done"
    if state.version >= config.run.num_steps:
        return f"{done}; to go on, give a higher run.num_steps"
    if reached(state.extra.get("rewards", []), config.run.target_reward):
        return f"{done}, and run.target_reward = {config.run.target_reward:g} is reached; to go on, give a higher one"
    return ""


def _has_dealt(run_dir: Path) -> bool:
    """Whether a prompt has ever been dealt: an earlier launch did not fail before that."""
    try:
        return (run_dir / TRANSITIONS_FILE).stat().st_size > 0
    except FileNotFoundError:
        return False


def newest_state(run_dir: Path) -> LearnerState | None:
    """What the newest checkpoint says; None: there is none, or none that can be read, which is the learner's to say."""
    try:
        found = latest(run_dir / "checkpoints")
        return read_state(found) if found else None
    except (CheckpointError, OSError):
        return None
