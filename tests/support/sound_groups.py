"""A group that may be published and trained."""

from __future__ import annotations

import msgspec
from train_support import make_groups

from bus.codec import TOKENS, pack
from bus.messages import Group

VERSION, MAX_LAG = 5, 3


replace = msgspec.structs.replace


def sound(seed: int = 0, samples: int = 3) -> Group:
    """A group that passes: its last two samples are branches of one rollout."""
    (group,) = make_groups(1, samples, seed=seed, version=VERSION - seed % (MAX_LAG + 1))
    made = [replace(sample, teacher_logprobs=sample.logprobs) for sample in group.samples]
    made[-1] = replace(made[-1], rollout_index=made[-2].index, reward=made[-2].reward, prompt_tokens=pack([3], TOKENS))
    return replace(group, samples=tuple(made))
