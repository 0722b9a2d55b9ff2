"""A set of weights on its way from the learner to the engines: a Hugging Face directory named by version.

Promises: a snapshot that can be seen is complete (it is renamed into place as a whole); old ones are removed, but the
newest few stay, since a broadcaster or an engine may still read them; loading maps the file and copies nothing.
The tensors lie in the file in the order of ``buckets.by_item_size``, so that buckets are views of it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from bus.fields import MAX_NUMBER
from miles_async.config.schema import RunConfig
from miles_async.weights.buckets import by_item_size, order
from miles_async.weights.config_dtype import say_dtype
from miles_async.weights.place import MEMORY_ROOT, ON_DISK, in_memory, pins_kept
from miles_async.weights.safetensors_file import DTYPES, Spec, specs_of, write_safetensors
from miles_async.weights.sealed import CHECKSUM, NO_CHECKSUM, SnapshotError, seal

WEIGHTS_FILE = "model.safetensors"
KEEP = 2  # snapshots besides the one being written; the mapping of a removed one stays valid
_NAME = re.compile(r"i(\d+)-v\d+")
_CONFIG_FILES = ("*.json", "*.txt", "*.model", "*.jinja")  # what an engine reads besides the weights
_INDEX = "*.index.json"


def choose_root(config: RunConfig, run_dir: Path, n_bytes: int = 0) -> Path:
    """Where snapshots go: ``weights.snapshot_dir``, else memory if ``KEEP + 1`` of ``n_bytes`` fit (and those that wait for
    an evaluation), else the run directory.

    Raises SnapshotError: the directory in memory belongs to somebody else.
    """
    if config.weights.snapshot_dir is not None:
        return Path(config.weights.snapshot_dir)
    if MEMORY_ROOT.is_dir() and os.access(MEMORY_ROOT, os.W_OK):
        room = shutil.disk_usage(MEMORY_ROOT).free
        if room > 1.1 * (KEEP + 1 + pins_kept(config.eval)) * n_bytes:
            root = in_memory(run_dir)
            root.mkdir(mode=0o700, exist_ok=True)
            if root.is_symlink() or root.stat().st_uid != os.getuid():
                raise SnapshotError(f"{root} belongs to another user: set weights.snapshot_dir")
            return root
    return run_dir / ON_DISK


def write_snapshot(
    root: Path, version: int, incarnation: int, tensors: Mapping[str, torch.Tensor], config_dir: str
) -> Path:
    """Write the HF-named ``tensors`` and the configuration and tokenizer files of ``config_dir``; return the directory.

    A snapshot of the same version and incarnation is replaced. All but the ``KEEP`` written last are removed.
    """
    return write_tensors(root, version, incarnation, specs_of(tensors.items()), by_item_size(tensors), config_dir)


def write_where_there_is_room(
    root: Path,
    run_dir: Path,
    version: int,
    incarnation: int,
    specs: Sequence[Spec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    config_dir: str,
) -> Path:
    """:func:`write_tensors` into ``root``, or into the run directory if that is a memory that has just become full: which is
    known before the first tensor is asked for."""
    try:
        return write_tensors(root, version, incarnation, specs, tensors, config_dir)
    except OSError as error:
        if root != in_memory(run_dir) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    return write_tensors(run_dir / ON_DISK, version, incarnation, specs, tensors, config_dir)


def write_tensors(
    root: Path,
    version: int,
    incarnation: int,
    specs: Sequence[Spec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    config_dir: str,
) -> Path:
    """:func:`write_snapshot` of tensors that come one after the other, in any order, each of those that ``specs`` announces
    once. Raises SnapshotError where others come; then nothing is left behind."""
    specs = sorted(specs, key=lambda spec: order(spec[0], spec[1]))
    with _draft(root, root / snapshot_name(incarnation, version), config_dir) as draft:
        say_dtype(draft, ((dtype, shape) for _, dtype, shape in specs))
        said = {"weight_version": str(version), "incarnation": str(incarnation), CHECKSUM: NO_CHECKSUM}
        write_safetensors(draft / WEIGHTS_FILE, specs, tensors, said)
        seal(draft / WEIGHTS_FILE)
    prune(root, KEEP, incarnation)
    return root / snapshot_name(incarnation, version)


def snapshot_name(incarnation: int, version: int) -> str:
    return f"i{incarnation:04d}-v{version:08d}"


@contextmanager
def _draft(root: Path, final: Path, config_dir: str) -> Iterator[Path]:
    """A directory that becomes ``final`` at the end, with the configuration files; nothing is left of it after an error."""
    root.mkdir(parents=True, exist_ok=True)
    draft = root / f".{final.name}.{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        copy_config(config_dir, draft)
        yield draft
        if final.exists():
            old = root / f".old.{final.name}.{os.getpid()}"
            final.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        draft.rename(final)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def copy_config(source: Path | str, target: Path) -> None:
    """Copy what an engine reads besides the weights. Raises SnapshotError."""
    for pattern in _CONFIG_FILES:
        for file in Path(source).glob(pattern):
            if not file.match(_INDEX):  # of a sharded checkpoint: would name files that are not here
                shutil.copy(file, target / file.name)
    if not (target / "config.json").is_file():
        raise SnapshotError(f"{source} has no config.json: not a Hugging Face directory")


def prune(root: Path, keep: int, incarnation: int = MAX_NUMBER) -> None:
    """Remove the snapshots of ``root`` but the ``keep`` written last (a learner that went back writes lower versions), and
    those of later incarnations than this one, which are none of its business."""
    names = [(path, match) for path in root.iterdir() if (match := _NAME.fullmatch(path.name))]
    found = [(path.stat().st_mtime_ns, path) for path, match in names if int(match[1]) <= incarnation]
    for _, path in sorted(found)[: max(0, len(found) - keep)]:
        shutil.rmtree(path, ignore_errors=True)


def has_weights(path: Path | str) -> bool:
    """Whether the directory holds weights, whole or not."""
    try:
        return any(Path(path).glob("*.safetensors"))
    except (OSError, ValueError):
        return False


def load_snapshot(path: Path | str) -> dict[str, torch.Tensor]:
    """HF name to tensor (CPU, views of the mapped file: read them, do not write). Raises SnapshotError."""
    file = Path(path) / WEIGHTS_FILE
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            header_size = int.from_bytes(stream.read(8), "little")
            if header_size > size - 8:
                raise SnapshotError(f"{file} is cut short or not a safetensors file")
            header = json.loads(stream.read(header_size))
    except (OSError, ValueError, RecursionError) as error:
        raise SnapshotError(f"cannot read {file}: {error}") from None
    data = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)[8 + header_size :]
    tensors: dict[str, torch.Tensor] = {}
    try:
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                if end > data.numel():
                    raise SnapshotError(f"{file} is cut short: {name} ends at byte {end} of {data.numel()}")
                tensors[name] = data[start:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise SnapshotError(f"{file} is damaged: {type(error).__name__}: {error}") from None
    except RuntimeError as error:
        if isinstance(error, SnapshotError):
            raise
        raise SnapshotError(f"{file} is damaged: {error}") from None
    return tensors
