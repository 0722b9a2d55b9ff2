"""The rollout workers: groups that wait for a worker, and samples that wait for a worker's slot.

Promises: as ``rollout/slots.py`` has it: a group begins where a slot is free beyond those that others wait for, no more samples
than the limit are in flight (but for a request of more than that, which is alone then), older groups come first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from miles_async.simulation.samples import Request, Sample, SimulatedGroup
from miles_async.simulation.settings import SimulationConfig

Send = Callable[[Request, list[Sample]], None]


class SimulatedWorkers:
    """``claimed`` hears of each group that begins."""

    def __init__(
        self,
        config: SimulationConfig,
        send: Send,
        is_open: Callable[[int], bool],
        claimed: Callable[[SimulatedGroup], None],
    ) -> None:
        self._config, self._send, self._is_open, self._claimed = config, send, is_open, claimed
        rollout = config.rollout
        self._size = rollout.n_samples_per_prompt
        self._limit = rollout.samples_in_flight
        self._per_sample = rollout.request_per_sample or config.environment.turns > 1
        count = rollout.num_workers
        self._free = [self._limit] * count
        self._queue: list[deque[Request]] = [deque() for _ in range(count)]
        self._queued = [0] * count  # samples
        self._groups: list[dict[int, SimulatedGroup]] = [{} for _ in range(count)]
        self._gone = [False] * count
        self._waiting: deque[SimulatedGroup] = deque()
        self._next = 0

    def offer(self, groups: Iterable[SimulatedGroup], *, first: bool = False) -> None:
        """Groups that may begin, in dealt order. first: before all others."""
        if first:
            self._waiting.extendleft(reversed([*groups]))
        else:
            self._waiting.extend(groups)
        idle = 0
        while self._waiting and idle < len(self._free):
            idle = 0 if self._begin_one(self._next) else idle + 1
            self._next = (self._next + 1) % len(self._free)

    def ended(self, request: Request) -> None:
        """All samples of a request are there: its slots are free."""
        worker = request.group.worker
        request.holds = False
        self._free[worker] += len(request.samples)
        self.go_on(worker)

    def done(self, group: SimulatedGroup) -> None:
        """All of its requests have ended."""
        self._groups[group.worker].pop(group.position, None)

    def let_go(self, group: SimulatedGroup) -> list[Request]:
        """Nobody wants it any more. Returns those of its requests that hold slots: they are to be aborted."""
        worker = group.worker
        if self._groups[worker].pop(group.position, None) is None:
            return []
        queue, mine = self._queue[worker], set(map(id, group.requests))
        self._queue[worker] = deque(request for request in queue if id(request) not in mine)
        self._queued[worker] -= self._size_of(queue) - self._size_of(self._queue[worker])
        held = [request for request in group.requests if request.holds]
        for request in held:
            request.holds = False
        self._free[worker] += self._size_of(held)
        return held

    def go_on(self, worker: int) -> None:
        """Slots of it may be free."""
        self._grant(worker)
        while self._waiting and self._begin_one(worker):
            pass

    def die(self, worker: int) -> list[SimulatedGroup]:
        """Returns the groups that it held, in dealt order."""
        groups = sorted(self._groups[worker].values(), key=lambda group: group.position)
        self._groups[worker].clear()
        self._queue[worker].clear()
        self._queued[worker], self._free[worker], self._gone[worker] = 0, self._limit, True
        return groups

    def come_back(self, worker: int) -> None:
        self._gone[worker] = False
        self.go_on(worker)

    def _begin_one(self, worker: int) -> bool:
        """Let the first group that waits begin at this worker, if there is room."""
        if self._gone[worker] or self._free[worker] - self._queued[worker] <= 0:
            return False
        while self._waiting:
            group = self._waiting.popleft()
            if self._is_open(group.position):
                break
        else:
            return False
        self._groups[worker][group.position] = group
        shares = self._config.engines.prefix_cache
        turns = self._config.environment.turns
        requests = group.begin(worker, per_sample=self._per_sample, shares_prompt=shares, turns=turns)
        self._claimed(group)
        self._queue[worker].extend(requests)
        self._queued[worker] += self._size
        self._grant(worker)
        return True

    def _grant(self, worker: int) -> None:
        queue = self._queue[worker]
        while queue:
            size = len(queue[0].samples)
            if size > self._free[worker] and self._free[worker] < self._limit:
                return
            request = queue.popleft()
            self._queued[worker] -= size
            self._free[worker] -= size
            request.holds = True
            self._send(request, request.samples)

    @staticmethod
    def _size_of(requests: Iterable[Request]) -> int:
        return sum(len(request.samples) for request in requests)
