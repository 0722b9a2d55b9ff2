"""Tokens that grew too old, taken out of the loss. Pure.

Promises: nothing but ``loss_mask`` changes, of no token within the bound; the rewards, and so the baseline, stay those of whole
responses; a group without such a token is the very same one.
"""

from __future__ import annotations

from msgspec.structs import replace

from bus.codec import MASK, VERSIONS, pack, unpack
from bus.messages import Group, Sample


def without_older(group: Group, oldest: int) -> Group:
    """``group`` with ``loss_mask`` 0 for each token of a weight version below ``oldest``. It is sound (``groups/sound.py``)."""
    samples = tuple(_masked(sample, oldest) for sample in group.samples)
    changed = any(new is not old for new, old in zip(samples, group.samples, strict=True))
    return replace(group, samples=samples) if changed else group


def _masked(sample: Sample, oldest: int) -> Sample:
    recent = (
        unpack(sample.versions, VERSIONS) >= oldest
    )  # of a token that nobody sampled the version is the greatest there is
    if recent.all():
        return sample
    return replace(sample, loss_mask=pack(unpack(sample.loss_mask, MASK) * recent, MASK))
