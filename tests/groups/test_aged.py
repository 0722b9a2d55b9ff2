"""Tokens that grew too old leave the loss, and nothing else changes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from sound_groups import replace, sound

from bus.codec import MASK, VERSIONS, pack, unpack
from bus.messages import UNSAMPLED, Group
from miles_async.groups.aged import without_older

VERSIONS_OF_A_TOKEN = st.one_of(st.integers(0, 9), st.just(UNSAMPLED))


@st.composite
def groups(draw: st.DrawFn) -> Group:
    """The sound group, its tokens sampled by any versions, some of them masked already."""
    samples = []
    for sample in sound().samples:
        size = len(sample.loss_mask)
        versions = draw(st.lists(VERSIONS_OF_A_TOKEN, min_size=size, max_size=size))
        mask = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
        samples.append(replace(sample, versions=pack(versions, VERSIONS), loss_mask=pack(mask, MASK)))
    return replace(sound(), samples=tuple(samples))


@given(group=groups(), oldest=st.integers(0, 10))
def test_of_a_token_below_the_bound_the_loss_mask_is_0_and_everything_else_is_as_it_was(
    group: Group, oldest: int
) -> None:
    aged = without_older(group, oldest)
    for before, after in zip(group.samples, aged.samples, strict=True):
        recent = unpack(before.versions, VERSIONS) >= oldest
        assert (unpack(after.loss_mask, MASK) == unpack(before.loss_mask, MASK) * recent).all()
        assert replace(after, loss_mask=before.loss_mask) == before
    assert replace(aged, samples=group.samples) == group


def test_a_group_within_the_bound_is_the_very_same_one() -> None:
    group = sound()
    oldest = min(int(unpack(sample.versions, VERSIONS).min()) for sample in group.samples)
    assert without_older(group, oldest) is group
    assert without_older(group, oldest + 1) is not group
