"""A safetensors file whose tensors come one after the other.

Promises: the header says all that was announced, before the first tensor is asked for; no tensor is kept or gathered; what was
not announced, comes twice, or does not come, is an error. The format: https://huggingface.co/docs/safetensors: 8 bytes
little-endian header length, JSON header, raw tensors.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from miles_async.weights.buckets import dtype_name
from miles_async.weights.sealed import SnapshotError

Spec = tuple[str, torch.dtype, Sequence[int]]  # name, dtype, shape

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def specs_of(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[Spec]:
    """What announces ``tensors``."""
    return [(name, tensor.dtype, tensor.shape) for name, tensor in tensors]


def n_bytes(spec: Spec) -> int:
    _, dtype, shape = spec
    return torch.Size(shape).numel() * dtype.itemsize


class SafetensorsFile:
    """The file ``path``, of the tensors that ``specs`` announces, in that order. said: besides, in its header.

    Raises SnapshotError: of a type that the format has not; OSError: there is no room, and nothing was written."""

    def __init__(self, path: Path, specs: Sequence[Spec], said: Mapping[str, str]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt", **said}}
        self._places: dict[str, tuple[int, int]] = {}
        offset = 0
        for name, dtype, shape in specs:
            if dtype not in _NAMES:
                raise SnapshotError(f"{name} has dtype {dtype_name(dtype)}, which safetensors cannot hold")
            end = offset + n_bytes((name, dtype, shape))
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            self._places[name] = offset, end
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the data starts aligned
        self._begin = 8 + len(text)
        self._stream = path.open("wb", buffering=0)
        try:
            _take_room(self._stream.fileno(), self._begin + offset)
            self._stream.write(len(text).to_bytes(8, "little") + text)
        except OSError:
            self._stream.close()
            raise

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Raises SnapshotError: it was not announced so, or was there before."""
        start, end = self._places.pop(name, (0, -1))
        if tensor.nbytes != end - start:
            raise SnapshotError(f"{name} was not announced, or not with {tensor.nbytes} bytes")
        _write_at(self._stream.fileno(), tensor, self._begin + start)

    def end(self) -> None:
        """Raises SnapshotError: something is missing."""
        self._stream.close()
        if self._places:
            raise SnapshotError(
                f"{', '.join(sorted(self._places)[:3])} did not come: {len(self._places)} tensors are missing"
            )


def write_safetensors(
    path: Path, specs: Sequence[Spec], tensors: Iterable[tuple[str, torch.Tensor]], said: Mapping[str, str]
) -> None:
    """All of ``tensors``, in any order, in one pass over their own memory. Raises what SafetensorsFile does."""
    file = SafetensorsFile(path, specs, said)
    for name, tensor in tensors:
        file.put(name, tensor)
        del tensor  # before the next one is asked for
    file.end()


def _take_room(file: int, size: int) -> None:
    """Of ``size`` bytes, where the file system can; ENOSPC, EDQUOT: there is none."""
    try:
        os.posix_fallocate(file, 0, size)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(file, size)


def _write_at(file: int, tensor: torch.Tensor, place: int) -> None:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    view = memoryview(flat.numpy().data)
    while view:  # one write takes at most 2 GiB
        written = os.pwrite(file, view, place)
        view, place = view[written:], place + written
