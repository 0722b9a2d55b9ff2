"""What a run's staleness policy makes of a trace where nothing but generation, training and weight updates takes time: a
simulation (``miles_async/simulation/``) with the run's own policy, slots and updates, on one engine that is never full.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from benchmarks.lib.schedule.trace import SLOTS, Trace
from miles_async.config.schema import RunConfig
from miles_async.simulation.draws import Drawn
from miles_async.simulation.loop import simulate
from miles_async.simulation.settings import Engines, Learner, Simulation, SimulationConfig
from miles_async.staleness.choice import make_policy


class Ideal(NamedTuple):
    """step_ends: seconds. sizes: groups of each step. max_lag: versions. dropped: groups. masked_share: of the tokens."""

    step_ends: list[float]
    sizes: list[int]
    max_lag: int
    dropped: int
    masked_share: float


class Traced:
    """One sample for each group, since all of a group are equally long."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def group(self, position: int, again: int = 0) -> Drawn:
        return Drawn(0, [self._trace.tokens(position)])

    def tool_s(self, position: int, sample: int, turn: int) -> float:
        return 0.0


def ideal(config: RunConfig, trace: Trace) -> Ideal:
    """Of the run of ``config``, whose every step takes ``trace.step_s``. Raises StuckError."""
    simulated = simulate(
        SimulationConfig(
            simulation=Simulation(num_steps=config.run.num_steps, warmup_steps=0, timeline=True),
            rollout=replace(config.rollout, n_samples_per_prompt=1),
            staleness=config.staleness,
            weights=replace(config.weights, pause_mode="in_place"),
            engines=Engines(
                num_engines=1,
                max_running_requests=SLOTS,
                step_s=trace.token_s,
                step_request_s=0.0,
                prefill_token_s=0.0,
                update_s=trace.update_s,
            ),
            learner=Learner(step_s=trace.step_s),
        ),
        make_policy(config),
        Traced(trace),
    )
    record = simulated.record
    return Ideal(
        step_ends=[line["time"] for line in record.lines],
        sizes=[line["values"]["n_samples"] for line in record.lines],
        max_lag=max(record.lag_tokens),
        dropped=simulated.ledger.dropped.total(),
        masked_share=record.masked / (record.tokens + record.masked),
    )
