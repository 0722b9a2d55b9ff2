"""The one check before publication and before training: what it refuses, with a reason to count by, and what it lets by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sound_groups import LIMITS, VERSION, changed, filled, replace, sound
from train_support import VOCAB

from bus.codec import MASK, TOKENS, VERSIONS, pack
from bus.messages import UNSAMPLED, Group
from miles_async.groups.sound import MAX_REWARD, Limits, UnsoundGroup, check_group, received

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
