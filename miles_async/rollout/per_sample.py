"""A group from a generate function that makes one rollout at a time.

Promises: the rollouts of a group run at once, as far as there are slots for them, and do not wait for each other's requests;
each gives its slot back when it has ended; one that fails costs itself, with an event that says why, and the group is made of
the others; if all fail, the first failure is the attempt's; one that is too old for any step ends its group at once.
"""

from __future__ import annotations

import asyncio

import msgspec

from bus.messages import Sample, Ticket
from miles_async.rollout.failures import check_samples, lost
from miles_async.rollout.first_failures import contained
from miles_async.rollout.generate import OutdatedError
from miles_async.rollout.interface import RolloutContext
from miles_async.rollout.registry import GENERATE


async def rollout(ticket: Ticket, context: RolloutContext) -> list[Sample]:
    """The samples of ``n_samples_per_prompt`` calls of ``rollout.generate_function``, numbered through.

    Raises OutdatedError, or what the first of the calls raised, if none gave a sample.
    """
    (generate,) = GENERATE.functions(context.config)

    async def one(index: int) -> list[Sample]:
        try:
            async with context.one_sample() as own:
                with contained():
                    samples = await generate(ticket, index, own)
        except OutdatedError:
            for other in set(tasks) - {asyncio.current_task()}:
                other.cancel()
            raise
        return check_samples(samples, GENERATE)

    tasks = [asyncio.create_task(one(index)) for index in range(context.config.rollout.n_samples_per_prompt)]
    found = await asyncio.gather(*tasks, return_exceptions=True)
    if outdated := next((result for result in found if isinstance(result, OutdatedError)), None):
        raise outdated
    samples: list[Sample] = []
    failures: list[Exception] = []
    for index, result in enumerate(found):
        if isinstance(result, Exception):
            failures.append(result)
            await context.tell("sample_lost", group=ticket.group_id, rollout=index, **lost(result, context.firsts))
        elif isinstance(result, BaseException):
            raise result
        else:
            samples += [
                msgspec.structs.replace(sample, index=len(samples) + i, rollout_index=index)
                for i, sample in enumerate(result)
            ]
    if not samples:
        raise failures[0]
    return samples
