"""``record/manifest.json``: of what run the groups beside it are, and where the parts of its record lie.

Promises: written whole, once, before the first group of the run is dealt, and never changed; a record that says nothing of its
model (an earlier version of this program left it) is taken for what it is said to be, one that says something else is refused.

The parts, of which one can be exchanged without the others: ``configuration`` (what was to be done; the manifest has that of
the launch which wrote it), ``workload`` (what was asked and answered, and so the lengths), ``outcomes`` (when, and what became
of it).
"""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from miles_async.config.schema import RunConfig
from miles_async.config.toml import dump
from miles_async.disk.durable import write_whole
from miles_async.models.builtin import is_builtin, make_model
from miles_async.models.fingerprint import fingerprint
from miles_async.models.support import ModelError
from miles_async.monitor.record_lines import TRANSITIONS_FILE, RecordError
from miles_async.recording.recorder import DIRECTORY
from miles_async.recording.segments import SUFFIX
from miles_async.runs import launches
from miles_async.runs.provenance import Commit

FILE = "manifest.json"
PARTS = {
    "configuration": f"../{launches.DIRECTORY}/*.toml",
    "workload": f"*{SUFFIX}",
    "outcomes": f"../{TRANSITIONS_FILE}",
}
SHOWN = 12  # characters of a fingerprint, for people


class Fingerprint(msgspec.Struct, frozen=True):
    """``name``: as the configuration has it. ``fingerprint``: of models.fingerprint or data.fingerprint."""

    name: str | list[str]
    fingerprint: str


class Manifest(msgspec.Struct, frozen=True):
    run_id: str
    model: Fingerprint  # the weights that the run began with
    prompts: Fingerprint
    packages: dict[str, str]  # name to version; empty: the launch's provenance cannot be read
    commit: Commit | None  # None: that, or the code is from no checkout
    configuration: dict[str, Any]  # as its TOML has it
    parts: dict[str, str]  # files, as they lie from the manifest's directory


def write(run_dir: Path, run_id: str, config: RunConfig, model: Path, prompts: str) -> None:
    """Put it there, unless there is one. ``model``: its directory. ``prompts``: their fingerprint.

    Raises ModelError, OSError.
    """
    path = run_dir / DIRECTORY / FILE
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, exist_ok=True)
    launch = next(launches.provenances(run_dir), None)
    found = Manifest(
        run_id,
        Fingerprint(config.model.hf_checkpoint, fingerprint(model)),
        Fingerprint(config.data.prompt_data, prompts),
        launch.packages if launch else {},
        launch.commit if launch else None,
        tomllib.loads(dump(config)),
        PARTS,
    )
    write_whole(path, msgspec.json.format(msgspec.json.encode(found)) + b"\n")


def read(run_dir: Path) -> Manifest | None:
    """None: there is none. Raises RecordError: it is damaged."""
    path = run_dir / DIRECTORY / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path} is damaged: {error}") from None


def check_model(run_dir: Path, name: str, seed: int, directory: Path | None = None) -> None:
    """Whether the record of ``run_dir`` is of the model ``name``. Raises RecordError: it is another's, ModelError.

    seed: that a built-in model is made from. directory: where the model lies; None: where its name says.
    """
    said = read(run_dir)
    if said is None:
        return
    found = _fingerprint(name, seed) if directory is None else fingerprint(directory)
    if found != said.model.fingerprint:
        seeded = f" with run.seed = {seed}" if name == said.model.name and is_builtin(name) else ""
        raise RecordError(
            f'{run_dir / DIRECTORY} is of the model "{said.model.name}" ({said.model.fingerprint[:SHOWN]}), and '
            f'model.hf_checkpoint = "{name}"{seeded} is another one ({found[:SHOWN]}): what was sampled with the one '
            "cannot be trained on by the other"
        )


def _fingerprint(name: str, seed: int) -> str:
    if not is_builtin(name):
        return fingerprint(name)
    try:
        with tempfile.TemporaryDirectory() as directory:
            make_model(name, Path(directory), seed)
            return fingerprint(directory)
    except OSError as error:
        raise ModelError(f"{name} cannot be made to be compared: {error}") from None
