"""The rows of a step: found, bounded and put in order as they are asked for."""

from __future__ import annotations

import msgspec
from web_runs import group, sample

from bus.messages import UNSAMPLED, Begun, Group
from miles_async.web.sample_rows import Row, Wanted, chosen, row, summary


def rows() -> list[Row]:
    made = msgspec.structs.replace(grouped(), begun=Begun(learner=5, engines=3, first_token=6, sampled_by=4))
    texts = ["The Cat", "a dog", "a bird"]
    return [row(n, made, one, 7, "prompt", text) for n, (one, text) in enumerate(zip(made.samples, texts, strict=True))]


def grouped() -> Group:
    return group(
        "0-1-0",
        sample(0, [1, 2, 3], [4, 5, 5], reward=0.5, masked=1),
        sample(1, [1], [6], reward=1.0, finish_reason="length"),
        sample(2, [1, 1], [UNSAMPLED, UNSAMPLED], reward=0.0),
    )


def test_a_row_tells_what_was_trained_on_and_how_old_it_was() -> None:
    first, _, third = rows()
    assert (first.length, first.trained, first.lag, first.versions) == (3, 2, 2, [(4, 1), (5, 2)])
    assert (first.reward, first.parts, first.seconds) == (0.5, {"right": 0.5}, 2.5)
    assert first.ages == {"submission": 2, "first_token": 2, "since_submission": 3}
    assert third.lag is None and third.versions == []


def test_a_search_is_for_any_case_and_in_prompts_too() -> None:
    assert [one.index for one in chosen(rows(), Wanted(text="cat"))] == [0]
    assert len(chosen(rows(), Wanted(text="PROMPT"))) == 3
    assert chosen(rows(), Wanted(text="cow")) == []


def test_rows_come_in_the_order_of_a_value_those_without_one_last() -> None:
    def order(wanted: Wanted) -> list[int]:
        return [one.index for one in chosen(rows(), wanted)]

    assert order(Wanted(sort="reward")) == [2, 0, 1]
    assert order(Wanted(sort="length", descending=True)) == [0, 2, 1]
    assert order(Wanted(sort="lag")) == [1, 0, 2] and order(Wanted(sort="lag", descending=True)) == [0, 1, 2]


def test_bounds_hold_their_ends_and_nothing_that_is_not_known() -> None:
    assert [one.index for one in chosen(rows(), Wanted(reward_min=0.5, reward_max=0.5))] == [0]
    assert [one.index for one in chosen(rows(), Wanted(lag_min=0))] == [0, 1]
    assert [one.index for one in chosen(rows(), Wanted(finish="length"))] == [1]
    assert summary(rows()) == {"finishes": ["length", "stop"], "reward": [0.0, 1.0], "length": [1, 3], "lag": [0, 2]}
