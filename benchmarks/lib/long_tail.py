"""Groups whose responses have long-tailed lengths: most are short, a few are many times as long."""

from __future__ import annotations

import numpy as np

from benchmarks.lib.random_groups import random_groups
from bus.messages import Group


def long_tailed_groups(
    n_groups: int, n_samples: int, vocab: int, *, median: int, longest: int, sigma: float = 1.0, seed: int = 0
) -> list[Group]:
    """Prompts of 32 to 64 tokens; responses lognormal with this median and deviation, at most ``longest``."""
    rng = np.random.default_rng(seed)
    return random_groups(
        rng,
        n_groups,
        n_samples,
        prompt=lambda: rng.integers(0, vocab, int(rng.integers(32, 65))),
        length=lambda: int(np.clip(rng.lognormal(np.log(median), sigma), 1, longest)),
        first_token=0,
        vocab=vocab,
        log_prob=-6.0,
    )
