"""Messages to bytes and back; numpy arrays to raw little-endian buffers and back.

Promises: decoding arbitrary bytes gives a message of the expected type or ``CodecError``, never anything else;
arrays come back as read-only views with the dtype asked for.
"""

from __future__ import annotations

import struct
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from bus.messages import SCHEMA_VERSION, AnyMessage, Message

TOKENS = np.dtype("<i4")
LOGPROBS = np.dtype("<f4")
MASK = np.dtype("u1")
VERSIONS = np.dtype("<i4")

_STRUCT_CODES = "ifB"  # of the same numbers

MAX_MESSAGE_BYTES = 256 * 1024 * 1024

M = TypeVar("M", bound=Message)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


class CodecError(ValueError):
    """The bytes are not a message of this schema."""


def encode(message: Message) -> bytes:
    """Bytes of one message: a schema version byte, then msgpack."""
    return bytes((SCHEMA_VERSION,)) + _encoder.encode(message)


def decode(data: bytes, kind: type[M]) -> M:
    """The message in ``data``, which must be of type ``kind``.

    Raises CodecError: too long, another schema version, not msgpack, another message type.
    """
    if not data or len(data) > MAX_MESSAGE_BYTES:
        raise CodecError(f"a message has 1 to {MAX_MESSAGE_BYTES} bytes, not {len(data)}")
    if data[0] != SCHEMA_VERSION:
        raise CodecError(f"schema version {data[0]}, expected {SCHEMA_VERSION}")
    try:
        message = _decoder.decode(memoryview(data)[1:])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise CodecError(f"not a {kind.__name__}: {error}") from None
    if not isinstance(message, kind):
        raise CodecError(f"expected {kind.__name__}, got {type(message).__name__}")
    return message


def pack(values: Any, dtype: np.dtype[Any]) -> bytes:
    """Raw little-endian bytes of a sequence or array, converted to ``dtype``."""
    if type(values) is list and dtype.char in _STRUCT_CODES:
        try:
            return struct.pack(f"<{len(values)}{dtype.char}", *values)  # a fifth of numpy's time
        except (struct.error, OverflowError):  # whole numbers as floats, say
            pass
    return np.ascontiguousarray(values, dtype=dtype).tobytes()


def unpack(data: bytes, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Read-only 1-D view of a buffer made by :func:`pack`. Raises CodecError if the length does not fit the dtype."""
    if len(data) % dtype.itemsize:
        raise CodecError(f"{len(data)} bytes are not a whole number of {dtype}")
    return np.frombuffer(data, dtype=dtype)
