"""What the ledger and the policies are told of a published group: a fold over its samples. Pure."""

from __future__ import annotations

import numpy as np

from bus.codec import TOKENS, VERSIONS, unpack
from bus.messages import Group, ReadyGroup


def describe(group: Group, payload_key: str, published: float) -> ReadyGroup:
    """The description of ``group``, whose payload lies under ``payload_key``; ``published``: seconds since the epoch."""
    versions = by_version(b"".join([sample.versions for sample in group.samples]))
    lengths = tuple(len(sample.tokens) // TOKENS.itemsize for sample in group.samples)
    return ReadyGroup(
        group_id=group.group_id,
        payload_key=payload_key,
        oldest_version=versions[0][0] if versions else 0,
        newest_version=versions[-1][0] if versions else 0,
        n_tokens=sum(lengths),
        published=published,
        lengths=lengths,
        rewards=tuple(sample.reward for sample in group.samples),
        versions=tuple(versions),
        begun=group.begun,
        generated=group.generated,
        graded=group.finished,
    )


def by_version(sampled_by: bytes) -> list[tuple[int, int]]:
    """(weight version, tokens that it sampled), ascending."""
    one, count = sampled_by[: VERSIONS.itemsize], len(sampled_by) // VERSIONS.itemsize
    if count and sampled_by == one * count:  # most often
        return [(int.from_bytes(one, "little", signed=True), count)]
    numbers, counts = np.unique(unpack(sampled_by, VERSIONS), return_counts=True)
    return list(zip(numbers.tolist(), counts.tolist(), strict=True))
