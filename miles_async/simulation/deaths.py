"""Who dies in a simulation, and what becomes of what they held.

Promises: as in a run: an engine's requests go to others; a worker's groups are offered again, from nothing, once their lease
has ended, and the tokens that they had are lost; a learner trains again what came since its last checkpoint.
"""

from __future__ import annotations

from miles_async.simulation.events import Events, Rank
from miles_async.simulation.failures import Failures
from miles_async.simulation.fleet import SimulatedFleet
from miles_async.simulation.learner import SimulatedLearner
from miles_async.simulation.ledger import SimulatedLedger
from miles_async.simulation.samples import SimulatedGroup
from miles_async.simulation.settings import SimulationConfig
from miles_async.simulation.workers import SimulatedWorkers


class Deaths:
    """Of one simulation."""

    def __init__(
        self,
        config: SimulationConfig,
        events: Events,
        ledger: SimulatedLedger,
        fleet: SimulatedFleet,
        workers: SimulatedWorkers,
        learner: SimulatedLearner,
    ) -> None:
        self._config, self._events, self._ledger = config, events, ledger
        self._fleet, self._workers, self._learner = fleet, workers, learner

    def plan(self) -> None:
        """As ``[failures]`` says, from now on."""
        config, plan = self._config.failures, Failures(self._config, self._events).plan
        engines, workers = self._config.engines.num_engines, self._config.rollout.num_workers
        fleet, learner = self._fleet, self._learner
        plan("engine", engines, config.engine_interval_s, config.engine_down_s, fleet.die, fleet.come_back)
        come_back = self._workers.come_back
        plan("worker", workers, config.worker_interval_s, config.worker_down_s, self._worker_dies, come_back)
        plan("learner", 1, config.learner_interval_s, config.learner_down_s, learner.die, lambda index: None)

    def _worker_dies(self, index: int) -> None:
        groups = self._workers.die(index)
        for group in groups:
            held = [request for request in group.requests if request.holds]
            for request in held:
                request.holds = False
            self._fleet.abort(held)
            if group.position in self._ledger.open:  # else its tokens are counted as dropped
                self._fleet.lost_tokens += group.made
            group.worker, group.requests, group.unfinished = -1, [], 0
        if groups:
            when = self._events.now + self._config.rollout.lease_s
            self._events.at(when, Rank.REQUEST, index, self._offer_again, groups)

    def _offer_again(self, groups: list[SimulatedGroup]) -> None:
        self._workers.offer(groups, first=True)
