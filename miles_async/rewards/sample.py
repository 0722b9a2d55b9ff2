"""What a reward function sees of one response, and the two frames between a worker and its grading processes."""

from __future__ import annotations

from typing import Any

import msgspec


class RewardSample(msgspec.Struct, kw_only=True, frozen=True):
    """One response and the prompt it answers.

    tokens: ids of the response, the end of sequence included where there is one. response: their text without special
    tokens. finish_reason: "stop" (ended by itself), "length" (cut off). label, metadata: from the prompt's row.
    group_id, index: which sample of which group of the run this is.
    """

    prompt: str
    response: str
    tokens: list[int] = []
    label: str | None = None
    metadata: dict[str, Any] = {}
    finish_reason: str = "stop"
    group_id: str = ""
    index: int = 0


class Reply(msgspec.Struct, array_like=True, frozen=True):
    """A grading process answers: neither field set means that it is ready for its first sample."""

    reward: float | None = None
    error: str = ""


HEADER_BYTES = 4  # a frame is its length (little endian) and a msgpack value


def frame(value: msgspec.Struct) -> bytes:
    """The bytes of one frame."""
    body = msgspec.msgpack.encode(value)
    return len(body).to_bytes(HEADER_BYTES, "little") + body
