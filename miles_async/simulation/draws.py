"""What chance decides of each prompt group, by the position of its prompt alone.

Promises: pure, from a counter and not from a state, so that the same group is as long whatever the policy, the engines and the
order of events are; of a prompt that is made again what it has of its own stays, and the rest is drawn anew; the draws of a
block of groups are made at once.
"""

from __future__ import annotations

import functools
import math
from statistics import NormalDist
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from miles_async.simulation.settings import SimulationConfig

Floats = npt.NDArray[np.float64]

BLOCK = 512  # groups that are drawn at once
MASK = 2**64 - 1
PROMPT, COMMON, OWN, TOOL, REWARD, REFUSED, DEATH = range(7)  # streams of numbers that know nothing of one another
STREAMS = 7


class Drawn(NamedTuple):
    """Of a group. prompt: tokens. lengths: tokens of each response. reward_s: until it is graded. refused: by the filter."""

    prompt: int
    lengths: list[int]
    reward_s: float = 0.0
    refused: bool = False


class Draws(Protocol):
    """Where a simulation has its groups from."""

    def group(self, position: int, again: int = 0) -> Drawn:
        """Of the prompt at ``position``, when it is made ``again`` for so many times."""
        ...

    def tool_s(self, position: int, sample: int, turn: int) -> float:
        """Of the call after turn ``turn``, from 0, of a sample."""
        ...


class DrawnBySeed:
    """As ``[lengths]`` and ``[environment]`` say."""

    def __init__(self, config: SimulationConfig) -> None:
        self._config, self._seed = config, config.simulation.seed
        self._n = config.rollout.n_samples_per_prompt
        self._block = functools.lru_cache(maxsize=32)(self._made)

    def group(self, position: int, again: int = 0) -> Drawn:
        prompts, lengths, rewards, refused = self._block(position // BLOCK, again)
        place = position % BLOCK
        return Drawn(prompts[place], lengths[place], rewards[place], refused[place])

    def tool_s(self, position: int, sample: int, turn: int) -> float:
        environment = self._config.environment
        if not environment.tool_sigma:
            return environment.tool_s
        index = (position * self._n + sample) * environment.turns + turn
        z = NormalDist().inv_cdf(uniform(self._seed, TOOL, index))
        return environment.tool_s * math.exp(environment.tool_sigma * z - environment.tool_sigma**2 / 2)

    def _made(self, block: int, again: int) -> tuple[list[int], list[list[int]], list[float], list[bool]]:
        config, first = self._config, block * BLOCK
        lengths, environment = config.lengths, config.environment
        prompts = _lognormal(lengths.prompt_mean, lengths.prompt_sigma, normals(self._seed, PROMPT, first, BLOCK))
        rewards = _lognormal(
            environment.reward_s, environment.reward_sigma, normals(self._seed, anew(REWARD, again), first, BLOCK)
        )
        refused = uniforms(self._seed, anew(REFUSED, again), first, BLOCK) < environment.refused
        responses = np.rint(self._responses(first, again)).clip(
            environment.turns, config.rollout.rollout_max_response_len
        )
        return (
            np.rint(prompts).astype(np.int64).tolist(),
            responses.astype(np.int64).tolist(),
            rewards.tolist(),
            refused.tolist(),
        )

    def _responses(self, first: int, again: int) -> Floats:
        """[BLOCK, n] tokens, neither rounded nor cut."""
        lengths, n = self._config.lengths, self._n
        if lengths.kind == "constant":
            return np.full((BLOCK, n), lengths.mean)
        own = normals(self._seed, anew(OWN, again), first * n, BLOCK * n).reshape(BLOCK, n)
        common = normals(self._seed, COMMON, first, BLOCK)[:, None]
        z = math.sqrt(lengths.alike) * common + math.sqrt(1.0 - lengths.alike) * own
        if lengths.kind == "lognormal":
            return _lognormal(lengths.mean, lengths.sigma, z)
        beyond = np.array([math.erfc(value / math.sqrt(2.0)) / 2.0 for value in z.ravel().tolist()]).reshape(z.shape)
        if lengths.kind == "pareto":  # P(length > x) = (shortest / x) ** alpha
            shortest = lengths.mean * (lengths.alpha - 1.0) / lengths.alpha
            return shortest * np.maximum(beyond, 1e-300) ** (-1.0 / lengths.alpha)
        values = np.sort(np.array(lengths.values))
        return values[np.minimum(((1.0 - beyond) * len(values)).astype(np.int64), len(values) - 1)]


def anew(stream: int, again: int) -> int:
    """The stream of what is drawn anew for a prompt that is made ``again``."""
    return stream + STREAMS * again


def uniforms(seed: int, stream: int, first: int, count: int) -> Floats:
    """The numbers ``first`` ... of a stream, in (0, 1): splitmix64 of a counter (Steele, Lea, Flood, "Fast Splittable
    Pseudorandom Number Generators", 2014)."""
    start = np.uint64(_mix(_mix(seed & MASK) + stream))
    with np.errstate(over="ignore"):
        x = (np.arange(first, first + count, dtype=np.uint64) + start) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return ((x >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52


def uniform(seed: int, stream: int, index: int) -> float:
    """One of :func:`uniforms`."""
    return float(uniforms(seed, stream, index, 1)[0])


def normals(seed: int, stream: int, first: int, count: int) -> Floats:
    """Standard normal numbers of a stream (Box and Muller, 1958), two uniform ones for each."""
    pairs = uniforms(seed, stream, 2 * first, 2 * count)
    return np.sqrt(-2.0 * np.log(pairs[0::2])) * np.cos(2.0 * math.pi * pairs[1::2])


def _lognormal(mean: float, sigma: float, z: Floats) -> Floats:
    return mean * np.exp(sigma * z - sigma**2 / 2.0)


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)
