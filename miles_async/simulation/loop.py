"""The whole loop by events: what a run's actors do, with the run's own decisions.

    admit ──► worker's slot ──► router ──► engine ──► tools ──► reward ──► ready ──select──► step ──► version
      ▲                                                                                               │
      └── serving version ◄── waves of updates ◄───────────────────────────────────────────────────────┘

Promises: pure and deterministic; policies, router, waves and the learner's shares are the objects of a run, asked through
their own protocols; the learner waits for no update; a simulation in which nothing can go on, or groups are only made and
dropped, is a StuckError of one line.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from bus.messages import ReadyGroup
from miles_async.config.schema.rollout import POLICIES
from miles_async.simulation.asking import Window, judges_each, window_of
from miles_async.simulation.deaths import Deaths
from miles_async.simulation.draws import DrawnBySeed, Draws
from miles_async.simulation.events import Events, Rank
from miles_async.simulation.fleet import SimulatedFleet, Told
from miles_async.simulation.learner import SimulatedLearner
from miles_async.simulation.ledger import SimulatedLedger
from miles_async.simulation.moments import Moments
from miles_async.simulation.record import Record
from miles_async.simulation.samples import Sample, SimulatedGroup, goal
from miles_async.simulation.settings import SimulationConfig
from miles_async.simulation.workers import SimulatedWorkers
from miles_async.staleness.policies import STALE_IN_FLIGHT, StalenessPolicy, StalenessState, is_outdated

FRUITLESS = 1000  # batches' worth of groups that are dropped without a step between them
RENEWALS = 4  # of a lease, in its time: then a worker hears that a group is dropped


class StuckError(RuntimeError):
    """The policy waits for something that waits for the policy."""


@dataclass(frozen=True)
class Simulated:
    """A simulation at its end."""

    record: Record
    ledger: SimulatedLedger
    fleet: SimulatedFleet
    busy_s: float  # of all engines together, behind the warm-up
    version: int
    moments: Moments


def simulate(config: SimulationConfig, policy: StalenessPolicy, draws: Draws | None = None) -> Simulated:
    """The run of ``simulation.num_steps`` steps. ``draws``: of whose groups; None: as the settings say. Raises StuckError."""
    return _Loop(config, policy, draws or DrawnBySeed(config)).run()


class _Loop:
    def __init__(self, config: SimulationConfig, policy: StalenessPolicy, draws: Draws) -> None:
        self._config, self._policy, self._draws = config, policy, draws
        self._batch_size, self._steps = config.rollout.rollout_batch_size, config.simulation.num_steps
        self._turns = config.environment.turns
        self._events, self._ledger = Events(), SimulatedLedger()
        wanted = config.simulation
        self._moments = Moments(self._events, transitions=wanted.transitions, updates=wanted.timeline)
        told = Told(self._turn_ended, self._look_at_admission, self._moments.updated)
        self._fleet = SimulatedFleet(config, self._events, told)
        is_open = self._ledger.open.__contains__
        self._workers = SimulatedWorkers(config, self._fleet.send, is_open, self._moments.claimed)
        self._learner = SimulatedLearner(config, self._events, self._version_made, self._batch_ended)
        self._deaths = Deaths(config, self._events, self._ledger, self._fleet, self._workers, self._learner)
        bound = config.staleness.max_lag if policy.masks else None
        self._record = Record(config.warmup_steps, bound, config.simulation.timeline)
        self._window = Window(self._ledger, window_of(policy, self._batch_size), self._batch_size)
        self._judges_each = judges_each(policy)
        self._unjudged: list[ReadyGroup] = []  # published since the policy judged last
        self._batches = 0  # of the step under way
        self._prompts = 0  # that were dealt
        self._again: deque[tuple[int, int]] = deque()  # prompts that are to be dealt again
        rollout = config.rollout
        self._ends = rollout.partial_rollout and not rollout.mask_offpolicy_in_partial_rollout
        self._ends &= config.staleness.policy in POLICIES  # of one of the user's it is not known
        self._look = True
        self._refused: StalenessState | None = None  # in which nothing more was admitted
        self._fruitless = 0
        self._busy_at_start = 0.0

    def run(self) -> Simulated:
        self._deaths.plan()
        while self._learner.version < self._steps:
            if self._look:
                self._look = False
                self._choose()
                self._admit()
            if self._events.none_left:
                raise StuckError(self._stuck("nothing goes on"))
            self._events.next()
        busy = self._busy() - self._busy_at_start
        return Simulated(self._record, self._ledger, self._fleet, busy, self._learner.version, self._moments)

    # what a policy decides

    def _look_at_admission(self) -> None:
        self._look = True

    def _admit(self) -> None:
        ledger, serving = self._ledger, self._fleet.serving
        if serving is None:
            return
        groups: list[SimulatedGroup] = []
        while True:
            state = StalenessState(ledger.steps, len(ledger.open), self._batch_size, serving, self._steps)
            if state == self._refused or (count := self._policy.admit(state)) <= 0:
                self._refused = state
                break
            for position in range(ledger.dealt, ledger.dealt + count):
                prompt = self._next_prompt()
                groups.append(SimulatedGroup(position, self._draws.group(*prompt), prompt, serving))
                ledger.deal(groups[-1])
        if not groups:
            return
        self._moments.admitted(groups)
        if delay := self._config.links.admit_s:
            self._events.at(self._events.now + delay, Rank.REQUEST, groups[0].position, self._workers.offer, groups)
        else:
            self._workers.offer(groups)

    def _next_prompt(self) -> tuple[int, int]:
        """Its position, and how often it was made before: one that is to be made again, or a new one."""
        if self._again:
            return self._again.popleft()
        self._prompts += 1
        return self._prompts - 1, 0

    def _choose(self) -> None:
        """Drop what is too old, and begin a step if there is a batch."""
        if not self._learner.is_free or (self._learner.ticks and self._ledger.steps == self._steps):
            return
        self._evict()
        if not self._window.has_batch:
            return
        order = [group.group_id for group in self._ledger.open.values()]
        chosen = self._policy.select([*self._ledger.ready.values()], order, self._learner.version, self._batch_size)
        if chosen is None:
            return
        begins = self._learner.ticks
        groups, ready = self._ledger.batch(chosen, begins=begins)
        self._batches = 1 if begins else self._batches + 1
        for group in groups:
            self._window.gone(group.position, was_ready=True)
        for position in self._ledger.first_open(self._policy.surplus):
            self._drop(position, "surplus")
        self._fruitless = 0
        ticks = self._ledger.steps == self._steps or not self._policy.holds or self._asked_whether_to_tick()
        self._moments.batched(chosen, self._learner.version + 1, begins=begins, ticks=ticks)
        self._record.batch(groups, ready, self._learner.version, self._fleet.serving)
        self._learner.train(groups, ticks=ticks)

    def _asked_whether_to_tick(self) -> bool:
        """Else the weights are held: the next batch belongs to the same step."""
        ledger, serving = self._ledger, self._learner.version if self._fleet.serving is None else self._fleet.serving
        oldest = [group.oldest_version for group in ledger.ready.values()]
        oldest += [group.floor(serving) for group in ledger.open.values() if group.group_id not in ledger.ready]
        return self._policy.ticks([serving, *oldest], self._learner.version, self._batches)

    def _evict(self) -> None:
        asked = self._unjudged if self._judges_each else [*self._ledger.ready.values()]
        self._unjudged = []
        if asked:
            for group_id, reason in self._policy.evict(asked, self._learner.version):
                self._drop_old(int(group_id), reason)

    def _end_outdated(self) -> None:
        """As workers do it where the learner has another version: what is generated and too old for any step is ended."""
        version = self._learner.version
        for group in [*self._ledger.open.values()]:  # in dealt order: those behind were begun with newer weights
            if not is_outdated(self._policy, group.serving, version):
                return
            if group.has_begun and is_outdated(self._policy, group.floor(version), version, group.group_id):
                self._drop_old(group.position, STALE_IN_FLIGHT, at_once=True)

    def _drop_old(self, position: int, reason: str, *, at_once: bool = False) -> None:
        prompt, again = self._drop(position, reason, at_once=at_once).prompt
        if self._policy.requeues:
            self._again.append((prompt, again + 1))

    def _drop(self, position: int, reason: str, *, at_once: bool = False) -> SimulatedGroup:
        ledger, group = self._ledger, self._ledger.open[position]
        was_ready = group.group_id in ledger.ready
        ledger.drop(position, reason)
        self._window.gone(position, was_ready=was_ready)
        whole = was_ready or (group.requests != [] and not group.unfinished)
        made = sum(group.drawn.lengths) if whole else group.made + self._fleet.under_way(group)
        self._record.drop(group, reason, made, whole=whole)
        self._moments.dropped(group, reason, whole=whole)
        if group.requests and group.unfinished:
            # its worker hears of it when it renews the lease, unless it has dropped it itself
            period = self._config.rollout.lease_s / RENEWALS
            when = self._events.now if at_once else (math.floor(self._events.now / period) + 1) * period
            self._events.at(when, Rank.REQUEST, position, self._let_go, group)
        self._fruitless += 1
        if self._fruitless > FRUITLESS * self._batch_size:
            raise StuckError(self._stuck(f"{self._fruitless} groups were dropped ({reason}) since the last step"))
        return group

    def _let_go(self, group: SimulatedGroup) -> None:
        worker = group.worker
        if worker >= 0:
            self._fleet.abort(self._workers.let_go(group))
            self._workers.go_on(worker)

    # a group on its way

    def _turn_ended(self, sample: Sample) -> None:
        request, group = sample.request, sample.request.group
        if sample.made < sample.length:
            sample.turn += 1
            sample.goal = goal(sample.length, sample.turn, self._turns)
            request.left = 1
            wait = self._draws.tool_s(group.position, request.numbers[0], sample.turn - 1)
            self._events.at(
                self._events.now + wait, Rank.REQUEST, group.position, self._next_turn, sample, group.attempt
            )
            return
        if request.left:
            return
        group.unfinished -= 1
        if not group.unfinished:
            self._workers.done(group)
            wait = group.drawn.reward_s + self._config.links.publish_s
            self._events.at(self._events.now + wait, Rank.PUBLISHED, group.position, self._published, group)
        self._workers.ended(request)

    def _next_turn(self, sample: Sample, attempt: int) -> None:
        if sample.request.holds and sample.request.group.attempt == attempt:  # else nobody wants it any more
            sample.prompt += self._config.environment.tool_tokens
            self._fleet.send(sample.request, [sample])

    def _published(self, group: SimulatedGroup) -> None:
        if group.position not in self._ledger.open:
            return  # dropped meanwhile
        self._look = True
        if group.drawn.refused:
            self._drop(group.position, "filter")
            return
        ready = group.ready(self._events.now)
        self._ledger.publish(ready)
        self._moments.published(ready)
        self._window.published(group.position)
        self._unjudged.append(ready)

    def _version_made(self) -> None:
        learner, now = self._learner, self._events.now
        self._ledger.train()
        self._record.step(learner.version, now, learner.train_s, learner.wait_s, self._ledger.dropped)
        if learner.version == self._config.warmup_steps:
            self._busy_at_start = self._busy()
        if learner.offers(learner.version) and self._ends:
            self._end_outdated()
        if learner.offers(learner.version):
            if delay := self._config.links.offer_s:
                self._events.at(now + delay, Rank.SERVED, 1, self._fleet.offer, learner.version)
            else:
                self._fleet.offer(learner.version)

    def _batch_ended(self) -> None:
        self._look = True
        self._unjudged = [*self._ledger.ready.values()]

    # words and sums

    def _busy(self) -> float:
        return sum(engine.busy_until(self._events.now) for engine in self._fleet.engines)

    def _stuck(self, what: str) -> str:
        policy, ledger = self._config.staleness.policy, self._ledger
        return (
            f'staleness.policy = "{policy}" with max_lag = {self._policy.max_lag} cannot progress: {what} at version '
            f"{self._learner.version}, {len(ledger.ready)} of {len(ledger.open)} open groups are ready, batches are of "
            f"{self._batch_size}, engines serve version {self._fleet.serving}"
        )
