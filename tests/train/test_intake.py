"""The learner's own check of lag: against its own version, over all ranks, whatever the senders say."""

from __future__ import annotations

import pytest
import torch
from msgspec.structs import replace
from train_support import VOCAB, make_groups

from bus.messages import Begun
from miles_async.staleness.policies import NO_BOUND
from miles_async.train.intake import Admitted, LagExceeded, admit


class Ranks:
    """Stands in for the learner's ranks: this one, and others whose oldest tokens have the lags ``others``."""

    def __init__(self, *others: float) -> None:
        self.others = others

    def gather(self, values: list[float]) -> torch.Tensor:
        rows = [values, *([0.0, lag, *values[2:]] for lag in self.others)]
        return torch.tensor(rows, dtype=torch.float64)


def check(version: int, max_lag: int, *others: float) -> Admitted:
    groups = make_groups(2, 2, mask_share=0.0)  # all tokens of version 0
    return admit(groups, Ranks(*others), version=version, max_lag=max_lag, vocab_size=VOCAB)  # type: ignore[arg-type]


def test_the_bound_itself_is_allowed_and_one_more_is_not() -> None:
    assert check(2, 2).metrics["max_token_lag"] == 2
    with pytest.raises(LagExceeded, match=r"step 4: a token of learner rank 0 has lag 3, above staleness.max_lag = 2"):
        check(3, 2)


def test_a_rank_refuses_what_another_one_holds() -> None:
    with pytest.raises(LagExceeded, match="learner rank 2 has lag 5"):
        check(1, 2, 1, 5)


def test_a_token_that_is_newer_than_the_learner_is_refused() -> None:
    groups = make_groups(2, 2, mask_share=0.0, version=7)
    with pytest.raises(LagExceeded, match=r"step 6: a token of learner rank 0 is of weight version 7, and .* own is 5"):
        admit(groups, Ranks(), version=5, max_lag=2, vocab_size=VOCAB)  # type: ignore[arg-type]


def test_what_is_trained_beyond_an_aim_that_is_no_bound_is_counted_and_measured() -> None:
    groups = make_groups(2, 2, mask_share=0.0)  # all tokens of version 0
    tokens = sum(len(sample.loss_mask) for group in groups for sample in group.samples)

    def found(version: int) -> dict[str, float]:
        admitted = admit(groups, Ranks(), version=version, max_lag=NO_BOUND, aim=2, vocab_size=VOCAB)  # type: ignore[arg-type]
        return {name: value for name, value in admitted.metrics.items() if "overrun" in name}

    assert found(5) == {"overrun_tokens": tokens, "overrun_samples": 4, "max_overrun": 3}
    assert found(2) == {"overrun_tokens": 0, "overrun_samples": 0, "max_overrun": 0}
    assert not any("overrun" in name for name in check(1, 2).metrics)


def test_a_bound_of_0_takes_only_tokens_of_the_version_itself() -> None:
    assert check(0, 0).metrics["max_token_lag"] == 0
    with pytest.raises(LagExceeded):
        check(1, 0)


def test_ages_are_means_over_the_groups_of_which_they_are_known() -> None:
    first, second, third = make_groups(3, 2, mask_share=0.0, version=3)
    groups = [
        replace(first, begun=Begun(learner=4, engines=2, first_token=4, sampled_by=3)),
        replace(second, begun=Begun(learner=5, engines=4)),
        third,  # nobody heard of its beginning
    ]
    found = admit(groups, Ranks(), version=5, max_lag=9, vocab_size=VOCAB).metrics  # type: ignore[arg-type]
    assert {name: value for name, value in found.items() if name.startswith("age/")} == {
        "age/submission": 1.5,
        "age/first_token": 1.0,
        "age/training": 2.0,
        "age/since_submission": 2.0,
    }
    assert "age/submission" not in check(2, 2).metrics and check(2, 2).metrics["age/training"] == 2
