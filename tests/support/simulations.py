"""Simulations of a few groups, and what came of each of their steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from miles_async.simulation.draws import Drawn, DrawnBySeed
from miles_async.simulation.loop import Simulated, simulate
from miles_async.simulation.reading import parse
from miles_async.simulation.settings import SimulationConfig
from miles_async.staleness.choice import policy_of
from miles_async.staleness.policies import StalenessPolicy, StalenessState

BATCH = 4
TOKEN_S = 0.001
STEPS = 40
# one engine without a bound of its own, whose every token takes as long; one sample a group; updates in one wave
PLAIN = f"""
[simulation]
num_steps = {STEPS}
warmup_steps = 0
timeline = true
[rollout]
rollout_batch_size = {BATCH}
n_samples_per_prompt = 1
rollout_max_response_len = 1000000
num_workers = 1
max_groups_in_flight = 1000
[weights]
update_waves = 1
[engines]
num_engines = 1
max_running_requests = 10000
step_s = {TOKEN_S}
step_request_s = 0.0
prefill_token_s = 0.0
[learner]
step_s = 1.0
"""


def settings(*overrides: str) -> SimulationConfig:
    """PLAIN, with ``section.key=value`` on top."""
    return parse(PLAIN, overrides)


@dataclass
class Asked:
    """A policy between a simulation and ours: what it was asked, and what it decided."""

    policy: StalenessPolicy
    batches: list[list[int]] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    lags: list[int] = field(default_factory=list)

    @property
    def max_lag(self) -> int:
        return self.policy.max_lag

    @property
    def hard_bound(self) -> bool:
        return self.policy.hard_bound

    @property
    def requeues(self) -> bool:
        return self.policy.requeues

    @property
    def surplus(self) -> int:
        return self.policy.surplus

    @property
    def masks(self) -> bool:
        return self.policy.masks

    @property
    def holds(self) -> bool:
        return self.policy.holds

    def ticks(self, open_versions, version, batches):
        return self.policy.ticks(open_versions, version, batches)

    def admit(self, state: StalenessState) -> int:
        return self.policy.admit(state)

    def evict(self, ready, version):
        found = self.policy.evict(ready, version)
        self.dropped += [int(group_id) for group_id, _ in found if group_id]
        return found

    def select(self, ready, open_order, version, batch_size):
        chosen = self.policy.select(ready, open_order, version, batch_size)
        if chosen is not None:
            by_id = {group.group_id: group for group in ready}
            self.batches.append([int(group_id) for group_id in chosen])
            self.lags.append(max(version - by_id[group_id].oldest_version for group_id in chosen))
        return chosen


class Told(DrawnBySeed):
    """Groups whose every sample is as long as a function of the position says, in seconds of TOKEN_S tokens."""

    def __init__(self, config: SimulationConfig, seconds: Callable[[int], float]) -> None:
        super().__init__(config)
        self._seconds, self._samples = seconds, config.rollout.n_samples_per_prompt

    def group(self, position: int, again: int = 0) -> Drawn:
        return Drawn(0, [round(self._seconds(position) / TOKEN_S)] * self._samples)


def pace(simulated: Simulated, steps: int = 24) -> float:
    """Seconds a step, over the last ones."""
    ends = [line["time"] for line in simulated.record.lines]
    return (ends[-1] - ends[-1 - steps]) / steps


def run(
    config: SimulationConfig, seconds: Callable[[int], float] | None = None, policy: StalenessPolicy | None = None
) -> Simulated:
    """``seconds``: of the generation of a group, by position; None: as ``[lengths]`` says."""
    draws = None if seconds is None else Told(config, seconds)
    return simulate(config, policy or policy_of(config.staleness, config.rollout), draws)
