"""One sequence in the making: a prompt, and behind it, token by token, what the policy wrote and what it was told.

Promises: tokens are only ever appended, so what an engine sampled is what is trained on; every token of the response has
its log-prob, its mask and the weight version that sampled it, and where experts are replayed every token but the last the
route of the first pass that was asked for it. No I/O.
"""

from __future__ import annotations

from collections.abc import Sequence

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack
from bus.messages import Sample
from miles_async.text.tokenizer import Tokenizer


class Trajectory:
    """``tokens``, ``logprobs``, ``mask`` and ``versions`` are of the response, one entry for each token. ``routes``: packed
    rows (groups/routes.py) from the prompt's first token on, as far as a pass has computed them."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = list(prompt)
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.mask: list[int] = []
        self.versions: list[int] = []
        self.routes: list[bytes] = []

    @property
    def input_ids(self) -> list[int]:
        """What an engine continues."""
        return self.prompt + self.tokens if self.tokens else self.prompt

    def sampled(
        self,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        versions: Sequence[int],
        routes: Sequence[bytes] = (),
        unpaired: int = 0,
    ) -> None:
        """The policy wrote ``tokens``.

        routes: of the tokens that had none, up to the last but one of ``tokens``. unpaired: how many of the first ``tokens``
        are not trained on, because their log-probs are not of the pass that the routes are of.
        """
        self.tokens += tokens
        self.logprobs += logprobs
        self.versions += versions
        self.mask += [0] * unpaired + [1] * (len(tokens) - unpaired)
        self.routes += routes

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

    def cut(self, count: int) -> None:
        """Only the first ``count`` response tokens have ever been there."""
        for values in (self.tokens, self.logprobs, self.mask, self.versions):
            del values[count:]
        del self.routes[len(self.prompt) + count - 1 if count else 0 :]

    def first(self, count: int) -> Trajectory:
        """A copy that was cut."""
        part = Trajectory(self.prompt)
        part.tokens, part.logprobs = list(self.tokens), list(self.logprobs)
        part.mask, part.versions, part.routes = list(self.mask), list(self.versions), list(self.routes)
        part.cut(count)
        return part

    def _whole_routes(self) -> bytes:
        """Tokens that were added behind the last one of the policy have no route: none of them is trained on, and nothing that
        is trained on depends on them, so any expert will do."""
        if not self.routes:
            return b""
        missing = len(self.prompt) + len(self.tokens) - 1 - len(self.routes)
        return b"".join(self.routes) + self.routes[-1] * missing

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
            routes=self._whole_routes(),
        )
