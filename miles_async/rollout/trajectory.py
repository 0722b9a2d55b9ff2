"""One sequence in the making: a prompt, and behind it, token by token, what the policy wrote and what it was told.

Promises: tokens are only ever appended, so what an engine sampled is what is trained on; every token of the response has
its log-prob, its mask and the weight version that sampled it. No I/O.
"""

from __future__ import annotations

from collections.abc import Sequence

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack
from bus.messages import Sample
from miles_async.text.tokenizer import Tokenizer


class Trajectory:
    """``tokens``, ``logprobs``, ``mask`` and ``versions`` are of the response, one entry for each token."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = list(prompt)
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.mask: list[int] = []
        self.versions: list[int] = []

    @property
    def input_ids(self) -> list[int]:
        """What an engine continues."""
        return self.prompt + self.tokens if self.tokens else self.prompt

    def sampled(self, tokens: Sequence[int], logprobs: Sequence[float], versions: Sequence[int]) -> None:
        """The policy wrote ``tokens``."""
        self.tokens += tokens
        self.logprobs += logprobs
        self.versions += versions
        self.mask += [1] * len(tokens)

    def observed(self, tokens: Sequence[int]) -> None:
        """The environment added ``tokens``: not trained on; they count under the version of the last token before them.

        Raises ValueError: the policy has not written anything yet.
        """
        if not self.tokens:
            raise ValueError("the environment cannot speak before the policy: it belongs into the prompt")
        self.tokens += tokens
        self.logprobs += [0.0] * len(tokens)
        self.versions += [self.versions[-1]] * len(tokens)
        self.mask += [0] * len(tokens)

    def mask_all(self) -> None:
        """Nothing that is there so far is trained on."""
        self.mask = [0] * len(self.mask)

    def sample(self, index: int, finish_reason: str, tokenizer: Tokenizer) -> Sample:
        """The sample, unscored."""
        text, raw_text = tokenizer.texts(self.tokens)
        return Sample(
            index=index,
            tokens=pack(self.tokens, TOKENS),
            logprobs=pack(self.logprobs, LOGPROBS),
            loss_mask=pack(self.mask, MASK),
            versions=pack(self.versions, VERSIONS),
            reward=0.0,
            finish_reason=finish_reason,
            text=text,
            raw_text=raw_text,
        )
