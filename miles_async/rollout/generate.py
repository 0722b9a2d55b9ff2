"""Single-turn generation of one prompt group through SGLang's native API.

Promises: token ids and log-probs are the engine's own, never re-tokenised; every token carries the weight version that
sampled it (``meta_info.weight_versions``); a sample that an engine aborted is generated anew, a few times.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack, unpack
from bus.messages import Sample, Ticket
from miles_async.config import Rollout
from miles_async.tokenizer import Tokenizer

# sends the body of a /generate of several prompts somewhere and returns the answers, in order
Ask = Callable[[dict[str, Any]], Awaitable[list[dict[str, Any]]]]

MAX_ABORTS = 5  # a sample aborted so often by engines costs its group


class AbortedError(RuntimeError):
    """An engine aborted the same sample again and again."""


class AnswerError(RuntimeError):
    """An engine's answer contradicts itself, or does not say what is needed."""


def sampling_params(config: Rollout, seed: int) -> dict[str, Any]:
    """SGLang's sampling parameters of one sample."""
    params: dict[str, Any] = {
        "temperature": config.rollout_temperature,
        "top_p": config.rollout_top_p,
        "top_k": config.rollout_top_k,
        "max_new_tokens": config.rollout_max_response_len,
        "sampling_seed": seed,
        "no_stop_trim": True,
        "spaces_between_special_tokens": False,
    }
    if config.rollout_stop:
        params["stop"] = config.rollout_stop
    if config.rollout_stop_token_ids:
        params["stop_token_ids"] = config.rollout_stop_token_ids
    return params


async def generate_group(ticket: Ticket, config: Rollout, ask: Ask, tokenizer: Tokenizer) -> list[Sample]:
    """The ``n_samples_per_prompt`` samples of ``ticket``, unscored (reward 0).

    Raises AnswerError, AbortedError, and what ``ask`` raises.
    """
    prompt = unpack(ticket.prompt_tokens, TOKENS).tolist()
    samples: dict[int, Sample] = {}
    missing = list(range(config.n_samples_per_prompt))
    for attempt in range(MAX_ABORTS):
        body = {
            "rid": [f"{ticket.group_id}.{i}.{attempt}" for i in missing],
            "input_ids": [prompt] * len(missing),
            "sampling_params": [sampling_params(config, ticket.sampling_seed + i) for i in missing],
            "return_logprob": True,
        }
        answers = await ask(body)
        try:
            for i, answer in zip(list(missing), answers, strict=True):
                if answer["meta_info"]["finish_reason"]["type"] != "abort":
                    samples[i] = to_sample(i, answer, tokenizer)
                    missing.remove(i)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise AnswerError(
                f"an answer of another form than /generate gives: {type(error).__name__}: {error}"
            ) from None
        if not missing:
            return [samples[i] for i in range(config.n_samples_per_prompt)]
    raise AbortedError(f"sample {missing[0]} of group {ticket.group_id} was aborted {MAX_ABORTS} times")


def to_sample(index: int, answer: dict[str, Any], tokenizer: Tokenizer) -> Sample:
    """A sample from an engine's answer. Raises AnswerError if ids, log-probs or version spans do not fit together."""
    meta = answer["meta_info"]
    logprobs = [entry[0] for entry in meta["output_token_logprobs"]]
    tokens = [entry[1] for entry in meta["output_token_logprobs"]]
    if tokens != list(answer["output_ids"]):
        raise AnswerError(f"{meta.get('id')}: output_ids and output_token_logprobs differ")
    finish = meta["finish_reason"]["type"]
    return Sample(
        index=index,
        tokens=pack(tokens, TOKENS),
        logprobs=pack(logprobs, LOGPROBS),
        loss_mask=pack(np.ones(len(tokens)), MASK),
        versions=pack(token_versions(meta, len(tokens)), VERSIONS),
        reward=0.0,
        finish_reason=finish,
        text=tokenizer.decode(tokens, skip_special_tokens=True),
    )


def token_versions(meta: dict[str, Any], n_tokens: int) -> npt.NDArray[np.int32]:
    """The weight version that sampled each of ``n_tokens`` tokens, from SGLang's ``weight_versions`` spans.

    Raises AnswerError: the spans leave a token without a version. No spans at all (a server before 0.5.2x) means that all
    tokens are booked under ``weight_version``, which is the newest one and so could understate the lag: refused too.
    """
    versions = np.full(n_tokens, -1, dtype=VERSIONS)
    for span in meta.get("weight_versions") or ():
        versions[int(span["start"]) : int(span["end"])] = int(span["version"])
    if n_tokens and versions.min() < 0:
        spans = meta.get("weight_versions")
        raise AnswerError(f"{meta.get('id')}: a token without a weight version in spans {spans}")
    return versions
