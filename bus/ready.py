"""What the ledger and the policies are told of a published group: a fold over its samples. Pure."""

from __future__ import annotations

from collections import Counter

import numpy as np

from bus.codec import TOKENS, VERSIONS, unpack
from bus.messages import Group, ReadyGroup


def describe(group: Group, payload_key: str, published: float) -> ReadyGroup:
    """The description of ``group``, whose payload lies under ``payload_key``; ``published``: seconds since the epoch."""
    tokens: Counter[int] = Counter()
    for sample in group.samples:
        values, counts = np.unique(unpack(sample.versions, VERSIONS), return_counts=True)
        tokens.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    versions = sorted(tokens.items())
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
