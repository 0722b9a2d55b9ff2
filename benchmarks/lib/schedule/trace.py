"""How long each prompt group takes to generate: the trace that ``bench schedule`` gives both to a run and to the ideal.

One lognormal draw for each group, by its position alone: MEAN_STEPS train steps on average, in whole tokens, of which the mean
is MEAN_TOKENS; all samples of a group are equally long, none longer than LONGEST. The parts of a run find it in the environment
(:func:`from_environment`).
"""

from __future__ import annotations

import functools
import math
import os
from statistics import NormalDist
from typing import NamedTuple

import msgspec

from benchmarks.lib.synthetic.batch import uniform
from benchmarks.lib.timed_run import LONGEST

VARIABLE = "MILES_ASYNC_SCHEDULE"
MEAN_TOKENS = 110  # of a response
MEAN_STEPS = 2.2  # of the generation of a group, in train steps
SLOTS = 96  # groups that are generated at a time
BATCH_SIZE = 32
UPDATE_STEPS = 0.05  # of an update of the weights, in train steps: nothing is generated meanwhile


class Trace(NamedTuple):
    """sigma: of the logarithm. step_s: a train step. samples: of each group. idle_step, idle_s: one that waits for longer."""

    sigma: float
    step_s: float
    samples: int
    idle_step: int = 0
    idle_s: float = 0.0

    @property
    def token_s(self) -> float:
        return MEAN_STEPS * self.step_s / MEAN_TOKENS

    @property
    def update_s(self) -> float:
        return UPDATE_STEPS * self.step_s

    def tokens(self, position: int) -> int:
        """Of each response of the group dealt at ``position``."""
        return _tokens(self, position)

    def seconds(self, position: int) -> float:
        """From the first token of the group to its last, without a pause."""
        return self.tokens(position) * self.token_s

    def draw(self, seed: int) -> int:
        """As ``synthetic.batch.Lengths``: of the response with this sampling seed, in a run with ``run.seed = 0``."""
        return self.tokens(seed // self.samples)

    def train_s(self, step: int) -> float:
        return self.idle_s if step == self.idle_step else self.step_s


def from_environment() -> Trace:
    return msgspec.json.decode(os.environ[VARIABLE], type=Trace)


def to_environment(trace: Trace) -> dict[str, str]:
    return {VARIABLE: msgspec.json.encode(trace).decode()}


@functools.lru_cache(1 << 16)
def _tokens(trace: Trace, position: int) -> int:
    drawn = math.exp(math.log(MEAN_TOKENS) - trace.sigma**2 / 2 + trace.sigma * NormalDist().inv_cdf(uniform(position)))
    return min(LONGEST, max(1, round(drawn)))
