"""What the ledger and the policies are told of a published group: a fold over its samples. Pure."""

from __future__ import annotations

import numpy as np

from bus.codec import TOKENS, VERSIONS, unpack
from bus.messages import Group, ReadyGroup


def describe(group: Group, payload_key: str, published: float) -> ReadyGroup:
    """The description of ``group``, whose payload lies under ``payload_key``; ``published``: seconds since the epoch."""
    sampled_by = unpack(b"".join([sample.versions for sample in group.samples]), VERSIONS)
    numbers, counts = np.unique(sampled_by, return_counts=True)
    versions = list(zip(numbers.tolist(), counts.tolist(), strict=True))
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
    )
