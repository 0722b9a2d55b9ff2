"""Groups of random tokens, of whatever lengths a benchmark wants."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack
from bus.messages import Group, Sample


def random_groups(
    rng: np.random.Generator,
    n_groups: int,
    n_samples: int,
    *,
    prompt: Callable[[], np.ndarray],
    length: Callable[[], int],
    first_token: int,
    vocab: int,
    log_prob: float,
) -> list[Group]:
    """prompt: the tokens of the next group's. length: how many tokens the next response has, of ``first_token..vocab - 1``,
    with log-probs around ``log_prob``."""

    def sample(index: int) -> Sample:
        n = length()
        return Sample(
            index=index,
            tokens=pack(rng.integers(first_token, vocab, n), TOKENS),
            logprobs=pack(rng.normal(log_prob, 0.1, n), LOGPROBS),
            loss_mask=pack(np.ones(n), MASK),
            versions=pack(np.zeros(n), VERSIONS),
            reward=float(rng.random()),
            finish_reason="stop",
        )

    return [
        Group(
            group_id=f"0-{number}-0",
            prompt_tokens=pack(prompt(), TOKENS),
            samples=tuple(sample(index) for index in range(n_samples)),
            worker="bench",
            started=0.0,
            finished=0.0,
        )
        for number in range(n_groups)
    ]
