"""Groups whose responses have long-tailed lengths: most are short, a few are many times as long."""

from __future__ import annotations

import numpy as np

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack
from bus.messages import Group, Sample


def long_tailed_groups(
    n_groups: int, n_samples: int, vocab: int, *, median: int, longest: int, sigma: float = 1.0, seed: int = 0
) -> list[Group]:
    """Prompts of 32 to 64 tokens; responses lognormal with this median and deviation, at most ``longest``."""
    rng = np.random.default_rng(seed)

    def sample(index: int) -> Sample:
        n = int(np.clip(rng.lognormal(np.log(median), sigma), 1, longest))
        return Sample(
            index=index,
            tokens=pack(rng.integers(0, vocab, n), TOKENS),
            logprobs=pack(rng.normal(-6.0, 0.1, n), LOGPROBS),
            loss_mask=pack(np.ones(n), MASK),
            versions=pack(np.zeros(n), VERSIONS),
            reward=float(rng.random()),
            finish_reason="stop",
        )

    return [
        Group(
            group_id=f"0-{number}-0",
            prompt_tokens=pack(rng.integers(0, vocab, int(rng.integers(32, 65))), TOKENS),
            samples=tuple(sample(index) for index in range(n_samples)),
            worker="bench",
            started=0.0,
            finished=0.0,
        )
        for number in range(n_groups)
    ]
