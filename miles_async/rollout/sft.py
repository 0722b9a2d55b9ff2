"""The rollout function of supervised fine-tuning: nothing is generated, the prompt's own answer is the sample.

What of it is learnt (``loss_mask`` 1): ``learnt.py``; what exceeds ``rollout_max_response_len`` or the context is cut off.
Tokens have no version: no policy sampled them.
"""

from __future__ import annotations

import numpy as np

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack, unpack
from bus.messages import UNSAMPLED, Sample, Ticket
from miles_async.rollout.interface import RolloutContext
from miles_async.rollout.learnt import Learnt, SftError, learnt
from miles_async.rollout.trajectory import Trajectory

__all__ = ["SftError", "rollout"]


async def rollout(ticket: Ticket, context: RolloutContext) -> list[Sample]:
    """One sample; several, as branches of one rollout, where the chat template forgets. Raises SftError."""
    prompt = unpack(ticket.prompt_tokens, TOKENS).tolist()
    try:
        found = learnt(context.config, ticket.metadata, ticket.label, prompt, context.tokenizer)
    except SftError as error:
        raise SftError(f"{ticket.group_id}: {error}") from None
    return [_sample(index, one, context) for index, one in enumerate(found)]


def _sample(index: int, one: Learnt, context: RolloutContext) -> Sample:
    limit = max(context.bounds.room(Trajectory(one.prompt), context.config.rollout), 0)
    tokens, mask = one.response[:limit], one.mask[:limit]
    return Sample(
        index=index,
        rollout_index=0,
        tokens=pack(tokens, TOKENS),
        logprobs=pack(np.zeros(len(tokens)), LOGPROBS),
        loss_mask=pack(mask, MASK),
        versions=pack(np.full(len(tokens), UNSAMPLED), VERSIONS),
        reward=0.0,
        finish_reason="length" if len(one.response) > limit else "stop",
        text=context.tokenizer.decode(tokens),
        prompt_tokens=pack(one.prompt, TOKENS),
    )
