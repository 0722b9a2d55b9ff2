"""The rollout worker: turns tickets into scored prompt groups.

Consumes: tickets (claimed under a lease that it renews while it works). Publishes: groups, as the ledger's ``ready``.

Keeps: a group is published once, whole, with the version that sampled every token (invariant 5); an attempt that comes to
nothing is recorded with its reason and made again, up to ``max_attempts``; a worker that dies or stops leaves its tickets
to the others (invariant 1). The last attempt at a group is made alone, so that a prompt that kills its worker takes no
other group with it. It never re-tokenises what was sampled.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import Any

import aiohttp
import msgspec

from actors.runtime.context import ActorContext, Waiting
from actors.runtime.tasks import end
from bus import Ledger
from bus.codec import TOKENS, unpack
from bus.ledger import ClaimedTicket
from bus.messages import Group, Sample, Ticket
from miles_async.engine_client import EngineClient, EngineError
from miles_async.monitor.diagnosis import REWARD
from miles_async.rewards import Grader, RewardError, RewardSample
from miles_async.rollout.generate import AbortedError, AnswerError, generate_group
from miles_async.secret import resolve
from miles_async.tokenizer import Tokenizer

GONE = (None, 502, 503, 504)  # statuses of a request that may be sent again: no answer, or none of an engine's

TICKETS_AT_ONCE = 4  # a read takes few, so that the tickets of a small batch spread over the workers


class RolloutWorker:
    role = "rollout"

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx = ctx
        self.ledger = Ledger(ctx.bus)
        self.lease = f"{ctx.name}/{ctx.incarnation}"
        self.tokenizer = Tokenizer(ctx.model_path)
        self.attempts = ctx.config.rollout.max_attempts
        self.in_flight: dict[asyncio.Task[None], ClaimedTicket] = {}
        self.grading: set[Waiting] = set()  # of the groups that are being scored
        # groups on their last attempt wait here until nothing is in flight
        self.last_chances: deque[ClaimedTicket] = deque()

    async def run(self) -> None:
        config = self.ctx.config
        with self.ctx.waiting("the router's address"):
            url = await self.ctx.bus.address("router", deadline_s=config.engine.start_timeout_s)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session, Grader.from_config(config.reward) as grader:
            self.session, self.client, self.grader = session, self._router_at(url, session), grader
            renewal = asyncio.create_task(self._renew())
            try:
                self._begin(await self.ledger.own_tickets(self.ctx.name, self.lease, self.attempts))
                await self._work()
            finally:
                await end([renewal, *self.in_flight])
                await self.ledger.release(self.lease)

    async def _work(self) -> None:
        lease_ms = int(self.ctx.config.rollout.lease_s * 1000)
        stopped = asyncio.create_task(self.ctx.stop.wait())
        while not self.ctx.stop.is_set():
            if (free := self._free()) <= 0:
                with self.ctx.waiting("engines to finish a group"):
                    await asyncio.wait({stopped, *self.in_flight}, return_when=asyncio.FIRST_COMPLETED)
            elif self.in_flight:
                await self._take(min(free, TICKETS_AT_ONCE), lease_ms)
            else:
                with self.ctx.waiting("the dealer for a ticket"):
                    while not await self._take(min(free, TICKETS_AT_ONCE), lease_ms) and not self.ctx.stop.is_set():
                        pass  # one wait, however many reads it takes
            for task in [t for t in self.in_flight if t.done()]:
                del self.in_flight[task]
                task.result()

    def _free(self) -> int:
        """How many more groups may begin; starts the next last chance when nothing else is in flight."""
        if self.last_chances and not self.in_flight:
            claimed = self.last_chances.popleft()
            self.in_flight[asyncio.create_task(self._last_chance(claimed.ticket))] = claimed
            return 0
        if self.last_chances or any(self._is_last(claimed) for claimed in self.in_flight.values()):
            return 0
        return self.ctx.config.rollout.max_groups_in_flight - len(self.in_flight)

    def _is_last(self, claimed: ClaimedTicket) -> bool:
        return 1 < claimed.attempt == self.attempts

    async def _take(self, count: int, lease_ms: int) -> int:
        tickets = await self.ledger.next_tickets(self.ctx.name, self.lease, count, lease_ms, self.attempts)
        self._begin(tickets)
        return len(tickets)

    def _begin(self, tickets: list[ClaimedTicket]) -> None:
        for claimed in tickets:
            if self._is_last(claimed):
                self.last_chances.append(claimed)
            else:
                self.in_flight[asyncio.create_task(self._rollout(claimed.ticket))] = claimed

    async def _last_chance(self, ticket: Ticket) -> None:
        if await self.ledger.begin_last(ticket.group_id, self.lease):
            await self._rollout(ticket)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.ctx.config.rollout.lease_s / 4)
            held = [*self.in_flight.values(), *self.last_chances]
            await self.ledger.renew(self.ctx.name, [claimed.entry_id for claimed in held])

    async def _rollout(self, ticket: Ticket) -> None:
        """One attempt at a group, from its ticket to its publication or the record of its failure."""
        started = time.time()
        samples: list[Sample] = []
        try:
            with self.ctx.waiting("engines to generate"):
                samples = await generate_group(ticket, self.ctx.config.rollout, self._ask, self.tokenizer)
            samples = await self._score_all(ticket, samples)
        except (EngineError, AnswerError) as error:
            await self._fail(ticket, "generate_error", str(error), samples)
        except AbortedError as error:
            await self._fail(ticket, "aborted", str(error), samples)
        except RewardError as error:
            await self._fail(ticket, error.reason, str(error), samples)
        else:
            await self._publish(ticket, tuple(samples), started)

    async def _ask(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The engines' answers through the router; one that was replaced meanwhile is found again.

        Raises EngineError: refused, or nobody answers within ``request_timeout_s``.
        """
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + self.ctx.config.rollout.request_timeout_s, 0.1
        while True:
            try:
                left = max(deadline - loop.time(), 0.1)
                answers: Any = await self.client.generate(body, timeout=left)
                return answers
            except EngineError as error:
                if error.status not in GONE or loop.time() >= deadline:
                    raise
            with self.ctx.waiting("the router, or an engine behind it"):
                await asyncio.sleep(pause)
                pause = min(2 * pause, 2.0)
                with contextlib.suppress(TimeoutError):  # none is known at the moment
                    url = await self.ctx.bus.address("router", deadline_s=1.0)
                    self.client = self._router_at(url, self.session)
            body = body | {"rid": [f"{rid}+" for rid in body["rid"]]}  # an engine may still know the first one

    def _router_at(self, url: str, session: aiohttp.ClientSession) -> EngineClient:
        return EngineClient(url, session, resolve("router.api_key", self.ctx.config.router.api_key))

    async def _score_all(self, ticket: Ticket, samples: list[Sample]) -> list[Sample]:
        with self.ctx.waiting(REWARD) as wait:
            self.grading.add(wait)
            try:
                scored = await asyncio.gather(*(self._score(ticket, s) for s in samples), return_exceptions=True)
            finally:
                self.grading.discard(wait)
        for result in scored:
            if isinstance(result, BaseException):
                raise result
        return [result for result in scored if isinstance(result, Sample)]

    async def _score(self, ticket: Ticket, sample: Sample) -> Sample:
        reward = await self.grader.grade(
            RewardSample(
                prompt=ticket.prompt,
                response=sample.text,
                tokens=unpack(sample.tokens, TOKENS).tolist(),
                label=ticket.label,
                metadata=ticket.metadata,
                finish_reason=sample.finish_reason,
                group_id=ticket.group_id,
                index=sample.index,
            )
        )
        # it answers: groups that stand in line behind this one are not kept waiting by a hang
        for wait in self.grading:
            wait.since = time.time()
        return msgspec.structs.replace(sample, reward=reward)

    async def _publish(self, ticket: Ticket, samples: tuple[Sample, ...], started: float) -> None:
        now = time.time()
        group = Group(
            group_id=ticket.group_id,
            prompt_tokens=ticket.prompt_tokens,
            samples=samples,
            worker=self.ctx.name,
            started=started,
            finished=now,
            label=ticket.label,
        )
        if not await self.ledger.publish(group, self.lease, now):
            await self.ctx.event("late_publication_refused", group=ticket.group_id)

    async def _fail(self, ticket: Ticket, reason: str, detail: str, samples: list[Sample]) -> None:
        lengths = [len(unpack(sample.tokens, TOKENS)) for sample in samples]
        await self.ledger.fail(ticket.group_id, self.lease, reason, detail, attempts=self.attempts, lengths=lengths)
