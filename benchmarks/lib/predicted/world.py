"""The world of ``bench simulator_table``: how long responses are, and what a step of an engine and of the learner takes.

Lengths are of the position of the group and the sample alone, so that a simulation can be given the same ones; the parts of a
run find the world in the environment (:func:`from_environment`).
"""

from __future__ import annotations

import functools
import math
import os
from statistics import NormalDist
from typing import Literal, NamedTuple

import msgspec

from benchmarks.lib.synthetic.batch import uniform
from benchmarks.lib.timed_run import LONGEST
from miles_async.simulation.draws import Drawn

VARIABLE = "MILES_ASYNC_WORLD"
SAMPLES = 4  # of a group


class World(NamedTuple):
    """Of a response: ``kind``, ``mean`` tokens, ``sigma`` (of the logarithm) or ``alpha``, and how much those of a group are
    ``alike``. Seconds: of an engine's step, a request in it, a token that is prefilled, an update of the weights; of the
    learner's step, and a token in it. ``salt``: of the draws."""

    kind: Literal["lognormal", "pareto"] = "lognormal"
    mean: float = 110.0
    sigma: float = 0.6
    alpha: float = 2.5
    alike: float = 0.5
    salt: int = 0
    step_s: float = 0.024
    request_s: float = 0.00024
    prefill_s: float = 0.00004
    update_s: float = 0.1
    train_s: float = 0.8
    train_token_s: float = 0.00017

    def draw(self, seed: int) -> int:
        """As ``synthetic.batch.Lengths``: of the response with this sampling seed, in a run with ``run.seed = 0``."""
        return _length(self, seed)

    @property
    def settings(self) -> list[str]:
        """The distribution as a simulation's ``[lengths]``."""
        return [
            f"lengths.kind={self.kind}",
            "lengths.values=[]",
            f"lengths.mean={self.mean}",
            f"lengths.sigma={self.sigma}",
            f"lengths.alpha={self.alpha}",
            f"lengths.alike={self.alike}",
        ]


class Known(NamedTuple):
    """The groups of a world, as ``simulation.draws.Draws``. ``prompt``: tokens."""

    world: World
    prompt: int

    def group(self, position: int, again: int = 0) -> Drawn:
        return Drawn(self.prompt, [self.world.draw(position * SAMPLES + n) for n in range(SAMPLES)])

    def tool_s(self, position: int, sample: int, turn: int) -> float:
        return 0.0


def from_environment() -> World:
    return msgspec.json.decode(os.environ[VARIABLE], type=World)


def to_environment(world: World) -> dict[str, str]:
    return {VARIABLE: msgspec.json.encode(world).decode()}


@functools.lru_cache(1 << 18)
def _length(world: World, seed: int) -> int:
    common, own = (
        NormalDist().inv_cdf(min(uniform(number), 1.0 - 1e-12))
        for number in ((seed // SAMPLES) * 4 + 2 * world.salt + (1 << 40), seed * 4 + 2 * world.salt + 1 + (1 << 50))
    )
    z = math.sqrt(world.alike) * common + math.sqrt(1.0 - world.alike) * own
    if world.kind == "lognormal":
        drawn = world.mean * math.exp(world.sigma * z - world.sigma**2 / 2)
    else:
        shortest = world.mean * (world.alpha - 1) / world.alpha
        drawn = shortest * max(NormalDist().cdf(-z), 1e-12) ** (-1 / world.alpha)
    return min(LONGEST, max(1, round(drawn)))
