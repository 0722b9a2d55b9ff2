"""The policy in training: its log-probs, and its loss on a micro-batch.

Promises: log-probs are those of the temperature that was sampled with; the loss of a micro-batch is its share of the mean
over its optimizer step, so that shares add up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from miles_async.config.schema import RunConfig
from miles_async.rl.terms import LossTerms
from miles_async.train.batch import Array, MicroBatch, Sequences
from miles_async.train.logprobs import token_logprobs
from miles_async.train.model import TrainedModel, of_all_tokens
from miles_async.train.objective import Objective, Sums
from miles_async.train.schedule import rate_of
from miles_async.train.share import MicroShare


class Policy:
    """The model of ``bridge`` under an objective."""

    def __init__(
        self, config: RunConfig, bridge: Any, objective: Objective, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        learner = config.learner
        self._objective, self._device = objective, device
        self._max_tokens = learner.max_tokens_per_micro_batch
        self._temperature = config.rollout.rollout_temperature
        self._entropy_grad = config.algorithm.entropy_coef > 0
        rate = rate_of(learner, lr=learner.lr, warmup_steps=learner.lr_warmup_steps)
        self.model = TrainedModel(bridge.build(), bridge.config, learner, dtype=dtype, device=device, rate=rate)

    def all_logprobs(self, sequences: Sequences, temperature: float | None = None) -> torch.Tensor:
        """[N] float32 on the CPU: the log-probs of all unmasked response tokens, without gradient."""
        wanted = self._temperature if temperature is None else temperature
        return of_all_tokens(sequences, self._max_tokens, lambda micro: self._logprobs(micro, wanted))

    def of_tokens(self, sequences: Sequences, ids: Array) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs [N, k] float32 of the tokens ``ids`` [N, k] int32 at each unmasked response position, and whether they are
        among the k likeliest there [N, k] bool; on the CPU, without gradient."""

        def compute(micro: MicroBatch) -> torch.Tensor:
            logprobs = (self.model.outputs(micro).float() / self._temperature).log_softmax(-1)
            wanted = torch.from_numpy(ids[micro.token_index].astype(np.int64)).to(self._device)
            found = logprobs.gather(-1, wanted)
            least = logprobs.topk(wanted.shape[1]).values[:, -1:]
            return torch.cat([found, (found >= least).float()], dim=-1)

        found = of_all_tokens(sequences, self._max_tokens, compute).reshape(len(ids), -1)
        if found.shape[1] != 2 * ids.shape[1]:  # no token is unmasked
            found = found.new_zeros(len(ids), 2 * ids.shape[1])
        return found[:, : ids.shape[1]], found[:, ids.shape[1] :] > 0

    def backward(
        self, micro: MicroBatch, part: MicroShare, version: int, *, learning: bool
    ) -> tuple[torch.Tensor, Sums]:
        """Add the gradient of a micro-batch's share in its step's loss, if ``learning``. Returns its log-probs [n] and its
        share of the metrics. version: of the weights before the batch."""
        with torch.set_grad_enabled(learning):
            logprobs, loss, sums = self._loss(micro, part, version)
        if learning:
            loss.backward()
        return logprobs.detach(), sums

    def _loss(self, micro: MicroBatch, part: MicroShare, version: int) -> tuple[torch.Tensor, torch.Tensor, Sums]:
        """Log-probs [n] and loss, with gradient, and metrics of one micro-batch."""
        logits, targets = self._outputs(micro)
        grad, wanted = self._entropy_grad, self._objective.wants_logits
        logprobs, entropy = token_logprobs(logits, targets, temperature=self._temperature, entropy_grad=grad)
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
            logits=logits if wanted else None,
            targets=targets if wanted else None,
        )
        loss, sums = self._objective.loss(
            terms,
            part.weights,
            pg_weights=part.pg_weights,
            entropy=entropy,
            reference=part.reference,
            batch_correction=part.correction,
        )
        return logprobs, loss, sums

    def _logprobs(self, micro: MicroBatch, temperature: float) -> torch.Tensor:
        return token_logprobs(*self._outputs(micro), temperature=temperature)[0]

    def _outputs(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [n, vocabulary] and targets [n] of the micro-batch's tokens."""
        return self.model.outputs(micro), torch.from_numpy(micro.targets).to(self._device)
