"""With how many ranks a learner goes on: whatever room there is, a launch would take that number; with room it is all again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_async.config import rules
from miles_async.config.elastic_ranks import decide, rank_counts, with_ranks
from miles_async.config.schema import (
    ConfigError,
    Data,
    ElasticLearner,
    Learner,
    Model,
    Placement,
    Rollout,
    RunConfig,
)


def configured(ranks: int, least: int | None, batch: int, *, tensor: int = 1, steps: int = 1) -> RunConfig:
    return RunConfig(
        model=Model(hf_checkpoint="none"),
        data=Data(prompt_data="none"),
        rollout=Rollout(rollout_batch_size=batch),
        learner=Learner(num_ranks=ranks, tensor_parallel_size=tensor, num_steps_per_rollout=steps),
        placement=Placement(elastic_learner=ElasticLearner(min_ranks=least)),
    )


@st.composite
def configurations(draw: st.DrawFn) -> RunConfig:
    """Ones that a launch takes."""
    tensor, replicas, steps = (draw(st.integers(1, most)) for most in (4, 8, 3))
    batch = replicas * steps * draw(st.integers(1, 6))
    ranks = tensor * replicas
    return configured(ranks, draw(st.none() | st.integers(1, ranks)), batch, tensor=tensor, steps=steps)


@given(configurations())
def test_every_number_of_ranks_is_one_that_a_launch_would_take_and_none_that_it_would_take_is_left_out(
    config: RunConfig,
) -> None:
    counts, least = rank_counts(config), config.placement.elastic_learner.min_ranks or config.learner.num_ranks

    def taken(ranks: int) -> bool:
        try:
            rules.check(with_ranks(config, ranks))
        except ConfigError:
            return False
        return True

    assert list(counts) == [ranks for ranks in range(config.learner.num_ranks, least - 1, -1) if taken(ranks)]
    assert counts[0] == config.learner.num_ranks


@given(configurations(), st.data())
def test_there_is_a_place_for_each_rank_and_nobody_shrinks_who_may_wait(config: RunConfig, data: st.DataObject) -> None:
    counts = rank_counts(config)
    now, places = data.draw(st.sampled_from(counts)), data.draw(st.integers(0, 40))
    fits = [ranks for ranks in counts if ranks <= places]
    soon, late = (decide(counts, now, places, waited=waited) for waited in (False, True))
    assert soon is None or (soon in counts and now <= soon <= places)
    assert late == (max(fits) if fits else now)
    assert soon in (None, late) and (soon is not None) == bool(fits and max(fits) >= now)


@given(configurations(), st.data())
def test_whatever_befell_it_with_room_for_all_it_comes_back_to_all(config: RunConfig, data: st.DataObject) -> None:
    counts = rank_counts(config)
    now = counts[0]
    for places in data.draw(st.lists(st.integers(0, 40), max_size=6)):
        now = decide(counts, now, places, waited=True) or now
    assert decide(counts, now, counts[0], waited=False) == counts[0]


@pytest.mark.parametrize(
    ("config", "counts"),
    [
        (configured(4, None, 8), (4,)),
        (configured(4, 1, 8), (4, 2, 1)),  # three ranks would not have as many groups each
        (configured(4, 2, 12), (4, 3, 2)),
        (configured(8, 1, 8, tensor=2), (8, 4, 2)),
        (configured(4, 1, 8, steps=2), (4, 2, 1)),
    ],
)
def test_the_numbers_of_ranks_that_there_may_be(config: RunConfig, counts: tuple[int, ...]) -> None:
    assert rank_counts(config) == counts
