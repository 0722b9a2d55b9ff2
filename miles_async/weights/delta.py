"""One version of the weights as a file against an earlier one, and back: what the transport ``disk_delta`` carries.

Promises: pure but for the files named; the tensors come back bit for bit, or :class:`DeltaError` says which one did not;
a byte that was changed anywhere in the file is found; nothing in a file is run, and none makes more be allocated than the
tensors that it declares. A file without a base is a full copy, in the same format.

    "MADELTA1" | header length (8 bytes, little-endian) | header (JSON) | payload of each tensor | SHA-256 of all before it

A tensor is kept as ``same`` (no payload), ``xor`` (of its bytes with the base's) or ``new`` (its bytes): what is smaller.
The bytes go into zstd in planes (the first byte of every element, then the second, ...): where a small step leaves sign and
exponent alone, whole planes of an XOR are zero.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
import numpy as np
import torch
import zstandard

from miles_async.disk.fence import before_it_counts, mark
from miles_async.engines.checksum import Bytes, as_bytes, checksum
from miles_async.weights.buckets import by_item_size, dtype_name
from miles_async.weights.safetensors_file import Spec
from miles_async.weights.update import Key

MAGIC = b"MADELTA1"
LEVEL = 1  # of zstd: higher ones are several times as slow for a few per cent
SAMPLE_BYTES = 1 << 20  # of a tensor, by which the smaller of xor and new is chosen
MAX_HEADER_BYTES = 64 << 20
DIGEST_BYTES = 32
_CHUNK_BYTES = 4 << 20


class DeltaError(RuntimeError):
    """A file is damaged, or does not fit the base; the message names the file or the tensor."""


class DeltaEntry(msgspec.Struct, array_like=True, frozen=True):
    """One tensor of a file. ``checksum``: of its final bytes, whatever the kind."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: Literal["same", "xor", "new"]
    packed: int  # bytes of its payload
    checksum: str


class Header(msgspec.Struct, frozen=True):
    key: Key
    base: Key | None  # None: a full copy
    entries: tuple[DeltaEntry, ...]

    def specs(self) -> list[Spec]:
        """Name, dtype and shape of every tensor, in the order of a snapshot's file. Raises DeltaError."""
        specs: list[Spec] = []
        for entry in self.entries:
            kind = getattr(torch, entry.dtype, None)
            if not isinstance(kind, torch.dtype) or any(size < 0 for size in entry.shape):
                raise DeltaError(f"{entry.name} cannot have dtype {entry.dtype!r} and shape {list(entry.shape)}")
            specs.append((entry.name, kind, entry.shape))
        return specs


def write_delta(
    file: Path, key: Key, tensors: Mapping[str, torch.Tensor], base: tuple[Key, Mapping[str, torch.Tensor]] | None
) -> Header:
    """Write ``tensors`` to ``file`` against ``base``, or whole. The file appears under its name once it is complete."""
    packer = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
    old = {} if base is None else base[1]
    entries: list[DeltaEntry] = []
    draft = file.with_name(f".{file.name}.{mark()}draft")
    payload_file = draft.with_name(f"{draft.name}.payload")
    try:
        # the header has the lengths of what is behind it: the payload waits in a file of its own
        with payload_file.open("w+b") as payload:
            for name, tensor in by_item_size(tensors):
                kind, packed = _pack(packer, tensor, old.get(name))
                payload.write(packed)
                shape = tuple(tensor.shape)
                entries.append(DeltaEntry(name, dtype_name(tensor.dtype), shape, kind, len(packed), checksum(tensor)))
            header = Header(key, None if base is None else base[0], tuple(entries))
            with draft.open("wb") as target:
                _assemble(target, header, payload)
        before_it_counts()
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
        payload_file.unlink(missing_ok=True)
    return header


def _assemble(target: BinaryIO, header: Header, payload: BinaryIO) -> None:
    text = msgspec.json.encode(header)
    digest = hashlib.sha256()
    for part in (MAGIC, len(text).to_bytes(8, "little"), text):
        digest.update(part)
        target.write(part)
    payload.seek(0)
    while part := payload.read(_CHUNK_BYTES):
        digest.update(part)
        target.write(part)
    target.write(digest.digest())


def _pack(
    packer: zstandard.ZstdCompressor, tensor: torch.Tensor, base: torch.Tensor | None
) -> tuple[Literal["same", "xor", "new"], bytes]:
    new, size = as_bytes(tensor), tensor.dtype.itemsize
    if base is None or (base.dtype, base.shape) != (tensor.dtype, tensor.shape):
        return "new", packer.compress(_planes(new, size))
    old = as_bytes(base)
    if np.array_equal(new, old):
        return "same", b""
    sample = slice(0, SAMPLE_BYTES - SAMPLE_BYTES % size)
    as_new = packer.compress(_planes(new[sample], size))
    as_xor = packer.compress(_planes(new[sample] ^ old[sample], size))
    if len(as_new) <= len(as_xor):
        return "new", as_new if new.size <= sample.stop else packer.compress(_planes(new, size))
    return "xor", as_xor if new.size <= sample.stop else packer.compress(_planes(new ^ old, size))


def _planes(data: Bytes, size: int) -> memoryview:
    """uint8 [n * size] with the k-th bytes of all n elements side by side, k after k."""
    return np.ascontiguousarray(data.reshape(-1, size).T).reshape(-1).data


def read_header(file: Path) -> Header:
    """What a file says of itself, unchecked as yet: :func:`check_file` does that. Raises DeltaError."""
    try:
        with file.open("rb") as stream:
            return _read_header(stream, file)
    except OSError as error:
        raise DeltaError(f"cannot read {file}: {error.strerror or error}") from None


def _read_header(stream: BinaryIO, file: Path) -> Header:
    if stream.read(len(MAGIC)) != MAGIC:
        raise DeltaError(f"{file} is damaged: not a file of weights")
    size = int.from_bytes(stream.read(8), "little")
    if size > MAX_HEADER_BYTES:
        raise DeltaError(f"{file} is damaged: a header of {size} bytes")
    try:
        return msgspec.json.decode(stream.read(size), type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DeltaError(f"{file} is damaged: {error}") from None


def check_file(file: Path) -> None:
    """Compare a file with the checksum at its end. Raises DeltaError."""
    digest = hashlib.sha256()
    try:
        left = file.stat().st_size - DIGEST_BYTES
        with file.open("rb") as stream:
            while left > 0 and (part := stream.read(min(left, _CHUNK_BYTES))):
                digest.update(part)
                left -= len(part)
            whole = left == 0 and stream.read() == digest.digest()
    except OSError as error:
        raise DeltaError(f"cannot read {file}: {error.strerror or error}") from None
    if not whole:
        raise DeltaError(f"{file} is damaged: its bytes are not those of its checksum")


def read_tensors(file: Path, base: Mapping[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    """The tensors of a file in the order of its entries, each compared with its checksum before it is given.

    ``base``: the tensors of the version that the header names; empty for a full copy. Raises DeltaError.
    """
    check_file(file)
    unpacker = zstandard.ZstdDecompressor()
    try:
        with file.open("rb") as stream:
            header = _read_header(stream, file)
            for entry, (name, dtype, shape) in zip(header.entries, header.specs(), strict=True):
                tensor = torch.empty(tuple(shape), dtype=dtype)
                _unpack(unpacker, stream.read(entry.packed), entry, base.get(name), tensor)
                if checksum(tensor) != entry.checksum:
                    raise DeltaError(f"{file}: {name} is not what was sent, by its checksum")
                yield tensor
    except OSError as error:
        raise DeltaError(f"cannot read {file}: {error.strerror or error}") from None


def _unpack(
    unpacker: zstandard.ZstdDecompressor,
    packed: bytes,
    entry: DeltaEntry,
    base: torch.Tensor | None,
    tensor: torch.Tensor,
) -> None:
    """Write into ``tensor`` what ``entry`` means. Raises DeltaError."""
    out = as_bytes(tensor)
    if entry.kind != "new" and (base is None or (base.dtype, base.shape) != (tensor.dtype, tensor.shape)):
        raise DeltaError(f"{entry.name} of the base is missing, or of another dtype or shape")
    if entry.kind == "same" and base is not None:
        out[:] = as_bytes(base)
        return
    try:
        if zstandard.frame_content_size(packed) != out.size:
            raise DeltaError(f"{entry.name} does not unpack to its {out.size} bytes")
        planes = np.frombuffer(unpacker.decompress(packed), dtype=np.uint8)
    except zstandard.ZstdError as error:
        raise DeltaError(f"{entry.name} cannot be unpacked: {error}") from None
    size = tensor.dtype.itemsize
    out.reshape(-1, size)[:] = planes.reshape(size, -1).T
    if entry.kind == "xor" and base is not None:
        np.bitwise_xor(out, as_bytes(base), out=out)
