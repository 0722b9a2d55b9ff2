"""Which prompt is dealt at a position of an endless run.

Promises: a pure function of position, seed, weights and the numbers of prompts; one source is gone through epoch by epoch,
each in an order of its own; several sources take turns so that at every moment each has had its share, to within one; a
source that begins a new epoch does so without the others; no pair of epoch and index comes twice.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

# apart by more than any run has epochs, so that no two sources are shuffled alike
SEEDS_APART = 1_000_003


def order(n_prompts: int, seed: int, epoch: int, shuffle: bool) -> tuple[int, ...]:
    """The permutation of ``range(n_prompts)`` in which ``epoch`` visits the prompts of a source.

    Shuffled as in Miles (``utils/data.py``): a Mersenne Twister seeded with ``seed + epoch``.
    """
    indices = list(range(n_prompts))
    if shuffle:
        random.Random(seed + epoch).shuffle(indices)
    return tuple(indices)


def prompt_at(
    position: int,
    n_prompts: int | Sequence[int],
    seed: int,
    shuffle: bool,
    weights: Sequence[float] | None = None,
) -> tuple[int, int]:
    """``(epoch, index)`` of the prompt that is dealt as number ``position`` (0-based) of a run.

    n_prompts: of the only source, or of each. weights: of the sources, above 0; None: their numbers of prompts. index: in
    the list of all sources, one behind the other. epoch: of the prompt's own source.
    """
    counts = (n_prompts,) if isinstance(n_prompts, int) else tuple(n_prompts)
    return _dealing(counts, seed, shuffle, None if weights is None else tuple(weights)).at(position)


class Turns:
    """Which source has its turn at a position.

    At every prefix of n positions each source has had more than ``n w - 1`` and less than ``n w + 1`` turns, w being its
    share of the weights: turn number j of a source (from 1) may come at position ceil(j / w) at the latest and not before
    floor((j - 1) / w) + 1, both counted from 1. Those are the windows of proportionate progress (Baruah, Cohen, Plaxton and
    Varvel, Algorithmica 15, 1996), which serving the earliest deadline first meets where one turn is given at a time.
    In whole numbers throughout; the sequence repeats after the sum of the weights in lowest terms. A position costs as many
    steps as it lies behind the furthest one asked for so far.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._parts = whole_numbers(weights)
        self._period = sum(self._parts)
        self._taken = [0] * len(self._parts)
        self._sources, self._numbers = array("I"), array("Q")

    def at(self, position: int) -> tuple[int, int]:
        """``(source, number)``: this is turn ``number`` (from 0) of ``source``."""
        cycle, place = divmod(position, self._period)
        while len(self._sources) <= place:
            self._give_turn()
        source = self._sources[place]
        return source, cycle * self._parts[source] + self._numbers[place]

    def _give_turn(self) -> None:
        position, period = len(self._sources) + 1, self._period
        _, source = min(
            (-(-(taken + 1) * period // part), source)  # the deadline, rounded up
            for source, (taken, part) in enumerate(zip(self._taken, self._parts, strict=True))
            if taken * period < position * part
        )
        self._sources.append(source)
        self._numbers.append(self._taken[source])
        self._taken[source] += 1


def whole_numbers(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers that stand to one another as ``weights`` do, taken as the decimals they are written as."""
    exact = [Fraction(repr(weight)) for weight in weights]
    common = math.lcm(*(weight.denominator for weight in exact))
    parts = [int(weight * common) for weight in exact]
    divisor = math.gcd(*parts)
    return [part // divisor for part in parts]


class _Dealing:
    """:func:`prompt_at` with its intermediate results kept."""

    def __init__(self, counts: tuple[int, ...], seed: int, shuffle: bool, weights: tuple[float, ...] | None) -> None:
        self._counts, self._seed, self._shuffle = counts, seed, shuffle
        self._starts = [0, *accumulate(counts)]
        self._turns = Turns(counts if weights is None else weights)
        # of each source the epoch being dealt and the one before: a permutation of all prompts is not made for each
        self._orders = [lru_cache(maxsize=2)(self._order) for _ in counts]

    def at(self, position: int) -> tuple[int, int]:
        source, number = self._turns.at(position)
        epoch, place = divmod(number, self._counts[source])
        return epoch, self._starts[source] + self._orders[source](source, epoch)[place]

    def _order(self, source: int, epoch: int) -> tuple[int, ...]:
        return order(self._counts[source], self._seed + source * SEEDS_APART, epoch, self._shuffle)


@lru_cache(maxsize=4)
def _dealing(counts: tuple[int, ...], seed: int, shuffle: bool, weights: tuple[float, ...] | None) -> _Dealing:
    return _Dealing(counts, seed, shuffle, weights)
