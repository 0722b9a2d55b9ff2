"""The optimizer steps of one batch: one for each mini-batch, in each pass over the batch.

    mini-batch ─► forward, loss, backward ─► gradients of all ranks ─► finite on all? ─► Adam
                                                                           └ no: skipped

Promises:
- A step whose gradient is inf or nan on any rank is skipped by all; one without a token to train, on all ranks together, is
  not begun. Neither changes a weight, a moment of Adam or the place in the schedule of the learning rate.
- A batch whose weights are held (``ticks`` is false) adds its gradients up and takes no step; the step of the batch that ends
  them has the mean of the gradients of all of them.
- Steps that are skipped in a row are counted across batches; past ``learner.max_skipped_steps`` the run ends, since a restart
  would come to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from miles_async.train.distributed import LearnerGroups
from miles_async.train.minibatch import MiniBatch
from miles_async.train.trained import Trained


class NonFiniteGradient(ValueError):
    """More gradients in a row than allowed were inf or nan. The weights are as the last good step left them; a restart would
    replay the same steps to the same end."""


def counts(made: int = 0, empty: int = 0, skipped: int = 0) -> dict[str, float]:
    """The numbers of a batch's optimizer steps, as metrics."""
    return {"optimizer_steps": float(made), "empty_steps": float(empty), "skipped_steps": float(skipped)}


@dataclass
class StepsOutcome:
    """What became of a batch's optimizer steps. Sums are over those that were made."""

    sums: torch.Tensor  # [metrics] float64, this rank's parts
    moved: dict[str, float] = field(default_factory=dict)  # gradient norms and learning rates
    made: int = 0
    empty: int = 0  # had nothing to learn
    skipped: int = 0  # had a gradient that is not finite
    held: int = 0  # mini-batches whose gradients wait for those of the next batch

    @property
    def counts(self) -> dict[str, float]:
        """The numbers of steps made and skipped, as metrics."""
        return counts(self.made, self.empty, self.skipped)

    @property
    def means(self) -> dict[str, float]:
        """The means of ``moved`` over the steps that were made."""
        return {name: total / self.made for name, total in self.moved.items()}


class OptimizerSteps:
    """Runs them. ``skipped_in_a_row`` belongs to the state of training, as the weights do."""

    def __init__(self, groups: LearnerGroups, max_skipped: int, suspects: str = "") -> None:
        """suspects: where to look when too many were skipped (idle_steps.py), the end of a line."""
        self._groups, self._max_skipped, self._suspects = groups, max_skipped, suspects
        self.skipped_in_a_row = 0
        self._held = 0  # mini-batches whose gradients are added up

    def run(
        self,
        models: Sequence[Trained],
        mini_batches: Sequence[MiniBatch],
        epochs: int,
        backward: Callable[[MiniBatch, bool], torch.Tensor],
        *,
        size: int,
        name: str,
        ticks: bool = True,
    ) -> StepsOutcome:
        """One optimizer step of all ``models`` for each mini-batch, ``epochs`` times. Collective. Unless ``ticks``, none, and
        what there is of gradients waits for the next call (which has one mini-batch, as this one, and one pass).

        backward: adds up the gradients of a mini-batch and gives this rank's part of its metrics, [size] float64; the flag
        says whether the weights are still those from before the batch. name: of the batch, for messages. Raises
        NonFiniteGradient, RanksSilent.
        """
        outcome = self._nothing(size)
        for mini_batch in [part for _ in range(epochs) for part in mini_batches]:
            if not mini_batch.trained and not (ticks and self._held):
                outcome.empty += 1
                continue
            sums = None
            if mini_batch.trained:
                if not self._held:
                    for model in models:
                        model.zero_grad()
                sums = backward(mini_batch, outcome.made == 0)
                self._held += 1
            if ticks:
                self._step(models, outcome, sums, name)
            elif sums is not None:
                outcome.held += 1
                outcome.sums += sums
        return outcome

    def finish(self, models: Sequence[Trained], *, size: int, name: str) -> StepsOutcome:
        """The optimizer step of what is held, if anything is. Collective. Raises NonFiniteGradient, RanksSilent."""
        outcome = self._nothing(size)
        if self._held:
            self._step(models, outcome, None, name)
        return outcome

    def _nothing(self, size: int) -> StepsOutcome:
        return StepsOutcome(torch.zeros(size, dtype=torch.float64, device=self._groups.device))

    def _step(self, models: Sequence[Trained], outcome: StepsOutcome, sums: torch.Tensor | None, name: str) -> None:
        """With the gradients that are added up, of which ``sums`` are the last mini-batch's metrics."""
        if self._held > 1:
            for model in models:
                model.scale_gradients(1 / self._held)
        self._held = 0
        with self._groups.waiting(f"the gradients of {name} of"):
            norms = [model.reduce_gradients() for model in models]
            broken = [norm for norm in norms if not math.isfinite(norm)]
            if self._groups.any(bool(broken)):
                outcome.skipped += 1
                self._skip(broken[0] if broken else math.nan, name)
                return
            self.skipped_in_a_row = 0
            moved = [model.apply_gradients() for model in models]
        outcome.made += 1
        if sums is not None:
            outcome.sums += sums
        for key, value in (pair for part in moved for pair in part.items()):
            outcome.moved[key] = outcome.moved.get(key, 0.0) + value

    def _skip(self, norm: float, name: str) -> None:
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self._max_skipped:
            raise NonFiniteGradient(
                f"{name}: the norm of the gradient is {norm}, in a row of {self.skipped_in_a_row} optimizer steps without a "
                f"finite one; learner.max_skipped_steps = {self._max_skipped} may be skipped{self._suspects}"
            )
