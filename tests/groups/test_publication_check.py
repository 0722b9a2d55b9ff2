"""What the learner could not train costs one attempt, on a real ledger: the worker's own check before it publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from announcing import announce
from sound_groups import sound

from actors.rollout import RolloutWorker
from actors.runtime.context import ActorContext
from actors.runtime.spec import ActorSpec
from bus import Bus, Ledger, balanced
from bus.codec import TOKENS, VERSIONS, pack
from bus.messages import Sample, Ticket, Transition
from miles_async.config.schema import Data, Model, Record, RunConfig
from miles_async.groups.sound import check_group
from miles_async.rollout.interface import RolloutContext

replace = msgspec.structs.replace
# ids that the model knows, of version 1
SAMPLES = [
    replace(s, tokens=pack(np.ones(n), TOKENS), versions=pack(np.ones(n), VERSIONS), prompt_tokens=pack([1], TOKENS))
    for s in sound().samples
    for n in (len(s.loss_mask),)
]


async def attempt(bus: Bus, model: Path, samples: Any) -> tuple[dict[str, int], list[Transition], RolloutWorker]:
    """The first of three attempts at a group whose rollout function returns ``samples``."""
    config = RunConfig(model=Model(hf_checkpoint=str(model)), data=Data(prompt_data="none"), record=Record(level="off"))
    spec = ActorSpec("rollout-0", "rollout", 0, "", config, Path(), str(model), "", bus.run_id, 1)
    worker, ledger = RolloutWorker(ActorContext(spec, bus)), Ledger(bus)
    worker.teachers, worker.graded = None, False

    async def make(ticket: Ticket, context: RolloutContext) -> Any:
        return samples

    worker.make = make
    worker.context = RolloutContext(
        config, worker.tokenizer, worker.requests.slots.begin(0).ask, None, worker.ctx.event
    )  # type: ignore[arg-type]
    await ledger.prepare()
    ticket = Ticket(group_id="0-0-0", prompt_tokens=pack([1], TOKENS), sampling_seed=0)
    await ledger.admit([ticket], limit=1, position=0)
    (claimed,) = await ledger.next_tickets("rollout-0", worker.lease, 1, 60_000)
    await worker._rollout(claimed.ticket, worker.context)
    found, _ = await bus.read("events", Transition, "0")
    return await ledger.counts(), [t for t in found if t.kind in ("failed", "published")], worker


def with_first(**fields: Any) -> list[Sample]:
    return [replace(SAMPLES[0], **fields), *SAMPLES[1:]]


def of_version(version: int) -> list[Sample]:
    return [replace(s, versions=pack(np.full(len(s.loss_mask), version), VERSIONS)) for s in SAMPLES]


@pytest.mark.parametrize(
    ("samples", "reason", "why"),
    [
        (with_first(reward=1e308), "invalid_reward", "at most 1e+06"),
        (with_first(reward=float("nan")), "invalid_reward", "not finite"),
        ([*SAMPLES[:-1], replace(SAMPLES[-1], reward=0.123)], "invalid_reward", "branches of rollout 1"),
        (with_first(text="\ud83d"), "invalid_text", "no UTF-8"),
        (with_first(prompt_tokens=b"abc"), "invalid_prompt", "3 bytes"),
        (with_first(tokens=b"abc"), "rollout_error", "differ in length"),
        (with_first(reward=None), "rollout_error", "the reward must be a number, not NoneType"),
        (with_first(reward_parts={"format": float("nan")}), "invalid_reward", "the part format of the reward is nan"),
        (with_first(reward_parts={"format": 1e200}), "invalid_reward", "the part format of the reward is 1e+200"),
        (of_version(10**6), "invalid_versions", "the newest is 1"),  # a rollout function's claim
        (None, "rollout_error", "a list of samples"),
    ],
)
async def test_what_the_learner_could_not_train_costs_one_attempt(
    samples: Any, reason: str, why: str, bus: Bus, digits_model: Path
) -> None:
    await announce(bus, 1)
    counts, (transition,), _ = await attempt(bus, digits_model, samples)
    assert (transition.kind, transition.reason) == ("failed", reason) and why in transition.detail
    assert counts["waiting"] == 1 and balanced(counts)  # two attempts are left


async def test_rewards_of_numpy_and_torch_are_published_as_plain_numbers(bus: Bus, digits_model: Path) -> None:
    await announce(bus, 1)
    own = [
        replace(sample, reward=reward, rollout_index=i, reward_parts={"own": reward})
        for i, (sample, reward) in enumerate(zip(SAMPLES, [np.float32(0.5), torch.tensor(1), True], strict=False))
    ]
    _, (transition,), _ = await attempt(bus, digits_model, own)
    assert transition.kind == "published", transition.detail
    (ready,), _ = await Ledger(bus).ready_groups("0", block_ms=0)
    (group,) = await Ledger(bus).payloads([ready.payload_key])
    found = [(sample.reward, sample.reward_parts) for sample in group.samples]
    assert found == [(value, {"own": value}) for value in (0.5, 1.0, 1.0)][: len(own)]


async def test_versions_that_this_run_has_published_are_published_on(bus: Bus, digits_model: Path) -> None:
    await announce(bus, 7)
    counts, (transition,), worker = await attempt(bus, digits_model, of_version(7))
    assert transition.kind == "published" and counts["ready"] == 1
    (ready,), _ = await Ledger(bus).ready_groups("0", block_ms=0)
    (group,) = await Ledger(bus).payloads([ready.payload_key])
    check_group(group, worker.limits)
