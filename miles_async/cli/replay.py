"""``miles-async replay``: the configuration under which a run's recorded batches are trained again.

Promises: but for what is overridden, the learner's part of it is that of the run's newest launch; what belongs to generating
and to evaluating is left out; a record that cannot be trained again up to the last step, or is of another model, is refused
before anything starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from miles_async.cli.load import check_all, resolve_paths
from miles_async.config import toml
from miles_async.config.schema import ConfigError, Eval, Record, Replay, RunConfig
from miles_async.recording import manifest
from miles_async.recording.reader import RecordedRun
from miles_async.resume.changes import changes
from miles_async.runs import launches, provenance
from miles_async.train.checkpoint import checkpoint_of_step

COMPUTES = ("torch", "megatron-core", "transformers", "numpy", "miles-async")
# what generates has no part in a replay, and these name a server or hold a secret that is not on record
_OWN = (
    "placement.launch_restarts=0",
    "bus.url=none",
    "router.api_key=none",
    "router.admin_key=none",
    "engine.api_key=none",
)


def replayed(run: Path, overrides: Sequence[str], from_step: int, *, read: bool = True) -> RunConfig:
    """``read``: look at all that is to be trained on for damage.

    Raises ConfigError, RecordError, ModelError, CheckpointError: one line each.
    """
    run = run.absolute()
    table = launches.last_config(run)
    if table is None:
        raise ConfigError(f"{run}: no launch is on record here: this is no run's directory")
    record = RecordedRun(run)
    last = f"run.num_steps={record.last_step}"
    config = toml.of_table(table, [*_OWN, last, "run.target_reward=none", *overrides])
    config = msgspec.structs.replace(
        config, eval=Eval(), record=Record(), replay=Replay(run=str(run), from_step=from_step)
    )
    config = resolve_paths(config, Path.cwd())
    check_all(config)
    if config.run.num_steps <= from_step:
        raise ConfigError(
            f"--from {from_step}: nothing is left to train: the last step is run.num_steps = {config.run.num_steps}"
        )
    record.check(from_step + 1, config.run.num_steps)
    manifest.check_model(run, config.model.hf_checkpoint, config.run.seed)
    if from_step:
        checkpoint_of_step(run / "checkpoints", from_step)
    if read:
        record.check_payloads(from_step + 1, config.run.num_steps)
    return config


def differences(run: Path, config: RunConfig) -> list[str]:
    """What is otherwise than in the run, in what decides how its data are trained on; one line each."""
    found = _other_code(run)
    table = launches.last_config(run) or {}
    sections = ("algorithm", "critic", "learner", "model")
    changed = [
        str(change) for change in changes(table, config, begun=False) if change.key.partition(".")[0] in sections
    ]
    if changed:
        changed.append("the data are those of the run's own policy, not of the one that is trained here")
    return found + changed


def _other_code(run: Path) -> list[str]:
    """Packages that losses depend on, where the record says other versions than are installed here."""
    said, now = manifest.read(run), provenance.versions()
    was = {} if said is None else said.packages
    return [
        f"{name} is {now.get(name)}, and was {was[name]}"
        for name in COMPUTES
        if now.get(name) != was.get(name, now.get(name))
    ]
