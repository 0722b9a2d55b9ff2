"""The one check before publication and before training: what it refuses, and that all it passes can be trained.

The property: 10,000 groups, mutated field by field and byte by byte. Each is refused with a reason, or goes with the others
that pass through the learner's intake, share and objective, under every estimator: no exception, and a loss, metrics and a
gradient that are finite, the gradient also when it is squared in float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import pytest
import rl_step
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sound_groups import MAX_LAG, VERSION, sound
from train_support import VOCAB, make_groups

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, CodecError, decode, encode, pack, unpack
from bus.messages import UNSAMPLED, Group, Sample
from miles_async.groups.sound import MAX_REWARD, Limits, UnsoundGroup, check_group, received
from miles_async.rl.losses import value_loss
from miles_async.rl.terms import LossTerms
from miles_async.train.batch import flatten, micro_batches
from miles_async.train.intake import Admitted, admit
from miles_async.train.objective import Objective
from miles_async.train.share import make_share, micro_share

LIMITS = Limits(vocab_size=VOCAB, newest_version=VERSION, max_lag=MAX_LAG, context=40)
replace = msgspec.structs.replace


def changed(group: Group, at: int = 0, **fields: Any) -> Group:
    """``group`` with other fields in one of its samples."""
    if not (samples := list(group.samples)):
        return group
    samples[at % len(samples)] = replace(samples[at % len(samples)], **fields)
    return replace(group, samples=tuple(samples))


def filled(sample: Sample, value: float, dtype: Any = LOGPROBS) -> bytes:
    return pack(np.full(len(sample.loss_mask), value), dtype)


FIRST = sound().samples[0]
ALL_ON = {"loss_mask": filled(FIRST, 1, MASK)}


@pytest.mark.parametrize(
    ("fields", "reason", "problem"),
    [
        ({"tokens": filled(FIRST, VOCAB, TOKENS)}, "invalid_tokens", "not in 0..23"),
        ({"tokens": filled(FIRST, -1, TOKENS)}, "invalid_tokens", "not in 0..23"),
        ({"tokens": FIRST.tokens[:-1]}, "invalid_length", "differ in length"),
        ({"tokens": b"", "logprobs": b"", "loss_mask": b"", "versions": b""}, "invalid_length", "there is none"),
        ({"teacher_logprobs": FIRST.logprobs + b"\0\0\0\0"}, "invalid_length", "teacher_logprobs and logprobs differ"),
        ({"prompt_tokens": b"abc"}, "invalid_prompt", "3 bytes"),
        ({"prompt_tokens": pack([VOCAB], TOKENS)}, "invalid_tokens", "not in 0..23"),
        ({"prompt_tokens": pack([1] * 40, TOKENS)}, "invalid_length", "the context has 40"),
        ({"logprobs": filled(FIRST, float("nan")), **ALL_ON}, "invalid_logprobs", "a log-prob is not finite"),
        ({"logprobs": filled(FIRST, float("-inf")), **ALL_ON}, "invalid_logprobs", "a log-prob is not finite"),
        ({"logprobs": filled(FIRST, 0.7), **ALL_ON}, "invalid_logprobs", r"a log-prob is 0.7, not in -100000..0"),
        ({"teacher_logprobs": filled(FIRST, 0.7), **ALL_ON}, "invalid_teacher", "of the teacher is 0.7"),
        ({"versions": filled(FIRST, VERSION + 1, VERSIONS)}, "invalid_versions", "version 6.*the newest is 5"),
        ({"versions": filled(FIRST, 10**6, VERSIONS)}, "invalid_versions", "never published"),
        ({"versions": filled(FIRST, -1, VERSIONS)}, "invalid_versions", "version -1"),
        ({"versions": filled(FIRST, 1, VERSIONS), **ALL_ON}, "stale", "lag 4, above max_lag = 3"),
        ({"reward": float("nan")}, "invalid_reward", "the reward is not finite"),
        ({"reward": float("inf")}, "invalid_reward", "the reward is not finite"),
        ({"reward": 1e308}, "invalid_reward", r"is 1e\+308, at most 1e\+06 in magnitude"),
        ({"reward": -1.0001e6}, "invalid_reward", "at most"),
        ({"reward_parts": {"raw": float("nan")}}, "invalid_reward", "before post-processing is nan"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_a_reason_to_count_by(fields: Any, reason: str, problem: str) -> None:
    check_group(sound(), LIMITS)
    with pytest.raises(UnsoundGroup, match=f"^group 0-0-0, sample 0: .*{problem}") as caught:
        check_group(changed(sound(), **fields), LIMITS)
    assert caught.value.reason == reason


def test_branches_of_one_rollout_with_different_rewards_are_refused_before_publication() -> None:
    with pytest.raises(UnsoundGroup, match="sample 2: the branches of rollout 1 have different rewards"):
        check_group(changed(sound(), -1, reward=0.123), LIMITS)


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        (changed(sound(), text="\ud83d"), "invalid_text"),
        (changed(sound(), reward_parts={"\ud83d": 1.0}), "invalid_text"),
        (replace(sound(), label="\ud83d"), "invalid_text"),
        (changed(sound(), reward=np.float32(1)), "invalid_message"),
        (changed(sound(), reward=None), "invalid_message"),
        (changed(sound(), index=2**70), "invalid_message"),
        (changed(sound(), tokens="abc"), "invalid_message"),
    ],
)
def test_what_cannot_be_sent_or_read_is_refused_as_one_line(group: Group, reason: str) -> None:
    with pytest.raises(UnsoundGroup) as caught:
        received(group)
    assert caught.value.reason == reason and "\n" not in str(caught.value)
    str(caught.value).encode()


def test_a_group_that_no_reader_would_take_is_refused_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miles_async.groups.sound.MAX_MESSAGE_BYTES", 100)
    with pytest.raises(UnsoundGroup, match="bytes, at most 100") as caught:
        received(sound())
    assert caught.value.reason == "invalid_size"


def test_a_group_without_samples_and_one_without_its_teacher_are_refused() -> None:
    with pytest.raises(UnsoundGroup, match="0 samples"):
        check_group(replace(sound(), samples=()), LIMITS)
    with pytest.raises(UnsoundGroup, match="no log-probs of the teacher"):
        check_group(changed(sound(), teacher_logprobs=b""), Limits(taught=True))


def test_what_stands_where_the_mask_is_0_and_what_nobody_sampled_is_let_through() -> None:
    off = {"loss_mask": filled(FIRST, 0, MASK), "logprobs": filled(FIRST, float("nan"))}
    check_group(changed(sound(), **off), LIMITS)
    check_group(changed(sound(), versions=filled(FIRST, UNSAMPLED, VERSIONS)), LIMITS)
    check_group(changed(sound(), reward=-MAX_REWARD, logprobs=filled(FIRST, 1e-7)), LIMITS)


# the property

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

GROUPS, OF_EXAMPLE, TRAINED_AT_ONCE = 10_000, 50, 800
ESTIMATORS: dict[str, dict[str, Any]] = {
    "grpo": {"policy_loss": "cispo", "correction": ["tis", "m2po"]},
    "gspo": {"correction": ["mis", "opsm"]},
    "dr_grpo": {"policy_loss": "dppo", "correction": "icepop", "loss_aggregation": "constant"},
    "rloo": {"correction": ["rs", "veto"], "eps_clip_c": 3.0, "entropy_coef": 0.1},
    "reinforce_plus_plus": {"correction": "behaviour", "kl_coef": 0.1, "kl_loss_type": "k3"},
    "reinforce_plus_plus_baseline": {"correction": "uncorrected", "use_kl_loss": True, "kl_loss_coef": 0.1},
    "ppo": {"correction": "span_tis", "kl_coef": 0.1, "kl_loss_type": "k2", "loss_aggregation": "sample"},
}


@lru_cache
def objective(estimator: str, taught: bool) -> Objective:
    opd = {"use_opd": True, "opd_kl_coef": 0.5} if taught else {}
    return Objective(rl_step.config(max_lag=MAX_LAG, advantage_estimator=estimator, **ESTIMATORS[estimator], **opd))


class OneRank:
    def gather(self, values: list[float]) -> torch.Tensor:
        return torch.tensor([values], dtype=torch.float64)


def train(estimator: str, admitted: Admitted, rng: np.random.Generator) -> None:
    """What the learner does with a batch, around a model whose log-probs are one number for each token."""
    if not admitted.metrics["n_tokens"]:
        return
    asked = objective(estimator, admitted.taught)
    n = len(admitted.batch.behaviour)

    def model() -> torch.Tensor:
        return torch.from_numpy(-rng.exponential(3.0, n).astype(np.float32))

    current, values = model(), torch.from_numpy(rng.normal(size=n).astype(np.float32))
    share = make_share(
        admitted,
        asked,
        VERSION,
        current=current,
        reference=model() if asked.needs_reference else None,
        values=values if asked.needs_critic else None,
    )
    logprobs = (current + 0.1 * torch.randn(n)).clamp_max(0).requires_grad_(True)
    learnt = values.clone().requires_grad_(True)
    for micro in micro_batches(admitted.batch.sequences, 4096):
        part = micro_share(share, micro, torch.device("cpu"))
        index = torch.from_numpy(micro.token_index)
        terms = LossTerms(
            logprobs=logprobs[index],
            old=asked.old(part.current, part.behaviour, part.versions, VERSION),  # type: ignore[arg-type]
            behaviour=part.behaviour,
            advantages=part.advantages,
            sample_index=part.sample_index,
            versions=part.versions,
            version=VERSION,
            mask=torch.ones_like(part.behaviour),
        )
        loss, metrics = asked.loss(
            terms,
            part.weights,
            pg_weights=part.pg_weights,
            entropy=-logprobs[index],
            reference=part.reference,
            batch_correction=part.correction,
        )
        if part.returns is not None and part.values is not None:
            of_value, _ = value_loss(learnt[index], part.values, part.returns, value_clip=0.2)
            loss = loss + (of_value * part.weights).sum()
        loss.backward()
        assert torch.isfinite(loss) and all(torch.isfinite(value) for value in metrics.values()), (estimator, metrics)
    for leaf in (logprobs, learnt):
        if leaf.grad is not None:
            assert torch.isfinite(leaf.grad.square().sum()), estimator


def train_all(groups: Sequence[Group], seed: int) -> None:
    """Under every estimator: all of them, and those that have a teacher's log-probs with distillation."""
    torch.manual_seed(seed)
    taught = [group for group in groups if all(sample.teacher_logprobs for sample in group.samples)]
    for batch, estimators in ((groups, ESTIMATORS), (taught, ("grpo", "ppo"))):
        admitted = admit(batch, OneRank(), version=VERSION, max_lag=MAX_LAG, vocab_size=VOCAB)  # type: ignore[arg-type]
        for estimator in estimators:
            train(estimator, admitted, np.random.default_rng(seed))


def mutated(seed: int, number: int) -> Group:
    rng = np.random.default_rng(seed)
    group = replace(sound(int(rng.integers(40)), int(rng.integers(2, 5))), group_id=f"0-{number}-0")
    for _ in range(rng.integers(4)):
        group = MUTATIONS[rng.integers(len(MUTATIONS))](rng, group)
    return group


def test_whatever_passes_is_trained_under_every_estimator_and_the_rest_has_a_reason() -> None:
    seen, passed = Counter[str](), list[Group]()

    # a failing example names all of its groups: to shrink them would take minutes
    @settings(
        max_examples=GROUPS // OF_EXAMPLE,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(st.lists(st.integers(0, 2**32 - 1), min_size=OF_EXAMPLE, max_size=OF_EXAMPLE))
    def check(seeds: list[int]) -> None:
        for number, seed in enumerate(seeds):
            try:
                group, _ = received(mutated(seed, number))
                check_group(group, LIMITS)
                passed.append(group)
                seen["passed"] += 1
            except UnsoundGroup as error:
                seen[error.reason] += 1
        if len(passed) >= TRAINED_AT_ONCE:
            train_all([passed.pop() for _ in range(TRAINED_AT_ONCE)], seeds[0])

    check()
    train_all(passed, 0)
    assert seen.total() >= GROUPS and seen["passed"] > GROUPS / 5, seen
    reasons = {f"invalid_{name}" for name in ("tokens", "logprobs", "versions", "reward", "length", "prompt", "text")}
    assert reasons | {"stale", "invalid_message", "invalid_samples", "invalid_teacher"} <= seen.keys(), seen


def test_one_group_of_the_largest_rewards_and_ratios_has_a_finite_gradient_under_every_estimator() -> None:
    rewards = [MAX_REWARD, -MAX_REWARD, 1.0, 1.0]
    samples = [replace(sample, reward=r) for sample, r in zip(make_groups(1, 4)[0].samples, rewards, strict=True)]
    fields = [{"logprobs": filled(s, -1e5), "versions": filled(s, VERSION, VERSIONS)} for s in samples]
    wild = replace(sound(), samples=tuple(replace(s, **f) for s, f in zip(samples, fields, strict=True)))
    assert flatten([wild], VOCAB).behaviour.min() == -1e5
    train_all([wild, sound(1)], 0)
