"""How sequences lie in a pass: one after the other, unless rows of them are asked for, or counted."""

from __future__ import annotations

import pytest

from miles_async.config.qkv_format import check, packs
from miles_async.config.schema import ConfigError, Learner


def test_sequences_lie_one_after_the_other_unless_their_rows_are_asked_for_or_counted() -> None:
    assert packs(Learner()) and packs(Learner(qkv_format="thd"))
    assert not packs(Learner(qkv_format="bshd")) and not packs(Learner(moe_aux_loss_coeff=0.1))


def test_rows_that_are_counted_and_not_there_are_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r'qkv_format = "thd" with learner.moe_aux_loss_coeff = 0.1: .* "bshd"'
    ) as found:
        check(Learner(qkv_format="thd", moe_aux_loss_coeff=0.1))
    assert "\n" not in str(found.value)
    check(Learner(qkv_format="bshd", moe_aux_loss_coeff=0.1))
