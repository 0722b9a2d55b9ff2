"""The learner's own log-probs of a recorded group's tokens, as they lie beside it in segments of the learner's (`segments.py`).

Promises: what is not of the group that it stands beside (another number of samples' tokens) is as if it were not there; where a
group was trained more than once, as after a restart, what was written last counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from bus.codec import LOGPROBS, TOKENS, pack, unpack
from bus.messages import Group, Sample
from miles_async.recording.segments import Entry, Payloads, Place, SegmentError

OUTCOME = "learner_log_probs"  # of the entries


class OfGroup(msgspec.Struct, array_like=True, frozen=True):
    """samples: index, and ``<f4`` for each response token; nan where it was not trained."""

    step: int
    samples: tuple[tuple[int, bytes], ...]


def items(step: int, groups: Sequence[Group], flat: npt.NDArray[np.float32], owner: str) -> list[tuple[Entry, bytes]]:
    """What is to be written. flat: [N], of all response tokens of the groups, in their order; nothing, if that is another N.
    owner: a learner's process, with its incarnation."""
    lengths = [len(sample.tokens) // TOKENS.itemsize for group in groups for sample in group.samples]
    if sum(lengths) != len(flat):
        return []
    of_each = iter(np.split(flat, np.cumsum(lengths)[:-1]))
    found: list[tuple[Entry, bytes]] = []
    for group in groups:
        samples = tuple((sample.index, pack(next(of_each), LOGPROBS)) for sample in group.samples)
        payload = msgspec.msgpack.encode(OfGroup(step, samples))
        found.append((Entry(group.group_id, owner, OUTCOME, len(payload)), payload))
    return found


def newest(places: Iterable[Place]) -> Place | None:
    """The place that was written last, of those given in the order of each file."""
    written = [(place.file.stat().st_mtime_ns, number, place) for number, place in enumerate(places)]
    return max(written)[2] if written else None


def read(place: Place | None, payloads: Payloads) -> OfGroup | None:
    """None: there is nothing, or it is damaged, or no such thing: then it costs itself alone."""
    try:
        return None if place is None else msgspec.msgpack.decode(payloads.read(place), type=OfGroup)
    except (SegmentError, OSError, msgspec.DecodeError):
        return None


def of_sample(found: OfGroup | None, sample: Sample) -> list[float]:
    """One for each response token, nan where it was not trained; [] where there are none of this sample."""
    data = next((data for index, data in found.samples if index == sample.index), b"") if found is not None else b""
    return unpack(data, LOGPROBS).tolist() if len(data) == len(sample.logprobs) else []
