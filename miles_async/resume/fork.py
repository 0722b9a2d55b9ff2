"""A run that begins with the weights of another one's checkpoint: which, and where it keeps them.

    RUN_DIR/forked/from.json   whose weights they are; written when they are there
    RUN_DIR/forked/model/      a Hugging Face directory, in the place of model.hf_checkpoint

Promises: what a run began with it keeps for good, whatever becomes of the other run; a run that began otherwise is never made a
fork. Of the other run nothing is kept but the policy's weights, as its export of that step has them, and its tokenizer: the
optimizer, a critic, versions, prompts and the ledger start over. Importing this costs no torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from miles_async.config import toml
from miles_async.config.schema import ConfigError
from miles_async.disk.durable import write_whole
from miles_async.runs.launches import CONFIG_FILE
from miles_async.runs.state import STATE_FILE
from miles_async.train import checkpoint

OPTION = "--from"
DIRECTORY, MODEL, FROM = "forked", "model", "from.json"


class Origin(msgspec.Struct, frozen=True):
    """What the weights of a fork are."""

    run: str  # the directory of the run
    step: int
    checkpoint: str
    model: str  # what that run began with: its model.hf_checkpoint


def origin(run_dir: Path, wanted: str | None) -> Origin | None:
    """What the run in ``run_dir`` began with, or begins with if it is not there yet; ``wanted``: RUN or RUN@STEP.

    None: with its own model.hf_checkpoint. Raises ConfigError, CheckpointError.
    """
    kept = read(run_dir)
    if wanted is None:
        return kept
    run, step = _parse(wanted)
    if kept is not None:
        if Path(kept.run) != run or step not in (None, kept.step):
            raise ConfigError(f"{OPTION} {wanted}: the run in {run_dir} began with {kept.run}@{kept.step}")
        return kept
    if (run_dir / STATE_FILE).exists():
        raise ConfigError(
            f"{OPTION} {wanted}: there is a run in {run_dir} already, which began otherwise: give another --run-dir"
        )
    return _find(wanted, run, step)


def read(run_dir: Path) -> Origin | None:
    """What the run that is there began with; None: it is no fork. Raises ConfigError: the file is damaged."""
    path = run_dir / DIRECTORY / FROM
    try:
        return msgspec.json.decode(path.read_bytes(), type=Origin)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from None


def model_of(run_dir: Path) -> Path:
    """The Hugging Face directory of a fork."""
    return run_dir / DIRECTORY / MODEL


def keep(run_dir: Path, found: Origin, convert: Callable[[Path, Path], None]) -> None:
    """Have ``convert`` (checkpoint, directory) write the weights, unless they are there; what it leaves half done goes."""
    if read(run_dir) is not None:
        return
    is_new, place = not run_dir.exists(), run_dir / DIRECTORY
    shutil.rmtree(place, ignore_errors=True)  # of a launch that was killed meanwhile
    place.mkdir(mode=0o700, parents=True)
    try:
        convert(Path(found.checkpoint), place / MODEL)
        write_whole(place / FROM, msgspec.json.encode(found))
    except BaseException:
        shutil.rmtree(run_dir if is_new else place, ignore_errors=True)
        raise


def _parse(wanted: str) -> tuple[Path, int | None]:
    run, at, step = wanted.rpartition("@")
    if not at or Path(wanted).is_dir():
        return Path(wanted).absolute(), None
    if not (step.isascii() and step.isdecimal()):
        raise ConfigError(f'{OPTION} {wanted}: "{step}" is no step; expected RUN or RUN@STEP, as runs/first@40')
    return Path(run).absolute(), int(step)


def _find(wanted: str, run: Path, step: int | None) -> Origin:
    if not (run / CONFIG_FILE).is_file():
        raise ConfigError(f"{OPTION} {wanted}: {run} is no run's directory: it has no {CONFIG_FILE}")
    root = run / "checkpoints"
    path = checkpoint.resolve(root) if step is None else checkpoint.checkpoint_of_step(root, step)
    config = toml.read(run / CONFIG_FILE)
    return Origin(str(run), checkpoint.read_state(path).version, str(path.absolute()), config.model.hf_checkpoint)
