"""AdamW on the shards that this process holds.

Promises: weights, moments and gradients are float32, whatever the model computes in; norm, clipping and which parameters decay
are those of Megatron's Adam (optimizer.py); whether a gradient is finite is known before any weight changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from miles_async.config import schema as cfg
from miles_async.train.distributed import LearnerGroups
from miles_async.train.kept_weights import local_part

MOMENTS = ("exp_avg", "exp_avg_sq")


class ShardedAdam:
    """The optimizer of ``parameters``, by name, each a DTensor of fully_shard's."""

    def __init__(
        self, parameters: Mapping[str, torch.nn.Parameter], learner: cfg.Learner, groups: LearnerGroups
    ) -> None:
        self._parameters, self._groups = parameters, groups
        self._clip_grad, self._norm = learner.clip_grad or math.inf, 0.0
        self._shards = {
            name: local_part(parameter) for name, parameter in parameters.items()
        }  # views: they change with them
        decays = {name: parameter.dim() > 1 and not name.endswith(".bias") for name, parameter in parameters.items()}
        self._adam = torch.optim.AdamW(
            [
                {
                    "params": [shard for name, shard in self._shards.items() if decays[name] is wanted],
                    "weight_decay": decay,
                }
                for wanted, decay in ((True, learner.weight_decay), (False, 0.0))
            ],
            lr=learner.lr,
            betas=(learner.adam_beta1, learner.adam_beta2),
            eps=learner.adam_eps,
        )
        for (
            shard
        ) in self._shards.values():  # zeros before the first step, so that a checkpoint of version 0 is like any other
            self._adam.state[shard].update(step=torch.tensor(0.0), **{key: torch.zeros_like(shard) for key in MOMENTS})

    def zero_grad(self) -> None:
        """Forget the last step's gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None
        for shard in self._shards.values():
            shard.grad = None

    def scale_gradients(self, factor: float) -> None:
        """Multiply what was added up so far."""
        for parameter in self._parameters.values():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def gradient_norm(self) -> float:
        """The norm of the whole gradient, of all ranks; inf or nan if it cannot be applied. Collective."""
        for name, parameter in self._parameters.items():
            self._shards[name].grad = None if parameter.grad is None else local_part(parameter.grad)
        squares = torch.zeros((), dtype=torch.float64, device=self._groups.device)
        for grad in self._gradients():
            squares += torch.linalg.vector_norm(grad).double() ** 2
        self._norm = float(self._groups.sum(squares)) ** 0.5
        return self._norm

    def step(self, lr: float) -> float:
        """Clip and apply the gradients whose :meth:`gradient_norm` was asked for last, and is finite, with rate ``lr``. Returns
        the norm before clipping."""
        for group in self._adam.param_groups:
            group["lr"] = lr
        clip = self._clip_grad / (self._norm + 1e-6)
        if clip < 1.0:
            torch._foreach_mul_(self._gradients(), clip)  # pyright: ignore[reportPrivateImportUsage]
        self._adam.step()
        return self._norm

    def _gradients(self) -> list[torch.Tensor]:
        return [shard.grad for shard in self._shards.values() if shard.grad is not None]

    def moments(self) -> dict[str, dict[str, torch.Tensor]]:
        """Moment to parameter's name to the shard of it that is here, the one that is stepped with."""
        return {key: {name: self._adam.state[shard][key] for name, shard in self._shards.items()} for key in MOMENTS}

    def restore(self, steps: int) -> None:
        """The moments were restored in place; they are of so many steps."""
        for shard in self._shards.values():
            state: dict[str, Any] = self._adam.state[shard]
            state["step"] = torch.tensor(float(steps))
