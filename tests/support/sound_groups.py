"""A group that may be published and trained, and what makes another one of it."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from train_support import VOCAB, make_groups

from bus.codec import LOGPROBS, TOKENS, pack
from bus.messages import Group, Sample
from miles_async.groups.sound import Limits

VERSION, MAX_LAG = 5, 3
LIMITS = Limits(vocab_size=VOCAB, newest_version=VERSION, max_lag=MAX_LAG, context=40)
replace = msgspec.structs.replace


def sound(seed: int = 0, samples: int = 3) -> Group:
    """A group that passes: its last two samples are branches of one rollout."""
    (group,) = make_groups(1, samples, seed=seed, version=VERSION - seed % (MAX_LAG + 1))
    made = [replace(sample, teacher_logprobs=sample.logprobs) for sample in group.samples]
    made[-1] = replace(made[-1], rollout_index=made[-2].index, reward=made[-2].reward, prompt_tokens=pack([3], TOKENS))
    return replace(group, samples=tuple(made))


def changed(group: Group, at: int = 0, **fields: Any) -> Group:
    """``group`` with other fields in one of its samples."""
    if not (samples := list(group.samples)):
        return group
    samples[at % len(samples)] = replace(samples[at % len(samples)], **fields)
    return replace(group, samples=tuple(samples))


def filled(sample: Sample, value: float, dtype: Any = LOGPROBS) -> bytes:
    return pack(np.full(len(sample.loss_mask), value), dtype)
