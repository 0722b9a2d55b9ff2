"""What a reward function sees of one response, and the frames between a worker and its grading processes."""

from __future__ import annotations

from typing import Any

import msgspec

from miles_async.rewards.graded import Numbers


class RewardSample(msgspec.Struct, kw_only=True, frozen=True):
    """One response and the prompt it answers.

    tokens: ids of the response, the end of sequence included where there is one. response: their text without special
    tokens. raw_response: with them (a model's ``</think>`` may be one); empty where nobody knows it.
    finish_reason: "stop" (ended by itself), "length" (cut off). label, metadata: from the prompt's row.
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
    raw_response: str = ""


class GradingRequest(msgspec.Struct, array_like=True, frozen=True):
    """Call ``function`` (a name as in ``reward.rm_type``): with one sample, or with a whole group at once.

    Without samples it is only imported, so that its first call does not pay for that. ``number``: the reply has it, too.
    """

    function: str
    samples: list[RewardSample] = []
    group: bool = False
    number: int = 0


class GradingReply(msgspec.Struct, array_like=True, frozen=True):
    """What a grading process answers to the request ``number``: one result a sample, or why there is none.

    place, trace: of an exception, the line of the user's that raised it and the traceback of the user's code.
    """

    results: list[Numbers] = []
    error: str = ""
    number: int = 0
    place: str = ""
    trace: str = ""


HEADER_BYTES = 4  # a frame is its length (little endian) and a msgpack value


def frame(value: msgspec.Struct) -> bytes:
    """The bytes of one frame."""
    body = msgspec.msgpack.encode(value)
    return len(body).to_bytes(HEADER_BYTES, "little") + body
