"""From groups to micro-batches: every token once, little padding, malformed groups refused."""

import itertools
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch
from foreign_experts import with_foreign_experts
from hypothesis import example, given, settings
from hypothesis import strategies as st
from train_support import VOCAB, make_groups

from bus.codec import LOGPROBS, TOKENS, pack, unpack
from miles_async.config.layout import WHOLE
from miles_async.groups.routes import RouteShape
from miles_async.train.batch import BatchError, filled, flatten, micro_batches, plan, whole_sequences
from miles_async.train.outputs import inputs


@pytest.mark.parametrize("max_tokens", [1, 20, 64, 10_000])
def test_every_trained_token_is_in_exactly_one_micro_batch_after_its_own_prefix(max_tokens: int):
    groups = make_groups(5, 3, mask_share=0.4)
    batch = flatten(groups, VOCAB)
    samples = [(group, sample) for group in groups for sample in group.samples]
    seen = []
    for micro in micro_batches(batch.sequences, max_tokens):
        rows, columns = micro.tokens.shape
        assert rows * columns <= max_tokens or rows == 1
        for position, target, token in zip(micro.positions, micro.targets, micro.token_index, strict=True):
            owner = int(batch.sample_index[token])
            group, sample = samples[owner]
            offset = int(token - np.searchsorted(batch.sample_index, owner))
            whole = np.concatenate([unpack(group.prompt_tokens, TOKENS), unpack(sample.tokens, TOKENS)])
            place = len(group.prompt_tokens) // 4 + offset
            column, row = divmod(int(position), rows)
            assert target == whole[place]
            assert column == place - 1
            assert micro.tokens[row, : column + 1].tolist() == whole[:place].tolist()
            seen.append(int(token))
    assert sorted(seen) == np.flatnonzero(batch.sequences.mask).tolist()


def test_a_batch_without_a_trained_token_needs_no_forward():
    assert micro_batches(flatten(make_groups(2, 2, mask_share=1.1), VOCAB).sequences, 100) == []
    assert micro_batches(flatten([], VOCAB).sequences, 100) == []


def test_flat_arrays_keep_ledger_order():
    groups = make_groups(3, 2)
    batch = flatten(groups, VOCAB)
    assert batch.rewards.tolist() == [sample.reward for group in groups for sample in group.samples]
    assert batch.group_index.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.behaviour.tobytes() == b"".join(sample.logprobs for group in groups for sample in group.samples)


widths = st.lists(st.integers(1, 9), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(widths, st.integers(1, 40), st.integers(0, 12))
@example([1, 2, 5, 5, 5, 6], 20, 8)  # the best cut is between two of the same width
def test_no_partition_costs_less_than_the_plan(widths: list[int], max_tokens: int, split_cost: int):
    parts = plan(np.array(widths), max_tokens, split_cost)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(widths)))
    cost = sum(len(part) * max(widths[i] for i in part) + split_cost for part in parts)
    assert cost == _least_cost(tuple(sorted(widths, reverse=True)), max_tokens, split_cost)


def _least_cost(ordered: tuple[int, ...], max_tokens: int, split_cost: int) -> int:
    """By trying every set of cuts of the sorted widths."""
    n = len(ordered)
    best = None
    for count in range(n):
        for cuts in itertools.combinations(range(1, n), count):
            bounds = [0, *cuts, n]
            parts = [ordered[a:b] for a, b in itertools.pairwise(bounds)]
            if all(len(part) == 1 or len(part) * part[0] <= max_tokens for part in parts):
                cost = sum(len(part) * part[0] + split_cost for part in parts)
                best = cost if best is None else min(best, cost)
    assert best is not None
    return best


def test_sequences_of_equal_length_keep_their_order():
    assert plan(np.array([3, 5, 3, 5, 3]), 1000, 10**6)[0].tolist() == [1, 3, 0, 2, 4]


def test_whole_sequences_compute_all_but_the_first_token():
    packed = whole_sequences([np.array([1, 2, 3]), np.array([4])])
    (micro,) = micro_batches(packed, 100)
    assert micro.targets.tolist() == [2, 3]
    with pytest.raises(BatchError, match="no token"):
        whole_sequences([np.array([], dtype=np.int32)])


def _broken(**changes):
    group = make_groups(2, 2, mask_share=0.0)[1]
    sample = msgspec.structs.replace(group.samples[1], **changes)
    return [make_groups(1, 2)[0], msgspec.structs.replace(group, samples=(group.samples[0], sample))]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"loss_mask": b""}, "differ in length"),
        ({"reward": float("nan")}, "reward is not finite"),
        (
            {
                "tokens": pack([VOCAB], TOKENS),
                "logprobs": pack([-1], LOGPROBS),
                "loss_mask": b"\1",
                "versions": b"\0" * 4,
            },
            "token id",
        ),
        (
            {
                "tokens": pack([1], TOKENS),
                "logprobs": pack([float("nan")], LOGPROBS),
                "loss_mask": b"\1",
                "versions": b"\0" * 4,
            },
            "log-prob is not finite",
        ),
    ],
)
def test_a_malformed_sample_is_refused_by_name(changes, problem: str):
    with pytest.raises(BatchError, match=f"group 0-1-0, sample 1: .*{problem}"):
        flatten(_broken(**changes), VOCAB)


def test_an_empty_prompt_is_refused():
    group = msgspec.structs.replace(make_groups(1, 1)[0], prompt_tokens=b"")
    with pytest.raises(BatchError, match="prompt is empty"):
        flatten([group], VOCAB)


def test_each_input_token_has_the_experts_that_came_with_it_and_padding_those_of_its_row():
    shape = RouteShape(3, 2, 300, dense=1)
    batch = flatten(with_foreign_experts(make_groups(4, 3), shape), VOCAB, shape)
    first = np.cumsum(batch.sequences.lengths - 1) - (batch.sequences.lengths - 1)
    assert batch.sequences.routes is not None and len(batch.sequences.routes) == (batch.sequences.lengths - 1).sum()
    padded = 0
    for micro in micro_batches(batch.sequences, 100):
        owners = dict(zip(micro.positions % len(micro.widths), batch.sample_index[micro.token_index], strict=True))
        assert micro.routes is not None and len(micro.routes) == micro.widths.sum()
        routes = inputs(micro, WHOLE, 0, torch.device("cpu")).routes
        assert routes is not None
        for row, width in enumerate(micro.widths.tolist()):
            begin = first[owners[row]]
            own = batch.sequences.routes[begin : begin + width]
            columns = micro.tokens.shape[1]
            np.testing.assert_array_equal(routes[row], own[np.arange(columns) % width])
            padded += columns - width
    assert padded > 0
    assert micro_batches(whole_sequences([np.array([1, 2, 3])]), 100)[0].routes is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda routes: b"", "no experts came with it"),
        (lambda routes: routes[:-1], "bytes of experts, expected"),
    ],
)
def test_experts_that_cannot_be_replayed_are_refused_by_name(change: Callable[[bytes], bytes], problem: str):
    shape = RouteShape(2, 2, 4)
    good = with_foreign_experts(_broken(), shape)
    sample = good[1].samples[1]
    samples = (good[1].samples[0], msgspec.structs.replace(sample, routes=change(sample.routes)))
    flatten(good, VOCAB, shape)
    with pytest.raises(BatchError, match=f"group 0-1-0, sample 1: .*{problem}"):
        flatten([good[0], msgspec.structs.replace(good[1], samples=samples)], VOCAB, shape)


@given(widths, st.integers(1, 40))
def test_micro_batches_without_padding_are_full(widths: list[int], max_tokens: int):
    parts = filled(np.array(widths), max_tokens)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(widths)))
    sizes = [sum(widths[i] for i in part) for part in parts]
    assert all(size <= max_tokens or len(part) == 1 for size, part in zip(sizes, parts, strict=True))
    # what is in a later one had no room in an earlier one
    for earlier, later in itertools.combinations(range(len(parts)), 2):
        assert sizes[earlier] + min(widths[i] for i in parts[later]) > max_tokens
    for part in parts:
        assert [(-widths[i], i) for i in part] == sorted((-widths[i], i) for i in part)
