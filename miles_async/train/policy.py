"""The policy in training: its log-probs, and its loss on a micro-batch.

Promises: log-probs are those of the temperature that was sampled with; the loss of a micro-batch is its share of the mean
over its optimizer step, so that shares add up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from miles_async.config.schema import RunConfig
from miles_async.rl.terms import LossTerms
from miles_async.train.batch import Array, MicroBatch, Sequences
from miles_async.train.logprobs import token_logprobs
from miles_async.train.objective import Objective, Sums
from miles_async.train.outputs import Outputs
from miles_async.train.parts import Rate
from miles_async.train.schedule import rate_of
from miles_async.train.share import MicroShare
from miles_async.train.trained import Trained


class Policy:
    """A model under an objective. make: the model, of its learning rates."""

    def __init__(self, config: RunConfig, objective: Objective, make: Callable[[Rate], Trained]) -> None:
        learner = config.learner
        self._temperature = config.rollout.rollout_temperature
        self._entropy_grad = config.algorithm.entropy_coef > 0
        self.model = make(rate_of(learner, lr=learner.lr, warmup_steps=learner.lr_warmup_steps))
        self._objective, self._device = objective, self.model.groups.device

    def all_logprobs(self, sequences: Sequences, temperature: float | None = None) -> torch.Tensor:
        """[N] float32 on the CPU: the log-probs of all unmasked response tokens, without gradient."""
        wanted = self._temperature if temperature is None else temperature

        def compute(micro: MicroBatch, outputs: Outputs) -> torch.Tensor:
            return self._logprobs(micro, outputs, wanted)[0]

        return self.model.of_all_tokens(sequences, compute)

    def of_tokens(self, sequences: Sequences, ids: Array) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs [N, k] float32 of the tokens ``ids`` [N, k] int32 at each unmasked response position, and whether they are
        among the k likeliest there [N, k] bool; on the CPU, without gradient."""
        count = ids.shape[1]

        def compute(micro: MicroBatch, outputs: Outputs) -> torch.Tensor:
            def both(values: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, ...]:
                logprobs = (outputs.vocabulary(values).float() / self._temperature).log_softmax(-1)
                found = logprobs.gather(-1, wanted)
                least = logprobs.topk(count).values[:, -1:]
                return (torch.cat([found, (found >= least).float()], dim=-1),)

            wanted = outputs.here(torch.from_numpy(ids[micro.token_index].astype(np.int64)).to(self._device))
            return outputs.whole(outputs.of_each(both, wanted)[0])

        found = self.model.of_all_tokens(sequences, compute, 2 * count)
        return found[:, :count], found[:, count:] > 0

    def train_pass(
        self,
        micros: Sequence[tuple[MicroBatch, MicroShare]],
        version: int,
        observe: Callable[[torch.Tensor, MicroShare, Sums], None],
        *,
        learning: bool,
    ) -> None:
        """Add the gradients of micro-batches' shares in their step's loss up, if ``learning``. observe: is given each one's
        log-probs [n], its share, and its part of the metrics. version: of the weights before the batch."""
        shares = iter(micros)

        def loss_of(micro: MicroBatch, outputs: Outputs) -> torch.Tensor:
            part = next(shares)[1]
            logprobs, loss, sums = self._loss(micro, outputs, part, version)
            observe(logprobs.detach(), part, sums)
            return loss

        self.model.train_pass([micro for micro, _ in micros], loss_of, learning=learning)

    def _loss(
        self, micro: MicroBatch, outputs: Outputs, part: MicroShare, version: int
    ) -> tuple[torch.Tensor, torch.Tensor, Sums]:
        """Log-probs [n] and loss, with gradient, and metrics of one micro-batch."""
        logprobs, entropy = self._logprobs(micro, outputs, self._temperature)
        wanted = self._objective.wants_logits
        current = logprobs.detach() if part.current is None else part.current
        terms = LossTerms(
            logprobs=logprobs,
            old=self._objective.old(current, part.behaviour, part.versions, version),
            behaviour=part.behaviour,
            advantages=part.advantages,
            sample_index=part.sample_index,
            versions=part.versions,
            version=version,
            mask=torch.ones_like(part.behaviour),
            logits=outputs.whole(outputs.vocabulary()) if wanted else None,
            targets=torch.from_numpy(micro.targets).to(self._device) if wanted else None,
        )
        loss, sums = self._objective.loss(
            terms,
            part.weights,
            pg_weights=part.pg_weights,
            entropy=entropy,
            reference=part.reference,
            batch_correction=part.correction,
            alike=part.alike,
        )
        return logprobs, loss, sums

    def _logprobs(self, micro: MicroBatch, outputs: Outputs, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropies [n] of the micro-batch's tokens."""

        def of_tokens(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return token_logprobs(
                logits,
                targets,
                temperature=temperature,
                entropy_grad=self._entropy_grad,
                tp_group=outputs.tensor_group,
            )

        targets = outputs.here(torch.from_numpy(micro.targets).to(self._device))
        logprobs, entropy = outputs.of_each(of_tokens, targets)
        return outputs.whole(logprobs), outputs.whole(entropy if self._entropy_grad else entropy.detach())
