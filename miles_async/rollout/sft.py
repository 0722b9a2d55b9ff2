"""The rollout function of supervised fine-tuning: nothing is generated, the prompt's own answer is the sample.

A prompt of messages is rendered by the chat template; what the assistant says in them is trained on (``loss_mask`` 1), the
rest is not. Any other prompt's answer is its label and an end of sequence. Tokens have no version: no policy sampled them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack, unpack
from bus.messages import UNSAMPLED, Sample, Ticket
from miles_async.rollout.interface import RolloutContext
from miles_async.tokenizer import Tokenizer


class SftError(ValueError):
    """A prompt that holds nothing to learn."""


async def rollout(ticket: Ticket, context: RolloutContext) -> list[Sample]:
    """One sample. Raises SftError: no assistant message and no label, or a template that rewrites earlier messages."""
    messages = ticket.metadata.get("messages")
    if messages and any(message.get("role") == "assistant" for message in messages):
        prompt, tokens, mask = spoken(messages, context.tokenizer, tools=ticket.metadata.get("tools"))
    elif ticket.label is not None:
        prompt = unpack(ticket.prompt_tokens, TOKENS).tolist()
        tokens = context.tokenizer.encode(ticket.label) + list(context.tokenizer.eos_token_ids[:1])
        mask = [1] * len(tokens)
    else:
        raise SftError(f"{ticket.group_id}: the prompt has neither an assistant's message nor a label")
    limit = context.config.rollout.rollout_max_response_len
    cut = len(tokens) > limit
    tokens, mask = tokens[:limit], mask[:limit]
    return [
        Sample(
            index=0,
            tokens=pack(tokens, TOKENS),
            logprobs=pack(np.zeros(len(tokens)), LOGPROBS),
            loss_mask=pack(mask, MASK),
            versions=pack(np.full(len(tokens), UNSAMPLED), VERSIONS),
            reward=0.0,
            finish_reason="length" if cut else "stop",
            text=context.tokenizer.decode(tokens),
            prompt_tokens=pack(prompt, TOKENS),
        )
    ]


def spoken(
    messages: list[dict[str, Any]], tokenizer: Tokenizer, **variables: Any
) -> tuple[list[int], list[int], list[int]]:
    """(prompt tokens, response tokens, 1 where the assistant wrote the token) of a conversation.

    The prompt ends where the first assistant message begins. Each message is tokenized by itself, as it will be when the
    model writes it. Raises SftError where a longer conversation does not begin with the shorter one's text.
    """
    done, pieces = "", list[tuple[str, int]]()
    for number, message in enumerate(messages):
        if message.get("role") == "assistant":
            asked = tokenizer.render_chat(messages[:number], add_generation_prompt=True, **variables)
            pieces.append((_behind(done, asked, number), 0))
            done = asked
        upto = tokenizer.render_chat(messages[: number + 1], add_generation_prompt=False, **variables)
        pieces.append((_behind(done, upto, number), int(message.get("role") == "assistant")))
        done = upto
    first = next(i for i, (_, written) in enumerate(pieces) if written)
    prompt = [token for text, _ in pieces[:first] for token in tokenizer.encode(text)]
    encoded = [(token, written) for text, written in pieces[first:] for token in tokenizer.encode(text)]
    return prompt, [token for token, _ in encoded], [written for _, written in encoded]


def _behind(done: str, longer: str, number: int) -> str:
    if not longer.startswith(done):
        raise SftError(f"the chat template rewrites what stands before message {number}: its mask cannot be told")
    return longer[len(done) :]
