"""What a prompt group must be like so that every estimator can train on it: one check, before publication and before training.

Promises: pure (numpy only); a group that passes is trained without an exception and with a finite loss and gradient under every
estimator (``tests/test_sound_group.py`` mutates 10,000 groups); one that does not is named with its sample and what is wrong,
in one line, under a reason short enough to count by. What a masked token's log-probs hold is not looked at: nothing is
computed from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from bus.codec import LOGPROBS, MASK, MAX_MESSAGE_BYTES, TOKENS, VERSIONS, CodecError, decode, encode, unpack
from bus.messages import UNSAMPLED, Group, Sample
from miles_async.filters.dynamic_sampling import rollout_of
from miles_async.unicode_text import well_formed

# Ratios reach e^20 (``rl.losses.MAX_LOG_RATIO``), so one token's gradient reaches 5e14 and its square 2.5e29: that leaves
# a factor of 1e9 in float32 for the number of tokens and for what the model multiplies it with. A critic squares rewards, too.
MAX_REWARD = 1e6
MAX_RAW_REWARD = 1e30  # before post-processing: only reported, as a mean
MAX_LOGPROB = 1e-3  # of a probability of 1, as rounding may leave it
MIN_LOGPROB = -1e5  # what differences of it are squared to stays finite in float32
MAX_SAMPLES = 65_536

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


def received(group: Group) -> Group:
    """``group`` as who reads it from the bus will get it. Raises UnsoundGroup: it cannot be sent, or not be read."""
    try:
        data = encode(group)
    except UnicodeError as error:
        raise UnsoundGroup("invalid_text", well_formed(group.group_id), f": a text is no UTF-8: {error}") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UnsoundGroup("invalid_message", group.group_id, f" is no message: {error}") from None
    if len(data) > MAX_MESSAGE_BYTES:
        raise UnsoundGroup("invalid_size", group.group_id, f" has {len(data)} bytes, at most {MAX_MESSAGE_BYTES}")
    try:
        return decode(data, Group)
    except CodecError as error:
        raise UnsoundGroup("invalid_message", group.group_id, f": {error}") from None


def check_group(group: Group, limits: Limits) -> None:
    """Raises UnsoundGroup for the first thing that is wrong with ``group``, which has been decoded or ``received``."""
    samples = group.samples
    if not 1 <= len(samples) <= MAX_SAMPLES:
        raise UnsoundGroup(
            "invalid_samples", group.group_id, f": {len(samples)} samples, 1 to {MAX_SAMPLES} are allowed"
        )
    for sample in samples:
        if problem := misfit(sample):
            _refuse(group, sample, "invalid_length", problem)
    _check_prompts(group)
    _check_tokens(group, limits)
    _check_logprobs(group, limits)
    _check_versions(group, limits)
    _check_rewards(group)


def misfit(sample: Sample) -> str:
    """What is wrong with the lengths of the sample's buffers; empty: nothing, and it has a token at least."""
    buffers = (
        (sample.tokens, TOKENS),
        (sample.logprobs, LOGPROBS),
        (sample.loss_mask, MASK),
        (sample.versions, VERSIONS),
    )
    sizes = [len(data) / dtype.itemsize for data, dtype in buffers]
    if len(set(sizes)) == 1 and sizes[0] >= 1 and len(sample.teacher_logprobs) in (0, len(sample.logprobs)):
        return ""
    if len(set(sizes)) == 1 and sizes[0] >= 1:
        taught = len(sample.teacher_logprobs) / LOGPROBS.itemsize
        return f"teacher_logprobs and logprobs differ in length: {taught:g} and {sizes[1]:g}"
    shown = ", ".join(f"{size:g}" for size in sizes)
    return f"{shown} tokens, logprobs, loss_mask and versions: they differ in length, or there is none"


def prompt_of(group: Group, sample: Sample) -> bytes:
    """The prompt of one sample: a branch of an agent's run has one of its own."""
    return sample.prompt_tokens or group.prompt_tokens


def _check_prompts(group: Group) -> None:
    for sample in group.samples:
        size = len(prompt_of(group, sample))
        if not size:
            _refuse(group, sample, "invalid_prompt", "the prompt is empty, so the first token has no prefix")
        if size % TOKENS.itemsize:
            _refuse(group, sample, "invalid_prompt", f"the prompt has {size} bytes, which is no whole number of tokens")


def _check_tokens(group: Group, limits: Limits) -> None:
    parts = [(prompt_of(group, sample), sample.tokens) for sample in group.samples]
    lengths = [(len(prompt) + len(tokens)) // TOKENS.itemsize for prompt, tokens in parts]
    if limits.context is not None and max(lengths) > limits.context:
        worst = int(np.argmax(lengths))
        problem = f"{lengths[worst]} tokens with its prompt, the context has {limits.context}"
        _refuse(group, group.samples[worst], "invalid_length", problem)
    if limits.vocab_size is not None:
        ids = unpack(b"".join(part for pair in parts for part in pair), TOKENS)
        if (found := _first(group, (ids < 0) | (ids >= limits.vocab_size), lengths)) is not None:
            sample, worst = found
            problem = f"a token id is not in 0..{limits.vocab_size - 1}: {ids[worst]}"
            _refuse(group, sample, "invalid_tokens", problem)


def _check_logprobs(group: Group, limits: Limits) -> None:
    samples = group.samples
    for sample in samples:
        if limits.taught and not sample.teacher_logprobs:
            _refuse(group, sample, "invalid_teacher", "it has no log-probs of the teacher")
    taught = [sample for sample in samples if sample.teacher_logprobs]
    _check_range(group, samples, [s.logprobs for s in samples], "invalid_logprobs", "a log-prob")
    _check_range(group, taught, [s.teacher_logprobs for s in taught], "invalid_teacher", "a log-prob of the teacher")
    _check_top(group, limits)


def _check_top(group: Group, limits: Limits) -> None:
    """The teacher's likeliest tokens: equally many at each position of each sample, in the vocabulary, and possible."""
    k = limits.teacher_top_k
    if not k:
        return  # nobody looks at them
    counts = [len(sample.loss_mask) * k for sample in group.samples]
    for sample, count in zip(group.samples, counts, strict=True):
        if not len(sample.teacher_top_tokens) == len(sample.teacher_top_logprobs) == 4 * count:
            _refuse(
                group, sample, "invalid_teacher", f"it has not {k} of the teacher's likeliest tokens at each position"
            )
    kept = np.repeat(unpack(b"".join(sample.loss_mask for sample in group.samples), MASK) != 0, k)
    ids = unpack(b"".join(sample.teacher_top_tokens for sample in group.samples), TOKENS)
    values = unpack(b"".join(sample.teacher_top_logprobs for sample in group.samples), LOGPROBS)
    with np.errstate(invalid="ignore"):
        sound = (values >= MIN_LOGPROB) & (values <= MAX_LOGPROB) & (ids >= 0)
    if limits.vocab_size is not None:
        sound &= ids < limits.vocab_size
    if (found := _first(group, kept & ~sound, counts)) is not None:
        sample, worst = found
        problem = f"the teacher's log-prob of token {ids[worst]} is {values[worst]:g}"
        _refuse(group, sample, "invalid_teacher", problem)


def _check_range(group: Group, samples: Sequence[Sample], buffers: list[bytes], reason: str, what: str) -> None:
    """Log-probs of unmasked tokens are finite and those of a probability."""
    values = unpack(b"".join(buffers), LOGPROBS)
    kept = unpack(b"".join(sample.loss_mask for sample in samples), MASK) != 0
    with np.errstate(invalid="ignore"):
        sound = (values >= MIN_LOGPROB) & (values <= MAX_LOGPROB)
    if (found := _first(group, kept & ~sound, [len(s.loss_mask) for s in samples], samples)) is not None:
        sample, worst = found
        value = values[worst]
        problem = f"{what} is {value:g}, not in {MIN_LOGPROB:g}..0" if np.isfinite(value) else f"{what} is not finite"
        _refuse(group, sample, reason, problem)


def _check_versions(group: Group, limits: Limits) -> None:
    newest = limits.newest_version
    versions = unpack(b"".join(sample.versions for sample in group.samples), VERSIONS)
    counts = [len(sample.loss_mask) for sample in group.samples]
    sampled = versions != UNSAMPLED
    unknown = sampled & ((versions < 0) | (versions > (UNSAMPLED if newest is None else newest)))
    kept = unpack(b"".join(sample.loss_mask for sample in group.samples), MASK) != 0
    if newest is None:
        unknown &= kept  # of a masked token nobody here can say what was published
    if (found := _first(group, unknown, counts)) is not None:
        sample, worst = found
        problem = f"a token of weight version {versions[worst]}, which was never published"
        _refuse(group, sample, "invalid_versions", problem + ("" if newest is None else f"; the newest is {newest}"))
    if newest is None or limits.max_lag is None:
        return
    lag = newest - versions.astype(np.int64)
    if (found := _first(group, kept & sampled & (lag > limits.max_lag), counts)) is not None:
        sample, worst = found
        _refuse(group, sample, "stale", f"a token has lag {lag[worst]}, above max_lag = {limits.max_lag}")


def _check_rewards(group: Group) -> None:
    of_rollout: dict[int, float] = {}
    for sample in group.samples:
        if not abs(sample.reward) <= MAX_REWARD:
            is_finite = abs(sample.reward) < float("inf")
            problem = f"is {sample.reward:g}, at most {MAX_REWARD:g} in magnitude" if is_finite else "is not finite"
            _refuse(group, sample, "invalid_reward", f"the reward {problem}")
        if not abs(raw := sample.reward_parts.get(RAW, 0.0)) <= MAX_RAW_REWARD:
            _refuse(group, sample, "invalid_reward", f"the reward before post-processing is {raw:g}")
        if of_rollout.setdefault(rollout_of(sample), sample.reward) != sample.reward:
            problem = f"the branches of rollout {rollout_of(sample)} have different rewards"
            _refuse(group, sample, "invalid_reward", problem)


def _first(
    group: Group, bad: npt.NDArray[Any], counts: Sequence[int], samples: Sequence[Sample] | None = None
) -> tuple[Sample, int] | None:
    """The sample that owns the first bad entry of a flat array with ``counts`` entries a sample, and the entry."""
    if not bad.any():
        return None
    entry = int(np.argmax(bad))
    owner = int(np.searchsorted(np.cumsum(counts), entry, side="right"))
    return (group.samples if samples is None else samples)[owner], entry


def _refuse(group: Group, sample: Sample, reason: str, problem: str) -> NoReturn:
    raise UnsoundGroup(reason, group.group_id, f", sample {sample.index}: {problem}")
