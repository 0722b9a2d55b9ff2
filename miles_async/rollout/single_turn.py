"""One response to a prompt: the built-in rollout function (a group in one request) and generate function (one sample)."""

from __future__ import annotations

from bus.codec import TOKENS, unpack
from bus.messages import Sample, Ticket
from miles_async.rollout.generate import Turn, complete, generate_group
from miles_async.rollout.interface import RolloutContext
from miles_async.rollout.trajectory import Trajectory


async def rollout(ticket: Ticket, context: RolloutContext) -> list[Sample]:
    """All samples of the group, in one request: equal prompts are computed once."""
    return await generate_group(ticket, context.config.rollout, context.ask, context.tokenizer, context.bounds)


async def generate(ticket: Ticket, index: int, context: RolloutContext) -> list[Sample]:
    """Sample ``index`` of the group, with the seed that it has in :func:`rollout`."""
    prompt = unpack(ticket.prompt_tokens, TOKENS).tolist()
    turn = Turn(Trajectory(prompt), rid=f"{ticket.group_id}.{index}", seed=ticket.sampling_seed + index)
    await complete([turn], context.config.rollout, context.ask, context.bounds)
    return [turn.trajectory.sample(index, turn.finish_reason, context.tokenizer)]
