"""Which prompt is dealt at a position: each source's share, its epochs, and that it is a function of the position alone."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from miles_async.data import dealing, order, prompt_at
from miles_async.data.dealing import Turns, whole_numbers

decimals = st.integers(1, 9999).map(lambda n: n / 1000)
weights = st.lists(st.one_of(st.integers(1, 50), decimals, st.floats(1e-3, 1e3)), min_size=1, max_size=6)
counts = st.lists(st.integers(1, 12), min_size=1, max_size=5)


def dealt(n: int, counts: int | list[int], seed: int, weights: list[float] | None = None) -> list[tuple[int, int]]:
    return [prompt_at(position, counts, seed, True, weights) for position in range(n)]


@given(weights)
def test_every_source_has_its_share_of_every_prefix_to_within_one(weights: list[float]) -> None:
    turns, given_so_far = Turns(weights), Counter()
    shares = [Fraction(repr(weight)) for weight in weights]
    total = sum(shares)
    for position in range(150):
        source, number = turns.at(position)
        assert number == given_so_far[source]
        given_so_far[source] += 1
        for source, share in enumerate(shares):
            assert abs(given_so_far[source] - (position + 1) * share / total) < 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 10**12))
def test_far_out_the_shares_are_still_exact(parts: list[int], position: int) -> None:
    turns = Turns(parts)
    whole = whole_numbers(parts)
    cycle, place = divmod(position, sum(whole))
    source, number = turns.at(place)
    assert turns.at(position) == (source, number + cycle * whole[source])


@given(counts, st.data(), st.integers(0, 10))
def test_every_prompt_comes_once_in_each_epoch_of_its_source(counts: list[int], data: st.DataObject, seed: int) -> None:
    weights = data.draw(st.none() | st.lists(decimals, min_size=len(counts), max_size=len(counts)))
    positions = dealt(100, counts, seed, weights)
    assert len(set(positions)) == len(positions)  # no group id is dealt twice
    source_of = [source for source, count in enumerate(counts) for _ in range(count)]
    for source, count in enumerate(counts):
        own = [(epoch, index) for epoch, index in positions if source_of[index] == source]
        assert [epoch for epoch, _ in own] == [number // count for number in range(len(own))]
        for epoch in range(len(own) // count):
            indices = sorted(index for e, index in own if e == epoch)
            assert indices == [index for index, of in enumerate(source_of) if of == source]


@given(counts, st.data())
def test_a_position_means_the_same_whatever_was_asked_before(counts: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.none() | st.lists(decimals, min_size=len(counts), max_size=len(counts)))
    positions = data.draw(st.lists(st.integers(0, 200), min_size=1, max_size=20))
    in_order = dealt(max(positions) + 1, counts, 3, weights)
    dealing._dealing.cache_clear()
    assert [prompt_at(p, counts, 3, True, weights) for p in positions] == [in_order[p] for p in positions]


@given(st.integers(1, 30), st.integers(0, 5), st.booleans(), st.none() | decimals, st.integers(0, 200))
def test_one_source_is_dealt_as_ever(n: int, seed: int, shuffle: bool, weight: float | None, position: int) -> None:
    epoch, place = divmod(position, n)
    indices = list(range(n))
    if shuffle:
        random.Random(seed + epoch).shuffle(indices)
    expected = (epoch, indices[place])
    assert prompt_at(position, n, seed, shuffle) == expected
    assert prompt_at(position, [n], seed, shuffle, None if weight is None else [weight]) == expected


@given(counts)
def test_without_weights_all_prompts_are_seen_equally_often(counts: list[int]) -> None:
    total = sum(counts)
    assert sorted(dealt(2 * total, counts, 1)) == [(epoch, index) for epoch in range(2) for index in range(total)]


def test_sources_are_shuffled_each_in_its_own_way() -> None:
    first = [index for _, index in dealt(100, [50, 50], 1) if index < 50]
    second = [index - 50 for _, index in dealt(100, [50, 50], 1) if index >= 50]
    assert tuple(first) == order(50, 1, 0, True) != tuple(second)
    assert sorted(first) == sorted(second)


def test_unshuffled_sources_are_read_from_top_to_bottom() -> None:
    assert [prompt_at(p, [2, 3], 1, False, [1, 2])[1] for p in range(9)] == [2, 0, 3, 4, 1, 2, 3, 0, 4]


def test_weights_are_the_decimals_they_are_written_as() -> None:
    assert whole_numbers([0.1, 0.2, 0.7]) == [1, 2, 7]
    assert whole_numbers([1e-3, 1]) == [1, 1000]
    assert whole_numbers([4, 6]) == [2, 3]
