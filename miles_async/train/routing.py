"""The routers of a model in training: what they lose, what they count, what moves their choice, and what takes its place.

Promises: the numbers of an optimizer step are those of all its real tokens, on every rank; without a mixture of experts nothing
is done and nothing entered. Collective over ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from miles_async.config import schema as cfg
from miles_async.train.batch import MicroBatch
from miles_async.train.distributed import LearnerGroups
from miles_async.train.given_experts import GivenExperts

LOAD, BALANCE, Z = "moe_max_load", "moe_aux_loss", "moe_z_loss"


class Routing:
    """Of the GPTModels ``modules``, before they are in DDP. config: Megatron's TransformerConfig of them. replays:
    experts can be given to them."""

    def __init__(
        self, modules: Sequence[Any], config: Any, learner: cfg.Learner, groups: LearnerGroups, *, replays: bool = False
    ) -> None:
        self._groups, self._learner = groups, learner
        self._layers = getattr(config, "num_layers", 0)
        self._experts = getattr(config, "num_moe_experts", None) or 0
        of_module = {module: _routers(module) if self._experts else [] for module in modules}
        self._routers = [router for routers in of_module.values() for router in routers]
        self._replaying = of_module if replays else {}
        for router in self._routers if replays else ():
            router.router_replay = GivenExperts()
        if learner.freeze_moe_router:
            for router in self._routers:
                router.weight.requires_grad_(False)

    @property
    def counts(self) -> bool:
        """Whether the model's passes have to say what is padding."""
        return bool(self._routers)

    def begin(self) -> None:
        """An optimizer step begins."""
        for router in self._routers:
            router.forget()

    def begin_pass(self, *, learning: bool) -> None:
        """A pass through micro-batches begins, with gradients if ``learning``."""
        for router in self._routers if self._replaying else ():
            router.router_replay.begin(learning=learning)

    def give(self, module: Any, routes: torch.Tensor | None) -> None:
        """The experts of the next forward pass of ``module``: [rows, columns, layers, top_k] of the tokens here, of the model's
        layers; None: its routers choose. Without ``replays`` they always do."""
        if not (routers := self._replaying.get(module)):
            return
        own = None
        if routes is not None:  # in Megatron's order: all rows of the first column, of the second, and so on
            own = routes[:, :, [router.layer_number - 1 for router in routers]].transpose(0, 1).flatten(0, 1)
            own = own.to(self._groups.device)
        for place, router in enumerate(routers):
            router.router_replay.give(None if own is None else own[:, place])

    def weigh(self, micros: Sequence[MicroBatch]) -> None:
        """These are the micro-batches of this replica in the optimizer step."""
        aux, z = self._learner.moe_aux_loss_coeff, self._learner.moe_z_loss_coeff
        if not self._experts or not (aux or z):
            return
        sizes = [(len(micro.widths), int(micro.widths.sum())) for micro in micros if len(micro.targets)]
        mine = [float(sum(size)) for size in zip(*sizes, strict=True)]
        rows, tokens = self._groups.gather(mine or [0.0, 0.0]).sum(dim=0).clamp(min=1.0).tolist()
        for router in self._routers:
            router.balance_weight, router.z_weight = aux / rows, z / tokens

    def end(self) -> dict[str, float]:
        """The gradients of the step are applied: the numbers of the step. Moves the biases that take part in the choice."""
        if not self._experts:
            return {}
        table = torch.zeros(self._layers, self._experts + 2, dtype=torch.float64, device=self._groups.device)
        for router in self._routers:
            table[router.layer_number - 1] = torch.cat([router.counts, torch.stack([router.balance, router.z])])
        if self._groups.world_size > 1:  # each has other tokens, or other layers
            dist.all_reduce(table)
        self._move(table[:, :-2])
        table = table[table[:, :-2].sum(dim=-1) > 0].cpu()  # layers that have experts
        if not len(table):  # a model of the user's, with routers of its own
            return {}
        counts, (balance, z) = table[:, :-2], table[:, -2:].mean(dim=0).tolist()
        found = {LOAD: float((counts.amax(dim=-1) / counts.mean(dim=-1)).mean())}
        if self._learner.moe_aux_loss_coeff:
            found[BALANCE] = balance / self._learner.moe_aux_loss_coeff
        if self._learner.moe_z_loss_coeff:
            found[Z] = z / self._learner.moe_z_loss_coeff
        return found

    def _move(self, counts: torch.Tensor) -> None:
        """Each expert's bias rises by a step where it had fewer tokens than the mean, and falls where it had more. counts:
        [layers, experts]."""
        for router in self._routers:
            if self._learner.moe_router_bias_update_rate and router.expert_bias is not None:
                mine = counts[router.layer_number - 1]
                router.expert_bias += torch.sign(mine.mean() - mine).float() * self._learner.moe_router_bias_update_rate


def _routers(module: Any) -> list[Any]:
    from miles_async.train.router import MixtureRouter

    return [part for part in module.modules() if isinstance(part, MixtureRouter)]
