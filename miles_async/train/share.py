"""A rank's share of a batch as tensors: what the objective computes for all tokens before the first optimizer step, and
micro-batches of it.

Promises: what is asked of a micro-batch is exactly its tokens, those of a sample together and in order; nothing here
touches the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from miles_async.rl.opd import TopTokens
from miles_async.rl.reduce import weighted_sum
from miles_async.rl.terms import Correction, LossTerms, StepTerms, alone
from miles_async.train.batch import MicroBatch, TrainBatch
from miles_async.train.intake import Admitted
from miles_async.train.minibatch import MiniBatch, whole
from miles_async.train.objective import Objective, Sums


@dataclass(frozen=True)
class MicroShare:
    """The n tokens of one micro-batch, on the learner's device."""

    behaviour: torch.Tensor  # float32
    versions: torch.Tensor  # int64
    sample_index: torch.Tensor  # int64, from 0
    advantages: torch.Tensor  # float32
    weights: torch.Tensor  # float64, in the means of the token's own optimizer step
    pg_weights: torch.Tensor  # float64, in the policy loss
    current: torch.Tensor | None  # float32, the learner's log-probs before the batch, where they were computed
    reference: torch.Tensor | None  # float32
    values: torch.Tensor | None  # float32, the critic's before the batch
    returns: torch.Tensor | None  # float32, what they should be
    correction: Correction | None  # of the whole batch
    # bool: the learner's pass computes what is in front of the token as the engine's did, but for weights; None: of all tokens
    alike: torch.Tensor | None


@dataclass(frozen=True)
class Share(MicroShare):
    """The same of all the share's N response tokens, on the CPU; entries of masked tokens mean nothing."""

    observed: Sums  # its part of further metrics' means over the mini-batches, under the same names on every rank


def make_share(
    admitted: Admitted,
    objective: Objective,
    version: int,
    mini_batches: Sequence[MiniBatch] = (),
    *,
    current: torch.Tensor | None,
    reference: torch.Tensor | None,
    values: torch.Tensor | None = None,
    top: tuple[torch.Tensor, torch.Tensor] | None = None,
    all_sum: Callable[[torch.Tensor], torch.Tensor] = alone,
    gather: Callable[[torch.Tensor], torch.Tensor] = alone,
) -> Share:
    """Advantages, weights and whole-batch corrections of a rank's share. Collective where the algorithm asks for it.

    mini_batches: of the optimizer steps; none: the whole batch is one. current, reference, values: [N] float32, of the
    learner before the batch, the reference model, the critic; None where the objective needs none. top: of the teacher's
    likeliest tokens, what :meth:`Policy.of_tokens` gives. all_sum, gather: over the data-parallel ranks.
    """
    batch = admitted.batch
    mini_batches = mini_batches or [whole(admitted)]
    mask = torch.from_numpy(batch.sequences.mask)
    sample_index = torch.from_numpy(batch.sample_index)
    rollout_index = torch.from_numpy(batch.rollout_index)
    behaviour = torch.from_numpy(batch.behaviour.copy())  # a buffer of the bus is read-only
    versions = torch.from_numpy(batch.versions.astype(np.int64))
    before = behaviour if current is None else current
    old = objective.old(before, behaviour, versions, version)
    step = StepTerms(
        rewards=torch.from_numpy(batch.rewards),
        group_index=torch.from_numpy(batch.group_index),
        rollout_index=rollout_index,
        sample_index=sample_index,
        mask=mask,
        behaviour=behaviour,
        old=old,
        reference=reference,
        teacher=None if batch.teacher is None else torch.from_numpy(batch.teacher.copy()),
        values=values,
        top=_top_tokens(batch, top),
        all_sum=all_sum,
    )
    advantages, returns = objective.advantages(step)
    terms = LossTerms(
        logprobs=before,
        old=old,
        behaviour=behaviour,
        advantages=advantages,
        sample_index=sample_index,
        versions=versions,
        version=version,
        mask=mask.float(),
        gather=gather,
        all_sum=all_sum,
    )
    weights = _weights(mini_batches, mask, objective.mean_weights)
    filled = max(sum(part.trained > 0 for part in mini_batches), 1)
    observed = objective.observed(step)
    if values is not None and returns is not None:
        observed = observed | {"values": values, "returns": returns}
    return Share(
        behaviour=behaviour,
        versions=versions,
        sample_index=sample_index,
        advantages=advantages,
        weights=weights,
        pg_weights=_weights(mini_batches, mask, objective.token_weights),
        current=current,
        reference=reference,
        values=values,
        returns=returns,
        correction=objective.correct_batch(terms),
        alike=None if batch.sequences.routes is None else torch.from_numpy(_alike(batch)),
        observed={name: weighted_sum(value, weights) / filled for name, value in observed.items()},
    )


def _weights(
    mini_batches: Sequence[MiniBatch], mask: torch.Tensor, function: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """[N] float64: what ``function(mask, sample_index, rollout_index, totals)`` gives for each mini-batch by itself."""
    found = torch.zeros(len(mask), dtype=torch.float64)
    for part in mini_batches:
        tokens = torch.from_numpy(part.tokens)
        sample_index, rollout_index = torch.from_numpy(part.sample_index), torch.from_numpy(part.rollout_index)
        found[tokens] = function(mask[tokens], sample_index, rollout_index, part.totals).double()
    return found


def _alike(batch: TrainBatch) -> npt.NDArray[np.bool_]:
    """[N]: the sample has no token of other weights in front of it. An engine that goes on with new weights computes what is
    there again, with experts that these choose; replayed are those of the token's own weights (rollout/routes.py)."""
    other = np.diff(batch.versions, prepend=batch.versions[:1]) != 0
    other &= np.diff(batch.sample_index, prepend=-1) == 0
    changes = np.cumsum(other)
    first = np.flatnonzero(np.diff(batch.sample_index, prepend=-1))  # of each sample
    return changes == changes[first][batch.sample_index]


def _top_tokens(batch: TrainBatch, student: tuple[torch.Tensor, torch.Tensor] | None) -> TopTokens | None:
    """The teacher's likeliest tokens beside the learner's log-probs of them; 0 where a token is masked."""
    if student is None or batch.teacher_top is None:
        return None
    kept = torch.from_numpy(batch.sequences.mask)[:, None]
    teacher = torch.from_numpy(batch.teacher_top[1].copy())
    logprobs, shared = student
    zero = torch.zeros_like(teacher)
    return TopTokens(torch.where(kept, logprobs, zero), torch.where(kept, teacher, zero), shared)


def micro_share(share: Share, micro: MicroBatch, device: torch.device) -> MicroShare:
    """The part of ``share`` that ``micro`` computes."""
    index = torch.from_numpy(micro.token_index)

    def part(values: torch.Tensor) -> torch.Tensor:
        return values.index_select(0, index).to(device)

    def maybe(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else part(values)

    samples = share.sample_index.index_select(0, index).numpy()
    numbers = np.cumsum(np.diff(samples, prepend=samples[:1]) != 0)  # those of a sample lie together
    correction = share.correction
    if correction is not None:
        metrics = {name: part(value) for name, value in correction.metrics.items()}
        keep = maybe(correction.keep)
        correction = replace(correction, weights=part(correction.weights), metrics=metrics, keep=keep)
    return MicroShare(
        behaviour=part(share.behaviour),
        versions=part(share.versions),
        sample_index=torch.from_numpy(numbers).to(device),
        advantages=part(share.advantages),
        weights=part(share.weights),
        pg_weights=part(share.pg_weights),
        current=maybe(share.current),
        reference=maybe(share.reference),
        values=maybe(share.values),
        returns=maybe(share.returns),
        correction=correction,
        alike=maybe(share.alike),
    )
