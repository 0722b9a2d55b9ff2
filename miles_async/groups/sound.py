"""What a prompt group must be like so that every estimator can train on it: one check, before publication and before training.

Promises: pure (numpy only); a group that passes is trained without an exception and with a finite loss and gradient under every
estimator (``tests/groups/test_sound_group.py`` mutates 10,000 groups); one that does not is named with its sample and what is
wrong, in one line, under a reason short enough to count by. What a masked token's log-probs hold is not looked at: nothing is
computed from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from bus.codec import LOGPROBS, MASK, MAX_MESSAGE_BYTES, TOKENS, VERSIONS, CodecError, decode, encode, unpack
from bus.messages import UNSAMPLED, Group, Sample
from miles_async.groups.rollouts import rollout_of
from miles_async.groups.routes import RouteShape
from miles_async.text.unicode import well_formed

# Ratios reach e^20 (``rl.losses.MAX_LOG_RATIO``), so one token's gradient reaches 5e14 and its square 2.5e29: that leaves
# a factor of 1e9 in float32 for the number of tokens and for what the model multiplies it with. A critic squares rewards, too.
MAX_REWARD = 1e6
MAX_RAW_REWARD = 1e30  # before post-processing, and of a part: only reported, as a mean
MAX_LOGPROB = 1e-3  # of a probability of 1, as rounding may leave it
MIN_LOGPROB = -1e5  # what differences of it are squared to stays finite in float32
MAX_SAMPLES = 65_536

Pairs = Sequence[tuple[Group, Sample]]  # all samples, each with its group
Flags = npt.NDArray[np.bool_]  # of all their response tokens (times k, of the teacher's likeliest)

ITEM_BYTES = TOKENS.itemsize  # of a token, a log-prob, a version; an entry of a mask is one byte

RAW = "raw"  # in reward_parts: the reward before the post-processing


class UnsoundGroup(ValueError):
    """A group that cannot be trained on: which, and what is wrong with it, one line. ``reason``: a word to count by."""

    def __init__(self, reason: str, group_id: str, problem: str) -> None:
        super().__init__(f"group {group_id}{problem}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Limits:
    """What groups are held against. None: not known, and not looked at."""

    vocab_size: int | None = None  # token ids are 0..vocab_size-1
    newest_version: int | None = None  # weights that were ever published; in the learner: its own
    max_lag: int | None = None  # versions that a trained token may be behind ``newest_version``
    context: int | None = None  # tokens of prompt and response together
    taught: bool = False  # each sample has a teacher's log-probs
    teacher_top_k: int = 0  # and those of so many of the teacher's likeliest tokens at each position
    routes: RouteShape | None = None  # each sample has the experts of its tokens, which are replayed


def received(group: Group) -> tuple[Group, bytes]:
    """``group`` as who reads it from the bus will get it, and its bytes there.

    Raises UnsoundGroup: it cannot be sent, or not be read.
    """
    try:
        data = encode(group)
    except UnicodeError as error:
        raise UnsoundGroup("invalid_text", well_formed(group.group_id), f": a text is no UTF-8: {error}") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UnsoundGroup("invalid_message", group.group_id, f" is no message: {error}") from None
    if len(data) > MAX_MESSAGE_BYTES:
        raise UnsoundGroup("invalid_size", group.group_id, f" has {len(data)} bytes, at most {MAX_MESSAGE_BYTES}")
    try:
        return decode(data, Group), data
    except CodecError as error:
        raise UnsoundGroup("invalid_message", group.group_id, f": {error}") from None


def check_group(group: Group, limits: Limits) -> None:
    """Raises UnsoundGroup for the first thing that is wrong with ``group``, which has been decoded or ``received``."""
    check_groups((group,), limits)


def check_groups(groups: Sequence[Group], limits: Limits) -> None:
    """Raises UnsoundGroup for the first thing that is wrong with one of ``groups``: all of them in one pass."""
    for group in groups:
        if not 1 <= len(group.samples) <= MAX_SAMPLES:
            raise UnsoundGroup(
                "invalid_samples", group.group_id, f": {len(group.samples)} samples, 1 to {MAX_SAMPLES} are allowed"
            )
    pairs = [(group, sample) for group in groups for sample in group.samples]
    for group, sample in pairs:
        if problem := misfit(sample):
            _refuse(group, sample, "invalid_length", problem)
    _check_tokens(pairs, limits)
    if limits.routes is not None:
        _check_routes(pairs, limits.routes)
    kept = unpack(b"".join([sample.loss_mask for _, sample in pairs]), MASK) != 0
    _check_logprobs(pairs, kept, limits)
    _check_versions(pairs, kept, limits)
    for group in groups:
        _check_rewards(group)


def misfit(sample: Sample) -> str:
    """What is wrong with the lengths of the sample's buffers; empty: nothing, and it has a token at least."""
    n, taught = len(sample.loss_mask), len(sample.teacher_logprobs)
    if len(sample.tokens) == len(sample.logprobs) == len(sample.versions) == ITEM_BYTES * n > 0:
        if taught in (0, ITEM_BYTES * n):
            return ""
        return f"teacher_logprobs and logprobs differ in length: {taught / ITEM_BYTES:g} and {n:g}"
    sizes = (len(sample.tokens) / ITEM_BYTES, len(sample.logprobs) / ITEM_BYTES, n, len(sample.versions) / ITEM_BYTES)
    shown = ", ".join(f"{size:g}" for size in sizes)
    return f"{shown} tokens, logprobs, loss_mask and versions: they differ in length, or there is none"


def prompt_of(group: Group, sample: Sample) -> bytes:
    """The prompt of one sample: a branch of an agent's run has one of its own."""
    return sample.prompt_tokens or group.prompt_tokens


def _check_tokens(pairs: Pairs, limits: Limits) -> None:
    prompts = [prompt_of(group, sample) for group, sample in pairs]
    for (group, sample), prompt in zip(pairs, prompts, strict=True):
        if not prompt:
            _refuse(group, sample, "invalid_prompt", "the prompt is empty, so the first token has no prefix")
        if len(prompt) % ITEM_BYTES:
            problem = f"the prompt has {len(prompt)} bytes, which is no whole number of tokens"
            _refuse(group, sample, "invalid_prompt", problem)
    parts = [prompt + sample.tokens for (_, sample), prompt in zip(pairs, prompts, strict=True)]
    lengths = [len(part) // ITEM_BYTES for part in parts]
    if limits.context is not None and max(lengths, default=0) > limits.context:
        worst = int(np.argmax(lengths))
        problem = f"{lengths[worst]} tokens with its prompt, the context has {limits.context}"
        _refuse(*pairs[worst], "invalid_length", problem)
    if limits.vocab_size is not None:
        ids = unpack(b"".join(parts), TOKENS)
        outside = ids.view(np.uint32) >= limits.vocab_size  # those below 0, too
        if (found := _first(pairs, outside, lengths)) is not None:
            owner, worst = found
            problem = f"a token id is not in 0..{limits.vocab_size - 1}: {ids[worst]}"
            _refuse(*owner, "invalid_tokens", problem)


def _check_routes(pairs: Pairs, shape: RouteShape) -> None:
    """A row for each token of prompt and response but the last, of experts that there are."""
    for group, sample in pairs:
        try:
            shape.check(sample.routes, len(prompt_of(group, sample) + sample.tokens) // ITEM_BYTES)
        except ValueError as error:
            _refuse(group, sample, "invalid_routes", str(error))


def _check_logprobs(pairs: Pairs, kept: Flags, limits: Limits) -> None:
    taught = [pair for pair in pairs if pair[1].teacher_logprobs]
    if limits.taught and len(taught) < len(pairs):
        owner = next(pair for pair in pairs if not pair[1].teacher_logprobs)
        _refuse(*owner, "invalid_teacher", "it has no log-probs of the teacher")
    _check_range(pairs, kept, [s.logprobs for _, s in pairs], "invalid_logprobs", "a log-prob")
    if taught:
        of_taught = unpack(b"".join([s.loss_mask for _, s in taught]), MASK) != 0
        values = [s.teacher_logprobs for _, s in taught]
        _check_range(taught, of_taught, values, "invalid_teacher", "a log-prob of the teacher")
    _check_top(pairs, kept, limits)


def _check_top(pairs: Pairs, kept: Flags, limits: Limits) -> None:
    """The teacher's likeliest tokens: equally many at each position of each sample, in the vocabulary, and possible."""
    k = limits.teacher_top_k
    if not k:
        return  # nobody looks at them
    counts = [len(sample.loss_mask) * k for _, sample in pairs]
    for (group, sample), count in zip(pairs, counts, strict=True):
        if not len(sample.teacher_top_tokens) == len(sample.teacher_top_logprobs) == ITEM_BYTES * count:
            _refuse(
                group, sample, "invalid_teacher", f"it has not {k} of the teacher's likeliest tokens at each position"
            )
    ids = unpack(b"".join([sample.teacher_top_tokens for _, sample in pairs]), TOKENS)
    values = unpack(b"".join([sample.teacher_top_logprobs for _, sample in pairs]), LOGPROBS)
    with np.errstate(invalid="ignore"):
        sound = (values >= MIN_LOGPROB) & (values <= MAX_LOGPROB) & (ids >= 0)
    if limits.vocab_size is not None:
        sound &= ids < limits.vocab_size
    if (found := _first(pairs, np.repeat(kept, k) & ~sound, counts)) is not None:
        owner, worst = found
        problem = f"the teacher's log-prob of token {ids[worst]} is {values[worst]:g}"
        _refuse(*owner, "invalid_teacher", problem)


def _check_range(pairs: Pairs, kept: Flags, buffers: list[bytes], reason: str, what: str) -> None:
    """Log-probs of unmasked tokens are finite and those of a probability."""
    values = unpack(b"".join(buffers), LOGPROBS)
    if values.min(initial=0.0) >= MIN_LOGPROB and values.max(initial=0.0) <= MAX_LOGPROB:
        return  # all of them, as nearly always
    with np.errstate(invalid="ignore"):
        sound = (values >= MIN_LOGPROB) & (values <= MAX_LOGPROB)
    if (found := _first(pairs, kept & ~sound, _counts(pairs))) is not None:
        owner, worst = found
        value = values[worst]
        problem = f"{what} is {value:g}, not in {MIN_LOGPROB:g}..0" if np.isfinite(value) else f"{what} is not finite"
        _refuse(*owner, reason, problem)


def _check_versions(pairs: Pairs, kept: Flags, limits: Limits) -> None:
    newest = limits.newest_version
    versions = unpack(b"".join([sample.versions for _, sample in pairs]), VERSIONS)
    oldest, highest = int(versions.min(initial=UNSAMPLED)), int(versions.max(initial=0))
    bound = None if newest is None or limits.max_lag is None else newest - limits.max_lag
    if oldest >= max(bound or 0, 0) and highest <= (UNSAMPLED if newest is None else newest):
        return  # all of them, as nearly always
    sampled = versions != UNSAMPLED
    unknown = sampled & ((versions < 0) | (versions > (UNSAMPLED if newest is None else newest)))
    if newest is None:
        unknown &= kept  # of a masked token nobody here can say what was published
    if (found := _first(pairs, unknown, _counts(pairs))) is not None:
        owner, worst = found
        problem = f"a token of weight version {versions[worst]}, which was never published"
        _refuse(*owner, "invalid_versions", problem + ("" if newest is None else f"; the newest is {newest}"))
    if newest is None or limits.max_lag is None:
        return
    lag = newest - versions.astype(np.int64)
    if (found := _first(pairs, kept & sampled & (lag > limits.max_lag), _counts(pairs))) is not None:
        owner, worst = found
        _refuse(*owner, "stale", f"a token has lag {lag[worst]}, above max_lag = {limits.max_lag}")


def _check_rewards(group: Group) -> None:
    of_rollout: dict[int, float] = {}
    for sample in group.samples:
        if not abs(sample.reward) <= MAX_REWARD:
            is_finite = abs(sample.reward) < float("inf")
            problem = f"is {sample.reward:g}, at most {MAX_REWARD:g} in magnitude" if is_finite else "is not finite"
            _refuse(group, sample, "invalid_reward", f"the reward {problem}")
        for name, part in sample.reward_parts.items():
            if not abs(part) <= MAX_RAW_REWARD:
                what = "the reward before post-processing" if name == RAW else f"the part {name:.100} of the reward"
                _refuse(group, sample, "invalid_reward", f"{what} is {part:g}")
        if of_rollout.setdefault(rollout_of(sample), sample.reward) != sample.reward:
            problem = f"the branches of rollout {rollout_of(sample)} have different rewards"
            _refuse(group, sample, "invalid_reward", problem)


def _counts(pairs: Pairs) -> list[int]:
    """Response tokens of each sample."""
    return [len(sample.loss_mask) for _, sample in pairs]


def _first(pairs: Pairs, bad: Flags, counts: Sequence[int]) -> tuple[tuple[Group, Sample], int] | None:
    """Whose the first bad entry of a flat array with ``counts`` entries a sample is, and the entry."""
    if not bad.any():
        return None
    entry = int(np.argmax(bad))
    return pairs[int(np.searchsorted(np.cumsum(counts), entry, side="right"))], entry


def _refuse(group: Group, sample: Sample, reason: str, problem: str) -> NoReturn:
    raise UnsoundGroup(reason, group.group_id, f", sample {sample.index}: {problem}")
