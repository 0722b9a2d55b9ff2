"""The rollout worker: turns tickets into scored prompt groups.

Consumes: tickets (claimed under a lease that it renews while it works). Publishes: groups, as the ledger's ``ready``.

    ticket ─► rollout function ─► grader ─► dynamic filter ──keep──► sample filter, reward post-processing, check ─► published
                                               └──refuse──► dropped, with the filter's reason

Keeps: a group is published once, with the version that sampled every token (invariant 5), and only if the learner can train
it; an attempt that comes to nothing is recorded with its reason and made again, up to ``max_attempts``; a worker that dies or
stops leaves its tickets to the others (invariant 1). A sample that cannot be made or graded is left out of its group, with an
event that names it. The last attempt at a group is made alone, so that a prompt that kills its worker takes no other group with
it. It never re-tokenises what was sampled.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import aiohttp

from actors.group_record import GroupRecord
from actors.rollout_requests import EngineRequests
from actors.runtime.context import ActorContext, Waiting
from actors.runtime.tasks import end
from bus import Ledger
from bus.ledger_leases import ClaimedTicket, Publication
from bus.messages import Begun, Group, Sample, Ticket
from bus.publisher import Publisher
from bus.waits import WaitKind
from miles_async.filters.apply import GroupFilters
from miles_async.groups.limits import group_limits
from miles_async.groups.sound import UnsoundGroup, check_group, received
from miles_async.http.heap import settle_memory
from miles_async.models.context_length import context_length
from miles_async.recording.recorder import PUBLISHED
from miles_async.rewards import Grader
from miles_async.rollout.failures import cause_of, check_samples, lengths_of, lost
from miles_async.rollout.first_failures import contained
from miles_async.rollout.interface import RolloutContext
from miles_async.rollout.registry import rollout_function
from miles_async.rollout.scoring import score
from miles_async.rollout.slots import GroupSlots
from miles_async.rollout.teacher import TeacherGoneError, teachers
from miles_async.runs.payloads import payload_store
from miles_async.staleness.choice import make_policy
from miles_async.staleness.policies import STALE_IN_FLIGHT
from miles_async.text.tokenizer import Tokenizer

LOOK_AT_THE_SILENT = 1 / 8  # of a lease: how often their tickets are looked for
TICKETS_AT_ONCE = 4  # a read takes few, so that the tickets of a small batch spread over the workers


class RolloutWorker:
    role = "rollout"

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx = ctx
        self.ledger = Ledger(ctx.bus, payload_store(ctx.config, ctx.bus.run_id))
        self.lease = f"{ctx.name}/{ctx.incarnation}"
        self.publisher = Publisher(self.ledger, self.lease)
        self.record = GroupRecord(ctx, self.lease)
        self.tokenizer = Tokenizer(ctx.model_path)
        self.requests = EngineRequests(ctx)
        self.make, self.filters = rollout_function(ctx.config), GroupFilters(ctx.config)
        self.limits = group_limits(ctx.config, ctx.model_path)
        self.attempts = ctx.config.rollout.max_attempts
        self.graded = ctx.config.algorithm.loss_type != "sft_loss"  # nobody looks at those rewards
        self.in_flight: dict[asyncio.Task[None], ClaimedTicket] = {}
        self.looked_at_the_silent = -math.inf
        self.grading: set[Waiting] = set()  # of the groups that are being scored
        # groups on their last attempt wait here until nothing is in flight
        self.last_chances: deque[ClaimedTicket] = deque()

    async def run(self) -> None:
        settle_memory()
        config = self.ctx.config
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.requests.close)
            await self.requests.open(self.tokenizer.vocab_size, context_length(config, self.ctx.model_path))
            self.teachers = None
            if config.algorithm.use_opd:
                connections = aiohttp.TCPConnector(limit=0)
                session = await stack.enter_async_context(aiohttp.ClientSession(connector=connections))
                self.teachers = teachers(config, session, self.ctx.event)
            self.grader = await stack.enter_async_context(Grader(config.reward))
            tokenizer = self.tokenizer.for_chats(config.data.chat_template_path, config.data.apply_chat_template_kwargs)
            ask, routes = self.requests.slots.begin(0).ask, self.limits.routes
            self.context = RolloutContext(config, tokenizer, ask, stack, self.ctx.event, routes=routes)
            duties = [asyncio.create_task(duty) for duty in (self._renew(), *self.requests.duties())]
            try:
                self._begin(await self.ledger.own_tickets(self.ctx.name, self.lease, self.attempts))
                await self._work()
                await self.requests.report()
            finally:
                await end([*duties, *self.in_flight])
                self.publisher.close()
                await self.record.close()
                await self.ledger.release(self.lease)

    async def _work(self) -> None:
        lease_ms = int(self.ctx.config.rollout.lease_s * 1000)
        freed = self.requests.slots.freed
        stopped = asyncio.create_task(self.ctx.stop.wait())
        stopped.add_done_callback(lambda _: freed.set())
        while not self._is_over():
            freed.clear()
            if (free := self._free()) <= 0:
                with self.ctx.waiting(WaitKind.SLOT):
                    await freed.wait()
            elif self.in_flight:
                await self._take(min(free, TICKETS_AT_ONCE), lease_ms)
            else:
                with self.ctx.waiting(WaitKind.TICKET):
                    while not await self._take(min(free, TICKETS_AT_ONCE), lease_ms) and not self._is_over():
                        pass  # one wait, however many reads it takes
            for task in [t for t in self.in_flight if t.done()]:
                del self.in_flight[task]
                if not task.cancelled():
                    task.result()

    def _is_over(self) -> bool:
        """Asked to stop; or to finish, and nothing is left to do."""
        finished = self.ctx.finish.is_set() and not self.in_flight and not self.last_chances
        return finished or self.ctx.stop.is_set()

    def _free(self) -> int:
        """How many more groups may begin; starts the next last chance when nothing else is in flight."""
        if self.last_chances and not self.in_flight:
            self._start(self.last_chances.popleft())
            return 0
        one_at_a_time = self.last_chances or any(self._is_last(claimed) for claimed in self.in_flight.values())
        if one_at_a_time or self.ctx.finish.is_set():
            return 0
        return self.requests.slots.room(self.ctx.config.rollout.n_samples_per_prompt)

    def _is_last(self, claimed: ClaimedTicket) -> bool:
        return 1 < claimed.attempt == self.attempts

    async def _take(self, count: int, lease_ms: int) -> int:
        """Claim tickets and begin them; now and then also those of workers that have been silent for ``lease_ms``."""
        now = time.monotonic()
        if now < self.looked_at_the_silent + lease_ms / 1000 * LOOK_AT_THE_SILENT:
            of_the_silent = None
        else:
            of_the_silent, self.looked_at_the_silent = lease_ms, now
        tickets = await self.ledger.next_tickets(self.ctx.name, self.lease, count, of_the_silent, self.attempts)
        self._begin(tickets)
        return len(tickets)

    def _begin(self, tickets: list[ClaimedTicket]) -> None:
        for claimed in tickets:
            if self._is_last(claimed):
                self.last_chances.append(claimed)
            else:
                self._start(claimed)

    def _start(self, claimed: ClaimedTicket) -> None:
        size = self.ctx.config.rollout.n_samples_per_prompt
        group = self.requests.slots.begin(size, claimed.ticket.group_id)
        task = asyncio.create_task(self._attempt(claimed, group))
        task.add_done_callback(lambda _: group.end())  # also of one that is cancelled before it begins
        self.in_flight[task] = claimed

    async def _attempt(self, claimed: ClaimedTicket, group: GroupSlots) -> None:
        ticket = claimed.ticket
        if not self._is_last(claimed) or await self.ledger.begin_last(ticket.group_id, self.lease):
            await self._rollout(ticket, replace(self.context, ask=group.ask, slots=group))

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.ctx.config.rollout.lease_s / 4)
            held = [*self.in_flight.values(), *self.last_chances]
            await self.ledger.renew(self.ctx.name, [claimed.entry_id for claimed in held])
            await self._let_go()

    async def _let_go(self) -> None:
        """End the attempts whose groups are this worker's no more (dropped, or given to another): nobody wants them."""
        groups = {task: claimed.ticket.group_id for task, claimed in self.in_flight.items()}
        held = await self.ledger.held(list(groups.values()), self.lease)
        for task, group_id in groups.items():
            if group_id not in held:
                task.cancel()

    async def _rollout(self, ticket: Ticket, context: RolloutContext) -> None:
        """One attempt at a group, from its ticket to its publication, its drop or the record of its failure."""
        started = time.time()
        samples: list[Sample] = []
        try:
            with self.ctx.waiting(WaitKind.GENERATION), contained():
                samples = await self.make(ticket, context)
            generated = time.time()
            samples = check_samples(samples)
            if await self._is_outdated(ticket, context):
                return
            if self.teachers is not None:
                with self.ctx.waiting(WaitKind.TEACHER):
                    samples = await self.teachers.teach(ticket, samples)
            if self.graded:
                samples = await self._score_all(ticket, samples)
            refusal = self.filters.refusal(samples)
            begun = Begun() if context.slots is None else context.slots.begun
            group = partial(self._group, ticket, started=started, generated=generated, begun=begun)
            sound = await self._sound(group(samples=self.filters.finished(samples))) if refusal is None else None
            if refusal is not None and self.ctx.config.record.level == "all":
                with contextlib.suppress(UnsoundGroup):  # it is not trained on anyway
                    await self.record.keep(*group(samples=samples), refusal)
        except TeacherGoneError:
            raise  # no fault of the group's
        except Exception as error:  # also of a function of the user: it costs this attempt, not the worker
            if await self._is_outdated(ticket, context):
                return
            await self._tell_first(ticket, error)
            await self._fail(ticket, *cause_of(error), samples)
            return
        if sound is not None:
            await self._publish(*sound)
        elif refusal is not None:
            detail = f"rewards {', '.join(f'{sample.reward:g}' for sample in samples)}"
            await self.ledger.discard(ticket.group_id, self.lease, refusal, detail, lengths=lengths_of(samples))

    async def _is_outdated(self, ticket: Ticket, context: RolloutContext) -> bool:
        """Whether no step can train the group any more; it is dropped then, and another one may begin, or its prompt's next."""
        if context.slots is None or not context.slots.is_outdated:
            return False
        detail = f"it was ended when the learner had reached version {self.requests.published_versions.heard.learner}"
        again = make_policy(self.ctx.config).requeues
        await self.ledger.discard(ticket.group_id, self.lease, STALE_IN_FLIGHT, detail, again=again)
        return True

    async def _score_all(self, ticket: Ticket, samples: list[Sample]) -> list[Sample]:
        """The samples with their rewards; those that have none are left out, on record. Raises RewardError: all of them."""
        with self.ctx.waiting(WaitKind.REWARD) as waiting:
            self.grading.add(waiting)
            try:
                scored, ungraded = await score(ticket, samples, self.grader)
            finally:
                self.grading.discard(waiting)
        # it answers: groups that stand in line behind this one are not kept waiting by a hang
        for waiting in self.grading:
            waiting.begin_again()
        for number, error in ungraded:
            about = lost(error, self.context.firsts)
            await self.ctx.event("sample_lost", group=ticket.group_id, rollout=number, **about)
        return scored

    async def _tell_first(self, ticket: Ticket, error: Exception) -> None:
        """The user's traceback, once for each cause."""
        if (news := self.context.firsts.news(error, *cause_of(error))) is not None:
            await self.ctx.event("failure", group=ticket.group_id, **news)

    async def _sound(self, received: tuple[Group, bytes]) -> tuple[Group, bytes]:
        """The group as the learner will read it, and its bytes. Raises UnsoundGroup: the learner could not train it."""
        group, payload = received
        newest = await self.requests.published_versions.newest_for(group.samples)
        if newest != self.limits.newest_version:
            self.limits = replace(self.limits, newest_version=newest)
        check_group(group, self.limits)
        return group, payload

    def _group(
        self, ticket: Ticket, *, samples: Sequence[Sample], started: float, generated: float, begun: Begun
    ) -> tuple[Group, bytes]:
        """The group as it is read from the bus, and its bytes there. Raises UnsoundGroup: it cannot be sent."""
        return received(
            Group(
                group_id=ticket.group_id,
                prompt_tokens=ticket.prompt_tokens,
                samples=tuple(samples),
                worker=self.ctx.name,
                started=started,
                finished=time.time(),
                label=ticket.label,
                begun=begun,
                generated=generated,
            )
        )

    async def _publish(self, group: Group, payload: bytes) -> None:
        await self.record.keep(group, payload, PUBLISHED)
        self.requests.published(group.samples)
        if not await self.publisher.publish(Publication(group, group.finished, payload)):
            await self.ctx.event("late_publication_refused", group=group.group_id)

    async def _fail(self, ticket: Ticket, reason: str, detail: str, samples: list[Sample]) -> None:
        lengths = lengths_of(samples)
        await self.ledger.fail(ticket.group_id, self.lease, reason, detail, attempts=self.attempts, lengths=lengths)
