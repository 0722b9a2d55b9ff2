"""Groups that are sound but for what was done to them, field by field and byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sound_groups import MAX_LAG, VERSION, changed, replace, sound
from train_support import VOCAB

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, CodecError, decode, encode, pack, unpack
from bus.messages import UNSAMPLED, Group
from miles_async.groups.sound import MAX_REWARD

SPECIAL_REWARDS = [float("nan"), float("inf"), 1e308, -1e39, 1e7, MAX_REWARD, -MAX_REWARD, 0.0, 5e-324, 1e-30, 0.1]
SPECIAL_LOGPROBS = [float("nan"), float("inf"), float("-inf"), 1.0, 1e-4, -0.0, -1e-45, -50.0, -1e5, -1.1e5, -3e38]
SPECIAL_VERSIONS = [-(2**31), -1, 0, VERSION - MAX_LAG, VERSION, VERSION + 1, 10**6, UNSAMPLED]
SPECIAL_IDS = [-(2**31), -1, 0, VOCAB - 1, VOCAB, 2**31 - 1]
WRONG = [None, True, 1, "1", np.float64(1), [1.0], 2**70, "\ud83d"]
Mutation = Callable[[np.random.Generator, Group], Group]


def field(name: str, values: Sequence[Any]) -> Mutation:
    """Another value of a field of one sample."""

    def mutate(rng: np.random.Generator, group: Group) -> Group:
        return changed(group, int(rng.integers(99)), **{name: values[rng.integers(len(values))]})

    return mutate


def buffer(name: str, dtype: Any, values: Sequence[float]) -> Mutation:
    """One entry, or all, of a buffer of one sample has a special value; or the buffer has another length; or any bytes."""

    def mutate(rng: np.random.Generator, group: Group) -> Group:
        at = int(rng.integers(len(group.samples) or 1))
        data = getattr(group.samples[at], name) if group.samples else b""
        if not isinstance(data, bytes):  # mutated before
            return group
        how = rng.integers(8)
        if how == 0:
            data = data[: int(rng.integers(len(data) + 1))] + bytes(int(rng.integers(3)))
        elif how == 1:
            data = rng.bytes(len(data))
        elif len(data) >= dtype.itemsize:
            array = unpack(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype).copy()
            place = slice(None) if how == 2 else int(rng.integers(len(array)))
            array[place] = values[rng.integers(len(values))]
            data = pack(array, dtype)
        return changed(group, at, **{name: data})

    return mutate


def prompt(rng: np.random.Generator, group: Group) -> Group:
    data = [b"", b"abc", group.prompt_tokens * 9, pack([SPECIAL_IDS[rng.integers(len(SPECIAL_IDS))]], TOKENS)]
    return replace(group, prompt_tokens=data[rng.integers(len(data))])


def membership(rng: np.random.Generator, group: Group) -> Group:
    samples = list(group.samples)
    return replace(group, samples=tuple([[], samples[:1], samples * 9, samples[::-1]][rng.integers(4)]))


def same_for_all(rng: np.random.Generator, group: Group) -> Group:
    reward = SPECIAL_REWARDS[rng.integers(len(SPECIAL_REWARDS))]
    return replace(group, samples=tuple(replace(sample, reward=reward) for sample in group.samples))


def bits(rng: np.random.Generator, group: Group) -> Group:
    """One byte of the message is another one, if it still is a message."""
    try:
        data = bytearray(encode(group))
        data[rng.integers(len(data))] = rng.integers(256)
        return decode(bytes(data), Group)
    except (CodecError, UnicodeError, TypeError, ValueError, OverflowError):
        return group


MUTATIONS: list[Mutation] = [
    field("reward", SPECIAL_REWARDS),
    field("reward", WRONG),
    field("reward_parts", [{}, {"raw": 1e308}, {"raw": -1e30}, {"raw": float("nan")}, {"x": float("inf")}, None]),
    field("index", [-(2**63), 2**63 - 1, 0, 1, None]),
    field("rollout_index", [-1, 0, 1, 2**40]),
    field("text", ["", "\ud83d", "x" * 1000, None]),
    field("finish_reason", ["length", "abort", "", 3]),
    field("tokens", WRONG),
    buffer("tokens", TOKENS, SPECIAL_IDS),
    buffer("logprobs", LOGPROBS, SPECIAL_LOGPROBS),
    buffer("teacher_logprobs", LOGPROBS, SPECIAL_LOGPROBS),
    buffer("teacher_top_tokens", TOKENS, SPECIAL_IDS),
    buffer("teacher_top_logprobs", LOGPROBS, SPECIAL_LOGPROBS),
    buffer("loss_mask", MASK, [0, 1, 255]),
    buffer("versions", VERSIONS, SPECIAL_VERSIONS),
    buffer("prompt_tokens", TOKENS, SPECIAL_IDS),
    prompt,
    membership,
    same_for_all,
    bits,
]


def mutated(seed: int, number: int) -> Group:
    rng = np.random.default_rng(seed)
    group = replace(sound(int(rng.integers(40)), int(rng.integers(2, 5))), group_id=f"0-{number}-0")
    for _ in range(rng.integers(4)):
        group = MUTATIONS[rng.integers(len(MUTATIONS))](rng, group)
    return group
