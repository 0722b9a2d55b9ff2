"""The prompts of one pass through the model: each computed once, however many requests share it.

Promises: pure; requests whose tokens are equal up to the newest share one row of the pass, and get the same bits.
"""

from __future__ import annotations

from itertools import repeat
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from miles_async.engines.embedded.request import EngineRequest

_NOTHING = np.zeros((0, 0), np.int64)


class Prompts(NamedTuple):
    """Prompts that are computed in the same pass as the tokens of the running rows; equal ones once.

    Cache row ``first + i`` gets the keys and values of prompt ``source[i]`` (int64 ``[requests]``), of ``width`` tokens with
    its padding. Without ``want_hidden`` the work above the last keys and values is left out.
    """

    first: int
    source: torch.Tensor
    width: int
    want_hidden: bool


def wants_scores(request: EngineRequest) -> bool:
    """Whether the log-probs of its prompt are still to be computed."""
    return request.item.logprob_start_len >= 0 and request.input_logprobs is None


def padded(requests: list[EngineRequest]) -> tuple[npt.NDArray[np.int64], list[int]]:
    """All but the newest token of each, equal ones once: ids ``[unique, width]``, filled up with 0; and which is whose."""
    if not requests:
        return _NOTHING, []
    unique: dict[tuple[int, ...], int] = {}
    source = [unique.setdefault(tuple(request.tokens()[:-1]), len(unique)) for request in requests]
    ids = np.zeros((len(unique), max(map(len, unique))), np.int64)
    for row, tokens in zip(ids, unique, strict=True):
        row[: len(tokens)] = tokens
    return ids, source


def score(request: EngineRequest, logits: torch.Tensor) -> None:
    """Log-probs of prompt tokens from ``logprob_start_len`` on (temperature 1; the first has none, as in SGLang).

    ``logits`` ``[tokens, vocab]``: of the places in front of those that have one.
    """
    prompt = request.item.prompt
    request.input_logprobs = [None] if request.item.logprob_start_len < len(prompt) else []
    request.input_top = [None] * len(request.input_logprobs)
    if not len(logits):
        return
    scores = torch.log_softmax(logits, -1)
    targets = torch.tensor(prompt[len(prompt) - len(scores) :], dtype=torch.int64, device=scores.device)
    request.input_logprobs += scores.gather(1, targets[:, None])[:, 0].tolist()
    if request.item.top_logprobs:
        top = scores.topk(request.item.top_logprobs)
        pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
        request.input_top += [list(zip(values, ids, repeat(None))) for values, ids in pairs]
