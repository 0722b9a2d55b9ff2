"""From prompt groups to padded micro-batches.

Promises: pure (numpy only); a group that ``sound_group`` refuses is refused before anything is computed; every masked-in
token is in exactly one micro-batch; the plan depends on the lengths alone and keeps the order of equals.

The last token of a sequence predicts nothing, so it is never an input: a micro-batch of sequences of up to ``L`` tokens
has ``L - 1`` columns. Padding is on the right, where causal attention does not see it, so no attention mask is needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, unpack
from bus.messages import Group, Sample
from miles_async.groups.rollouts import rollout_of
from miles_async.groups.routes import RouteShape
from miles_async.groups.sound import RAW, Limits, UnsoundGroup, check_groups, prompt_of

Array = npt.NDArray[Any]

# What one more micro-batch costs besides its tokens (Python, kernel launches), in tokens: it pays to split off short
# sequences only if that saves more padding than this. Measured with the 75k-parameter model on one core.
SPLIT_COST_TOKENS = 192
# The same where padding is not computed but by attention (packed.py).
PACKED_SPLIT_COST_TOKENS = 512


class BatchError(ValueError):
    """A group that cannot be trained on: which, and what is wrong with it."""


class BatchRefused(ValueError):
    """Another rank's groups are malformed; its own error says which. Nothing was changed."""


@dataclass(frozen=True)
class Sequences:
    """S sequences of prompt and response, flat. N is the number of response tokens of all of them."""

    tokens: Array  # [sum(lengths)] int32
    lengths: Array  # [S] int64
    prompt_lengths: Array  # [S] int64, at least 1
    mask: Array  # [N] bool: the response tokens to compute
    # [sum(lengths - 1), layers, top_k] integers: the experts that each input token goes to; None: routers choose them
    routes: Array | None = None


@dataclass(frozen=True)
class TrainBatch:
    """All samples of a rank's groups, in ledger order."""

    sequences: Sequences
    behaviour: Array  # [N] float32, the engine's log-probs
    versions: Array  # [N] int32
    sample_index: Array  # [N] int64
    rewards: Array  # [S] float64, what is trained on
    raw_rewards: Array  # [S] float64, before rollout-side post-processing: what is reported
    group_index: Array  # [S] int64
    rollout_index: Array  # [S] int64 from 0: the branches of one agent's rollout share it
    teacher: Array | None  # [N] float32, the teacher's log-probs; None where it was not asked
    truncated: Array  # [S] bool: the length limit ended the response
    # [N, k] int32 and float32: the teacher's likeliest tokens; None where not every sample has equally many
    teacher_top: tuple[Array, Array] | None = None


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass: ``rows`` sequences, ``columns`` input tokens each; n of the response tokens are computed."""

    tokens: Array  # [rows, columns] int64, padded on the right with 0
    widths: Array  # [rows] int64: input tokens of each row
    prompts: Array  # [rows] int64: equal where prompts are
    prompt_widths: Array  # [rows] int64: input tokens of the prompt
    positions: Array  # [n] int64: where the token before it sits in the [columns, rows] layout, flattened
    targets: Array  # [n] int64: the token itself
    token_index: Array  # [n] int64: its place among the N response tokens
    # [sum(widths), layers, top_k] integers: the experts of each input token, row after row; None: routers choose them
    routes: Array | None = None

    @classmethod
    def empty(cls) -> MicroBatch:
        """One that has nothing to compute: it keeps a rank in step with others that have more."""
        none, one = np.zeros(0, dtype=np.int64), np.ones(1, dtype=np.int64)
        return cls(np.zeros((1, 1), dtype=np.int64), one, one, one, none, none, none)


def flatten(groups: Sequence[Group], vocab_size: int, routes: RouteShape | None = None) -> TrainBatch:
    """The flat arrays of the groups. routes: the shape of the experts that came with each sample, which are to be replayed;
    None: they are not looked at; that they are experts of the model is the matter of who takes groups from the bus. Raises
    BatchError naming the group and sample."""
    try:
        check_groups(groups, Limits(vocab_size=vocab_size))
    except UnsoundGroup as error:
        raise BatchError(str(error)) from None
    samples = [(group, sample) for group in groups for sample in group.samples]
    tokens = unpack(b"".join(part for g, s in samples for part in (prompt_of(g, s), s.tokens)), TOKENS)
    behaviour = unpack(b"".join(s.logprobs for _, s in samples), LOGPROBS)
    mask = unpack(b"".join(s.loss_mask for _, s in samples), MASK) != 0
    versions = unpack(b"".join(s.versions for _, s in samples), VERSIONS)
    taught = bool(samples) and all(s.teacher_logprobs for _, s in samples)
    teacher = unpack(b"".join(s.teacher_logprobs for _, s in samples), LOGPROBS) if taught else None
    prompt_lengths = np.array([len(prompt_of(g, s)) // 4 for g, s in samples], dtype=np.int64)
    response_lengths = np.array([len(s.loss_mask) for _, s in samples], dtype=np.int64)
    lengths = prompt_lengths + response_lengths
    sample_index = np.repeat(np.arange(len(samples)), response_lengths)
    sizes = [len(group.samples) for group in groups]
    came_with = None if routes is None else _routes(samples, routes)
    return TrainBatch(
        sequences=Sequences(tokens, lengths, prompt_lengths, mask, came_with),
        behaviour=behaviour,
        versions=versions,
        sample_index=sample_index,
        rewards=np.array([s.reward for _, s in samples], dtype=np.float64),
        raw_rewards=np.array([s.reward_parts.get(RAW, s.reward) for _, s in samples], dtype=np.float64),
        group_index=np.repeat(np.arange(len(groups)), sizes),
        rollout_index=_rollouts(groups),
        teacher=teacher,
        truncated=np.array([s.finish_reason == "length" for _, s in samples], dtype=bool),
        teacher_top=_teacher_top([s for _, s in samples]),
    )


def _routes(samples: Sequence[tuple[Group, Sample]], shape: RouteShape) -> Array:
    """[sum(lengths - 1), layers, top_k]: uint8 or, as torch can do little with uint16, int16."""
    for group, sample in samples:
        try:
            shape.check_size(sample.routes, len(prompt_of(group, sample)) // 4 + len(sample.loss_mask))
        except ValueError as error:
            raise BatchError(f"group {group.group_id}, sample {sample.index}: {error}") from None
    every = shape.unpack(b"".join(sample.routes for _, sample in samples))
    return every if every.dtype == np.uint8 else every.astype(np.int16)


def _teacher_top(samples: Sequence[Sample]) -> tuple[Array, Array] | None:
    numbers = {len(s.teacher_top_tokens) / (4 * len(s.loss_mask)) for s in samples}
    k = numbers.pop() if len(numbers) == 1 else 0.0
    if not k or not k.is_integer() or any(len(s.teacher_top_logprobs) != len(s.teacher_top_tokens) for s in samples):
        return None
    ids = unpack(b"".join(s.teacher_top_tokens for s in samples), TOKENS)
    values = unpack(b"".join(s.teacher_top_logprobs for s in samples), LOGPROBS)
    return ids.reshape(-1, int(k)), values.reshape(-1, int(k))


def micro_batches(
    sequences: Sequences, max_tokens: int, split_cost: int = SPLIT_COST_TOKENS, *, padded: bool = True
) -> list[MicroBatch]:
    """The micro-batches of all sequences with at least one token to compute; none if there is none.

    max_tokens: cap on rows * columns; a single sequence above it gets a micro-batch of its own. split_cost: what one more
    micro-batch costs, in padded tokens. padded: whether padding is computed; else the cap is on the tokens alone.
    """
    lengths, prompts = sequences.lengths, sequences.prompt_lengths
    responses = lengths - prompts
    first_token = np.cumsum(lengths) - lengths
    first_response = np.cumsum(responses) - responses
    named = _prompts(sequences, first_token)
    wanted = np.zeros(len(lengths), dtype=np.int64)
    np.add.at(wanted, np.repeat(np.arange(len(lengths)), responses), sequences.mask)
    used = np.flatnonzero(wanted)
    result = []
    widths = lengths[used] - 1
    for rows in plan(widths, max_tokens, split_cost) if padded else filled(widths, max_tokens):
        rows = used[rows]
        columns = int(lengths[rows].max()) - 1
        tokens = np.zeros((len(rows), columns), dtype=np.int64)
        column = _ragged_arange(lengths[rows] - 1)
        row = np.repeat(np.arange(len(rows)), lengths[rows] - 1)
        tokens[row, column] = sequences.tokens[first_token[rows][row] + column]
        offset = _ragged_arange(responses[rows])
        row = np.repeat(np.arange(len(rows)), responses[rows])
        token_index = first_response[rows][row] + offset
        kept = sequences.mask[token_index]
        row, offset, token_index = row[kept], offset[kept], token_index[kept]
        place = prompts[rows][row] + offset
        result.append(
            MicroBatch(
                tokens=tokens,
                widths=lengths[rows] - 1,
                prompts=named[rows],
                prompt_widths=prompts[rows],
                positions=(place - 1) * len(rows) + row,
                targets=sequences.tokens[first_token[rows][row] + place].astype(np.int64),
                token_index=token_index,
                routes=_routes_of(sequences, rows),
            )
        )
    return result


def plan(widths: Array, max_tokens: int, split_cost: int) -> list[Array]:
    """Which sequences share a micro-batch, so that padded tokens plus ``split_cost`` for each micro-batch are least.

    widths: [S] int64 input tokens of each sequence. Returns index arrays that partition 0..S-1, widest first. Sorted by
    width, an optimal partition is contiguous; a shortest-path pass over the places for a cut finds it. Of a cut between two
    of the same width only those count behind which the micro-batch is full: else moving it to the left costs nothing.
    """
    order = np.argsort(-widths, kind="stable")
    n = len(order)
    cost = np.full(n + 1, np.inf)
    cost[0] = 0.0
    previous = np.zeros(n + 1, dtype=np.int64)
    before = 0
    for start, width in enumerate(np.maximum(widths[order], 1).tolist()):
        full = start + max(1, max_tokens // width)
        first = start + 1 if width != before else full
        before = width
        if first > n:
            continue
        ends = np.arange(first, min(n, full) + 1)
        total = cost[start] + split_cost + (ends - start) * width
        better = total < cost[ends]
        cost[ends[better]] = total[better]
        previous[ends[better]] = start
    bounds = [n]
    while bounds[-1] > 0:
        bounds.append(int(previous[bounds[-1]]))
    bounds.reverse()
    return [order[a:b] for a, b in itertools.pairwise(bounds)]


def _routes_of(sequences: Sequences, rows: Array) -> Array | None:
    """[sum(input tokens), layers, top_k] of those sequences, one after the other."""
    if sequences.routes is None:
        return None
    widths = sequences.lengths - 1
    first = np.cumsum(widths) - widths
    return sequences.routes[np.repeat(first[rows], widths[rows]) + _ragged_arange(widths[rows])]


def filled(widths: Array, max_tokens: int) -> list[Array]:
    """Which sequences share a micro-batch of which padding is not computed: few that are full. As :func:`plan` else.

    First fit, widest first (within 11 / 9 of the least number: Johnson, 1973).
    """
    parts: list[list[int]] = []
    room: list[int] = []
    for index in np.argsort(-widths, kind="stable").tolist():
        width = int(widths[index])
        fitting = next((number for number, left in enumerate(room) if left >= width), len(parts))
        if fitting == len(parts):
            parts.append([])
            room.append(max_tokens)
        parts[fitting].append(index)
        room[fitting] -= width
    return [np.array(part) for part in parts]


def _prompts(sequences: Sequences, first_token: Array) -> Array:
    """[S] int64: a number for each sequence's prompt, that of an equal one."""
    found: dict[bytes, int] = {}
    ends = first_token + sequences.prompt_lengths
    spans = zip(first_token.tolist(), ends.tolist(), strict=True)
    return np.array([found.setdefault(sequences.tokens[a:b].tobytes(), len(found)) for a, b in spans], dtype=np.int64)


def whole_sequences(sequences: Sequence[Array]) -> Sequences:
    """Every token of each sequence but the first is to be computed. Raises BatchError for a sequence without tokens."""
    lengths = np.array([len(tokens) for tokens in sequences], dtype=np.int64)
    if len(lengths) and lengths.min() < 1:
        raise BatchError("a sequence has no token")
    flat = np.concatenate([np.asarray(tokens) for tokens in sequences]) if len(lengths) else np.zeros(0, dtype=TOKENS)
    return Sequences(flat, lengths, np.ones_like(lengths), np.ones(int((lengths - 1).sum()), dtype=bool))


def _ragged_arange(counts: Array) -> Array:
    """0..counts[0]-1, 0..counts[1]-1, ... in one array."""
    starts = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) - np.repeat(starts, counts)


def _rollouts(groups: Sequence[Group]) -> Array:
    """A number from 0 for each sample's rollout, [S] int64."""
    named = [(g, rollout_of(sample)) for g, group in enumerate(groups) for sample in group.samples]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(named))}
    return np.array([numbers[name] for name in named], dtype=np.int64)
