"""The dealer: gives out the right to generate.

Consumes: the prompts, the ledger, the versions that engines serve. Publishes: tickets.

Keeps: admission is the only back-pressure (invariant 7), and it is what makes the staleness bound hold: the policy says how
many more groups may start, a pure function of the ledger and the engines. The prompt position is the ledger's, so that a
restarted dealer deals nothing twice and skips nothing (invariant 1). It alone decides the sampling seed of every sample:
the same run deals the same tickets.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from actors.runtime.context import ActorContext, wait_for
from bus import Ledger
from bus.client import Topic
from bus.codec import TOKENS, pack
from bus.messages import Ticket, Wait
from bus.waits import WaitKind
from miles_async.data import Prompt, counts, fingerprint, load_prompts, prompt_at
from miles_async.hooks.daemon_thread import in_thread
from miles_async.recording import manifest
from miles_async.staleness.choice import make_policy
from miles_async.staleness.policies import StalenessState
from miles_async.text.tokenizer import Tokenizer

MAX_TICKETS_AT_ONCE = 256
MEMORY_SHARE = 0.8  # of what Redis may use: above it nothing new starts, so that what was started finds room
SEED_SPACE = 2**31 - 1  # what SGLang takes as a sampling_seed


class PromptsChangedError(ValueError):
    """A resumed run was given other prompts."""


class Dealer:
    role = "dealer"

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx = ctx
        self.ledger = Ledger(ctx.bus)
        self.policy = make_policy(ctx.config)
        tokenizer = Tokenizer(ctx.model_path)
        self.prompts = load_prompts(ctx.config, tokenizer)
        self.counts = counts(self.prompts)

    async def run(self) -> None:
        await self._check_prompts()
        cursors: dict[Topic, str] = {"weights": "0", "batches": "0"}
        with contextlib.ExitStack() as said:
            before = ""
            while not self.ctx.stop.is_set():
                wait = await self._deal()
                if wait.sentence != before:  # else it is one wait, however many looks it takes, and during them, too
                    said.close()
                    said.enter_context(self.ctx.saying(wait))
                    before = wait.sentence
                await self.ctx.bus.wait_for_news(cursors)

    async def _check_prompts(self) -> None:
        """A position in other prompts would mean other prompts. What the record of the run is of is written down here, since
        nothing is on it yet. Raises PromptsChangedError."""
        data, seed = self.ctx.config.data, self.ctx.config.run.seed
        mine = fingerprint(self.prompts, seed if data.rollout_shuffle else None, data.prompt_weights)
        if await self.ledger.bind("prompts", mine) != mine:
            raise PromptsChangedError(
                "the prompts, their order (data.rollout_shuffle, data.prompt_weights, run.seed) or both are not those that "
                "this run has dealt so far: start another run, or restore data.prompt_data"
            )
        if self.ctx.config.record.level != "off":
            where, model = self.ctx.run_dir, Path(self.ctx.model_path)
            await in_thread(partial(manifest.write, where, self.ctx.bus.run_id, self.ctx.config, model, mine))

    async def _deal(self) -> Wait:
        """Admit all that may start now; returns what the next admission waits for."""
        while True:
            state = await self._state()
            if state is None:
                return wait_for(WaitKind.ENGINE_TO_SERVE)
            allowed = min(self.policy.admit(state), MAX_TICKETS_AT_ONCE)
            if allowed <= 0:
                return self._awaited(state)
            used, limit = await self.ctx.bus.memory()
            if limit and used > MEMORY_SHARE * limit:
                return wait_for(WaitKind.ROOM_TO_DEAL, used=used >> 20, limit=limit >> 20)
            upto = state.open_groups + allowed
            if again := await self.ledger.waiting_again(min(allowed, self._again)):  # they have waited longest
                dealt_again = [self._ticket_again(group_id) for group_id in again]
                await self.ledger.admit_again(dealt_again, limit=upto, step=state.batched_steps)
                continue
            tickets = list(self._tickets(self._position, allowed))
            await self.ledger.admit(tickets, limit=upto, position=self._position, step=state.batched_steps)

    async def _state(self) -> StalenessState | None:
        engines = (await self.ctx.engine_states()).values()
        serving = [engine.version for engine in engines if engine.state in ("serving", "updating")]
        generates = self.ctx.config.rollout.generates
        if generates and not serving:
            return None
        now = await self.ledger.room()
        self._position, self._again = now.next_position, now.again
        return StalenessState(
            batched_steps=now.last_step,
            open_groups=now.open_groups,
            batch_size=self.ctx.config.rollout.rollout_batch_size,
            serving_version=min(serving) if generates else now.last_step,
            total_steps=self.ctx.config.run.num_steps,
        )

    def _awaited(self, state: StalenessState) -> Wait:
        if state.serving_version < state.batched_steps:
            return wait_for(WaitKind.VERSION_TO_SERVE, version=state.batched_steps, serving=state.serving_version)
        return wait_for(WaitKind.STEP, step=state.batched_steps + 1)

    def _tickets(self, position: int, count: int) -> Iterator[Ticket]:
        n = self.ctx.config.rollout.n_samples_per_prompt
        data, seed = self.ctx.config.data, self.ctx.config.run.seed
        for p in range(position, position + count):
            epoch, index = prompt_at(p, self.counts, seed, data.rollout_shuffle, data.prompt_weights)
            yield _ticket(f"{epoch}-{self.prompts[index].index}-0", self.prompts[index], sampling_seed(seed, p, n))

    def _ticket_again(self, group_id: str) -> Ticket:
        """Of another attempt at a prompt: ids are ``epoch-index-attempt``."""
        prompt = self.prompts[int(group_id.split("-")[1])]
        return _ticket(group_id, prompt, seed_again(self.ctx.config.run.seed, group_id))


def _ticket(group_id: str, prompt: Prompt, seed: int) -> Ticket:
    return Ticket(
        group_id=group_id,
        prompt_tokens=pack(prompt.tokens, TOKENS),
        sampling_seed=seed,
        prompt=prompt.text,
        label=prompt.label,
        metadata=prompt.metadata,
    )


def sampling_seed(run_seed: int, position: int, n_samples: int) -> int:
    """The seed of the first sample of the group at ``position``; sample i has this plus i. No two samples share one."""
    return (run_seed * 1_000_003 + position * n_samples) % SEED_SPACE


def seed_again(run_seed: int, group_id: str) -> int:
    """The seed of the first sample of a prompt that is made again: the same in each such run, by chance alone another's."""
    digest = hashlib.sha256(f"{run_seed}/{group_id}".encode()).digest()
    return int.from_bytes(digest[:8]) % SEED_SPACE
