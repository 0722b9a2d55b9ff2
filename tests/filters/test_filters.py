"""What becomes of a scored group: who is refused and why, what is masked, which rewards the learner sees."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.codec import MASK, TOKENS, VERSIONS, pack, unpack
from bus.messages import ReadyGroup, Sample
from miles_async.config.schema import Data, Model, Reward, Rollout, RunConfig
from miles_async.filters.apply import BufferFilter, FilterError, GroupFilters
from miles_async.filters.dynamic_sampling import no_aborted, nonzero_std
from miles_async.hooks.hook import HookError

FUNCTIONS = """
def first_only(samples):
    return [sample.index == 0 for sample in samples]

def too_few(samples):
    return [True]

def not_bools(samples):
    return ["yes" for sample in samples]

def best_is_one(samples):
    best = max(sample.reward for sample in samples)
    return [float(sample.reward == best) for sample in samples]

def not_finite(samples):
    return [float("nan") for sample in samples]

def no_reason(samples):
    return False

def odd_reason(samples):
    return False, "too easy: 100 %\\n(all of them)" + "!" * 100

def no_verdict(samples):
    return None

def raises(samples):
    raise KeyError("difficulty")

def the_old(ready, version):
    return [group.group_id for group in ready if group.oldest_version < version]

def unknown(ready, version):
    return ["nobody"]

def takes_nothing():
    return True
"""


def sample(index: int, reward: float, tokens: int = 3, **fields: Any) -> Sample:
    return Sample(
        index=index,
        tokens=pack(range(tokens), TOKENS),
        logprobs=b"",
        loss_mask=pack([1, 0, 1][:tokens], MASK),
        versions=pack([0] * tokens, VERSIONS),
        reward=reward,
        **{"finish_reason": "stop"} | fields,
    )


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    path = tmp_path / "my_filters.py"
    path.write_text(FUNCTIONS)
    return path


def config(**keys: str) -> RunConfig:
    rollout = Rollout(**{key: value for key, value in keys.items() if key != "reward_post_process"})
    reward = Reward(reward_post_process=keys.get("reward_post_process"))
    return RunConfig(model=Model(hf_checkpoint="none"), data=Data(prompt_data="none"), rollout=rollout, reward=reward)


GROUP = [sample(0, 0.0), sample(1, 0.5), sample(2, 1.0)]


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8))
def test_a_group_is_of_use_exactly_if_its_rewards_differ(rewards: list[float]) -> None:
    keep, reason = nonzero_std([sample(i, reward) for i, reward in enumerate(rewards)])
    deviation = float(np.std(np.array(rewards), ddof=1)) if len(rewards) > 1 else 0.0
    assert keep == (deviation > 1e-8) and reason == "zero_std"


def test_a_nearly_constant_group_teaches_nothing_also_where_sums_round() -> None:
    assert not nonzero_std([sample(i, 0.1) for i in range(7)])[0]
    assert not nonzero_std([sample(0, 0.5), sample(1, 0.5 + 1e-9)])[0]
    assert nonzero_std([sample(0, 0.5), sample(1, 0.5 + 1e-7)])[0]


def test_the_branches_of_a_rollout_are_one_answer() -> None:
    branches = [sample(0, 1.0, rollout_index=0), sample(1, 1.0, rollout_index=0), sample(2, 1.0, rollout_index=1)]
    assert not nonzero_std(branches)[0]
    assert not nonzero_std(branches[:2])[0]
    assert nonzero_std([*branches, sample(3, 0.0, rollout_index=2)])[0]


def test_a_group_with_a_broken_off_response_is_refused_by_name() -> None:
    assert no_aborted(GROUP)[0]
    assert no_aborted([*GROUP, sample(3, 1.0, finish_reason="abort")]) == (False, "aborted_sample")


def test_without_filters_a_group_stays_as_it_is() -> None:
    filters = GroupFilters(config())
    assert filters.refusal(GROUP) is None and filters.finished(GROUP) == GROUP


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nonzero_std", None),
        ("no_reason", "dynamic_filter"),
        ("odd_reason", r"too_easy_100_all_of_them_"),
    ],
)
def test_a_refusal_has_a_reason_that_can_be_counted_by(functions: Path, name: str, reason: str | None) -> None:
    value = name if reason is None else f"{functions}:{name}"
    assert GroupFilters(config(dynamic_sampling_filter=value)).refusal(GROUP) == reason


def test_a_sample_that_is_filtered_out_keeps_its_place_and_its_reward_and_loses_its_loss(functions: Path) -> None:
    first, *others = GroupFilters(config(sample_filter=f"{functions}:first_only")).finished(GROUP)
    assert first == GROUP[0]
    for mine, before in zip(others, GROUP[1:], strict=True):
        assert unpack(mine.loss_mask, MASK).tolist() == [0, 0, 0]
        assert (mine.tokens, mine.reward, mine.versions) == (before.tokens, before.reward, before.versions)


def test_the_learner_sees_the_processed_rewards_and_the_record_keeps_the_raw_ones(functions: Path) -> None:
    both = config(reward_post_process=f"{functions}:best_is_one", sample_filter=f"{functions}:first_only")
    finished = GroupFilters(both).finished([sample(0, 0.0, reward_parts={"format": 0.25}), *GROUP[1:]])
    assert [s.reward for s in finished] == [0.0, 0.0, 1.0]
    assert [s.reward_parts["raw"] for s in finished] == [0.0, 0.5, 1.0] and finished[0].reward_parts["format"] == 0.25
    assert [any(unpack(s.loss_mask, MASK)) for s in finished] == [True, False, False]


@pytest.mark.parametrize(
    ("key", "name", "says"),
    [
        ("dynamic_sampling_filter", "raises", r"rollout\.dynamic_sampling_filter: KeyError: 'difficulty'"),
        ("dynamic_sampling_filter", "no_verdict", r"rollout\.dynamic_sampling_filter returned None, not whether"),
        ("sample_filter", "too_few", r"rollout\.sample_filter returned \[True\], not"),
        ("sample_filter", "not_bools", r"rollout\.sample_filter returned \['yes'"),
        ("reward_post_process", "not_finite", r"reward\.reward_post_process returned \[nan"),
        ("reward_post_process", "raises", r"reward\.reward_post_process: KeyError"),
    ],
)
def test_a_filter_that_fails_or_returns_what_it_may_not_is_named(
    functions: Path, key: str, name: str, says: str
) -> None:
    filters = GroupFilters(config(**{key: f"{functions}:{name}"}))
    with pytest.raises(FilterError, match=says) as error:
        filters.refusal(GROUP)
        filters.finished(GROUP)
    assert "\n" not in str(error.value)


def test_a_function_that_cannot_be_called_as_a_filter_is_refused_before_the_run(functions: Path) -> None:
    says = re.escape("it must take (samples), but is ()")
    with pytest.raises(HookError, match=says):
        GroupFilters(config(dynamic_sampling_filter=f"{functions}:takes_nothing"))
    with pytest.raises(HookError, match='did you mean "nonzero_std"'):
        GroupFilters(config(dynamic_sampling_filter="nonzero_sdt"))


def ready(*groups: tuple[str, int]) -> Sequence[ReadyGroup]:
    return [
        ReadyGroup(group_id=g, payload_key="", oldest_version=v, newest_version=v, n_tokens=1, published=0.0)
        for g, v in groups
    ]


def test_the_buffer_filter_drops_ready_groups_and_no_others(functions: Path) -> None:
    assert BufferFilter(config()).evict(ready(("a", 0)), 5) == []
    old = BufferFilter(config(buffer_filter=f"{functions}:the_old"))
    assert old.evict(ready(("a", 4), ("b", 5)), 5) == [("a", "buffer_filter")]
    unknown = BufferFilter(config(buffer_filter=f"{functions}:unknown"))
    with pytest.raises(FilterError, match=r"rollout\.buffer_filter returned \['nobody'\], not the ids"):
        unknown.evict(ready(("a", 4)), 5)
