"""What a rollout worker asks of the engines: requests through the router, in slots, under a limit that may follow their load.

    groups ──ask──► slots ──send, again if need be──► router ──► engines        reads  the router's address, GET /loads
                      ▲ limit, cancel                    │                      writes metrics, POST /abort_request
                      └────────── policy ◄──loads────────┘

Keeps: a request is sent until somebody answers, at most ``request_timeout_s``, also where its router is replaced and silent; a
sample is called back only to go on from the tokens it has, which is no failure of its attempt; without news of the load the
limit stays as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from actors.runtime.context import ActorContext
from bus.codec import VERSIONS, unpack
from bus.messages import UNSAMPLED, Sample
from bus.waits import WaitKind
from miles_async.config.secrets import resolve
from miles_async.engines.client import EngineError
from miles_async.engines.lean_client import LeanEngineClient
from miles_async.rollout.generate import own_cache
from miles_async.rollout.inflight import AdaptiveLimit, read_loads
from miles_async.rollout.published import PublishedVersions
from miles_async.rollout.slots import RolloutRequest, Slots
from miles_async.rollout.unpaired import UnpairedShare
from miles_async.router.kinds import kind_of
from miles_async.staleness.choice import outdated

GONE = (None, 502, 503, 504)  # statuses of a request that may be sent again: no answer, or none of an engine's
LOOK_S = 1.0
LOADS_TIMEOUT_S = 5.0
MAX_CANCELS = 64  # samples called back at one look: each is a request to every engine


class EngineRequests:
    """Of one worker. :meth:`open` comes first; its :meth:`duties` run beside the work."""

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx = ctx
        self.published_versions = PublishedVersions(ctx.bus)
        heard, is_outdated = self.published_versions.heard, outdated(ctx.config)
        self.slots = Slots(
            ctx.config.rollout.samples_in_flight,
            self.send,
            heard=heard,
            outdated=lambda oldest: is_outdated(oldest, heard.learner),
        )
        self.policy = self._policy() if ctx.config.rollout.adaptive_in_flight and ctx.config.rollout.generates else None
        if self.policy is not None:
            self.slots.limit = self.policy.limit
        self.unpaired = UnpairedShare(updates_retract=ctx.config.weights.pause_mode == "retract")
        self._version = 0  # the newest weights that a published sample was made with
        self._clients: dict[str, LeanEngineClient] = {}  # of the places where the router was

    def _policy(self) -> AdaptiveLimit:
        """Begins with this worker's share of what the engines run at once."""
        rollout, engine = self.ctx.config.rollout, self.ctx.config.engine
        engines = len(engine.urls) or engine.num_engines
        share = engine.max_running_requests * engines // rollout.num_workers
        return AdaptiveLimit(
            min(rollout.n_samples_per_prompt, rollout.samples_in_flight), rollout.samples_in_flight, share
        )

    async def open(self, vocab_size: int | None = None, context_length: int | None = None) -> None:
        """Find the router, unless nobody will be asked. ``vocab_size``: other ids are not sent. :meth:`close` it.

        Raises TimeoutError: none in ``engine.start_timeout_s``.
        """
        if not self.ctx.config.rollout.generates:
            return
        with self.ctx.waiting(WaitKind.ROUTER_ADDRESS):
            url = await self.ctx.bus.address("router", deadline_s=self.ctx.config.engine.start_timeout_s)
        self.vocab_size, self.context_length = vocab_size, context_length
        self.client = self._router_at(url)
        await self.published_versions.read_all()

    def close(self) -> None:
        """Break off what is asked."""
        for client in self._clients.values():
            client.close()

    def _router_at(self, url: str) -> LeanEngineClient:
        """The client of the router there, with the connections it has."""
        if url not in self._clients:
            self._clients[url] = self._client_of(url)
        return self._clients[url]

    def _client_of(self, url: str) -> LeanEngineClient:
        config = self.ctx.config.router
        return LeanEngineClient(
            url,
            resolve("router.api_key", config.api_key),
            batches=kind_of(config).takes_batches,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
        )

    async def send(self, request: RolloutRequest) -> list[dict[str, Any]]:
        """The engines' answers through the router; one that was replaced meanwhile is found again.

        Raises EngineError: refused, or nobody answers within ``request_timeout_s``. AnswerError: of weights that never were.
        """
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + self.ctx.config.rollout.request_timeout_s, 0.1
        while True:
            try:
                left = max(deadline - loop.time(), 0.1)
                body = own_cache(request.body) if self.ctx.config.weights.pause_mode == "in_place" else request.body
                answers: Any = await self.client.generate(body, timeout=left, routing_key=request.group)
                await self.published_versions.check(answers)
                if self.ctx.config.rollout.routing_replay:
                    self.unpaired.count(answers)
                return answers
            except EngineError as error:
                if error.status not in GONE or loop.time() >= deadline:
                    raise
            with self.ctx.waiting(WaitKind.ROUTER):
                await asyncio.sleep(pause)
                pause = min(2 * pause, 2.0)
                with contextlib.suppress(TimeoutError):  # none is known at the moment
                    self.client = self._router_at(await self.ctx.bus.address("router", deadline_s=1.0))
            request.rename()  # an engine may still know the first one

    def duties(self) -> Iterable[Coroutine[Any, Any, None]]:
        """What runs beside the work; each until cancelled."""
        follows = (
            [self.published_versions.follow(self._call_back_outdated)] if self.ctx.config.rollout.generates else []
        )
        return [self.watch(), *follows]

    async def watch(self) -> None:
        """Follow the engines' load, and report; until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self.ctx.config.rollout.generates:
                await self.find_router()
            if self.policy is not None:
                await self._follow(self.policy)
            await self.report()

    async def find_router(self) -> None:
        """One that was replaced may be silent for ever, with its machine: what it was asked is asked its successor."""
        try:
            url = await self.ctx.bus.address("router", deadline_s=0.0)
        except TimeoutError:  # none is known at the moment
            return
        if url.rstrip("/") != self.client.url:
            replaced, self.client = self.client, self._router_at(url)
            replaced.close()

    async def _follow(self, policy: AdaptiveLimit) -> None:
        try:
            engines = read_loads(await self.client.fleet_loads(timeout=LOADS_TIMEOUT_S))
        except EngineError as error:  # the router may be in the middle of a restart
            self.ctx.log.warning("the limit of samples in flight stays %d: %s", self.slots.limit, error)
            return
        advice = policy.look(engines, self.slots.in_flight, self.slots.waiting)
        self.slots.limit = advice.limit
        # where a sample could not go on as it is, it is left to the engine, which retracts what it has no room for
        if advice.cancel and self._can_go_on:
            await self._abort(self.slots.cancel(min(advice.cancel, MAX_CANCELS)))

    @property
    def _can_go_on(self) -> bool:
        """Whether a sample that is called back loses nothing."""
        rollout = self.ctx.config.rollout
        return rollout.partial_rollout and not rollout.mask_offpolicy_in_partial_rollout

    async def _call_back_outdated(self) -> None:
        """The learner has another version. Requests that may be too old for it are ended at their engines, which are paused for
        it now or soon: else their prefill would be paid once more. A group that proves to be too old ends with them
        (``complete`` of rollout/generate.py), any other goes on."""
        if self._can_go_on and kind_of(self.ctx.config.router).aborts:
            await self._abort(self.slots.cancel_outdated())

    async def _abort(self, rids: Sequence[str]) -> None:
        await asyncio.gather(*map(self.client.abort, rids), return_exceptions=True)

    def published(self, samples: tuple[Sample, ...]) -> None:
        """Metrics are put at the version of what was published last."""
        newest = int(unpack(b"".join([s.versions[-VERSIONS.itemsize :] for s in samples]), VERSIONS).max(initial=0))
        if newest != UNSAMPLED:
            self._version = max(self._version, newest)

    async def report(self) -> None:
        slots = self.slots
        values = {
            "rollout/in_flight_samples": float(slots.in_flight),
            "rollout/in_flight_limit": float(slots.limit),
            "rollout/canceled": float(slots.canceled),
        }
        await self.ctx.metrics(self._version, values | slots.timing.report() | self.unpaired.report())
