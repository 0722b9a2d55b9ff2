"""Whether the learner computes a run's model as transformers does: compared before the first launch of a checkpoint, and kept.

Promises: a model that the learner would compute otherwise is refused before anything starts, with the difference; what was
compared once, of the same files with the same code and libraries, is not compared again. The comparison is a process of its
own: it loads the model twice, and transformers.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import msgspec

from miles_async.cli.doctor import Finding
from miles_async.config.schema import ConfigError, RunConfig
from miles_async.disk.durable import write_whole
from miles_async.models.builtin import is_builtin
from miles_async.train.backend import COMPARED

KEY = "model.parity_check"
TIMEOUT_S = 900.0  # of a comparison
READ_BYTES = 64 * 1024**2  # smaller files of weights are known by their content, others by their size and time
LIBRARIES = ("torch", "megatron-core", "mbridge", "transformers")
_COMPARE = """
import sys, msgspec
from pathlib import Path
from miles_async.cli.doctor import check_model
sys.stdout.write("\\n" + msgspec.json.encode(check_model(Path(sys.argv[1]))).decode())
"""


def check_parity(config: RunConfig) -> None:
    """Refuse a checkpoint whose log-probs in the learner are not transformers'. Takes as long as loading it twice, once.

    A built-in model is the tests' matter, and one of ``model.model_provider`` its author's. Raises ConfigError.
    """
    model = config.model
    if not model.parity_check or model.model_provider or is_builtin(model.hf_checkpoint):
        return
    if config.learner.train_backend not in COMPARED:
        return
    path = Path(model.hf_checkpoint)
    kept = _cache(_fingerprint(path))
    if _says_the_same(kept):
        return
    print(
        f"miles-async: {path}: comparing the learner's model with transformers', once for this checkpoint",
        file=sys.stderr,
    )
    found = _compared(path)
    if found.state == "fail":
        raise ConfigError(f"model.hf_checkpoint: {found.detail}; {found.remedy}")
    print(f"miles-async: {found.detail}", file=sys.stderr)
    _keep(kept, found)


def _says_the_same(kept: Path | None) -> bool:
    try:
        return kept is not None and msgspec.json.decode(kept.read_bytes(), type=Finding).state == "ok"
    except (OSError, msgspec.MsgspecError):
        return False


def _keep(kept: Path | None, found: Finding) -> None:
    """For the next launch; where there is no place for it, that one compares again."""
    if kept is None:
        return
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, msgspec.json.encode(found))
    except OSError as error:
        print(
            f"miles-async: {kept} cannot be written ({error.strerror}): the next launch compares again", file=sys.stderr
        )


def _compared(path: Path) -> Finding:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", _COMPARE, str(path)]
    leave_out = f"{KEY} = false leaves the comparison out"
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"{path}: the comparison with transformers took more than {TIMEOUT_S:g} s; {leave_out}"
        ) from None
    if done.returncode:
        cause = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
        raise ConfigError(f"{path}: cannot be compared with transformers: {cause}; {leave_out}")
    return msgspec.json.decode(done.stdout.rpartition("\n")[2], type=Finding)


def _cache(fingerprint: str) -> Path | None:
    """Where a comparison is kept; None for a user without a home."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return root / "miles_async" / "parity" / f"{fingerprint}.json"


def _fingerprint(path: Path) -> str:
    """Of the model's files, our code and the libraries that compute it."""
    found = hashlib.sha256()
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    ours = Path(__file__).resolve().parents[1]
    for file in sorted([*(ours / "train").glob("*.py"), *(ours / "models").glob("*.py")]):
        found.update(file.read_bytes())
    for file in sorted([path / "config.json", *filter(Path.is_file, path.glob("*.safetensors"))]):
        status = file.stat()
        found.update(f"{file.name} {status.st_size}\n".encode())
        found.update(file.read_bytes() if status.st_size <= READ_BYTES else f"{status.st_mtime_ns}".encode())
    return found.hexdigest()
