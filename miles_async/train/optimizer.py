"""Megatron's optimizer: built from the configuration, stepped with a given rate, restored from a checkpoint.

Promises: whether a gradient is finite is known before any weight changes; after a restore every parameter has its own step
count. Where neither TransformerEngine nor Apex is installed Megatron falls back to ``torch.optim.AdamW``, whose state
its distributed checkpoints do not quite fit; the three repairs for that are here, on the instance, not on the class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from miles_async.config import schema as cfg
from miles_async.config.layout import Layout
from miles_async.train.megatron_args import megatron_args
from miles_async.train.mixed_types import repair
from miles_async.train.offloaded import is_offloaded, offloading, prepare

_RESHARDABLE = "fully_reshardable"  # DistributedOptimizer's form of a state that any number of ranks can load


class LearnerOptimizer:
    """The Megatron optimizer of one model. chunks: its parts in this process, each in DDP."""

    def __init__(self, config: cfg.Learner, dtype: torch.dtype, chunks: Sequence[torch.nn.Module], layout: Layout):
        from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

        settings = OptimizerConfig(
            optimizer=config.optimizer,
            lr=config.lr,
            weight_decay=config.weight_decay,
            adam_beta1=config.adam_beta1,
            adam_beta2=config.adam_beta2,
            adam_eps=config.adam_eps,
            bf16=dtype is torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=config.use_distributed_optimizer,
            **(offloading(config) | megatron_args(config.megatron_args).optimizer),
        )
        self.megatron: Any = get_megatron_optimizer(settings, [*chunks])  # pyright: ignore[reportArgumentType]
        self._sharded = config.use_distributed_optimizer
        self._of_mixture = bool(getattr(chunks[0].config, "num_moe_experts", None))
        on_cpu = next(chunks[0].parameters()).device.type == "cpu"
        self._whole = on_cpu and not self._sharded and layout.model == layout.context and layout.expert == 1
        self._clip_grad, self._norm = config.clip_grad or math.inf, 0.0
        self._weight_decay = config.weight_decay
        for part in self._parts():
            repair(part)
        self._offloaded = [part for part in self._parts() if is_offloaded(part)]
        for part in self._offloaded:
            prepare(part)
        self._torch_sgd = [part for part in self._parts() if isinstance(part.optimizer, torch.optim.SGD)]
        for part in self._torch_sgd:
            _create_momentum(part.optimizer)
            part.init_state_fn = _as_it_is
        self._torch_adamw = [part for part in self._parts() if isinstance(part.optimizer, torch.optim.AdamW)]
        for part in self._torch_adamw:
            _create_state(part.optimizer)
            if self._sharded:
                part._set_main_param_and_optimizer_states = _state_setter(part)
                if not part.buffers:  # a stage may have no experts, of which Megatron asks how many steps they made
                    part.state_dict = part.sharded_state_dict = part.load_state_dict = _nothing

    def _parts(self) -> list[Any]:
        return list(getattr(self.megatron, "chained_optimizers", [self.megatron]))

    def zero_grad(self) -> None:
        """Forget the last step's gradients. Besides ``ddp.zero_grad_buffer()``: stepping leaves ``param.grad`` as an alias
        of the buffer, and the next backward would then count its first micro-batch twice."""
        self.megatron.zero_grad()

    def gradient_norm(self) -> float:
        """The norm of the gradients in the DDP buffers, float32; inf or nan if they cannot be applied. Weights and state stay
        as they are. Collective with the distributed optimizer."""
        self.megatron.prepare_grads()
        self._norm = self._own_norm() if self._whole else float(self.megatron.get_grad_norm())
        return self._norm

    def _own_norm(self) -> float:
        """Megatron's, where every rank has every gradient, on a CPU: without a collective of one rank."""
        norms = [
            torch.linalg.vector_norm(grad) for part in self._parts() for grad in part.get_main_grads_for_grad_norm()
        ]
        return float(torch.linalg.vector_norm(torch.stack(norms)) ** 2.0) ** 0.5

    def step(self, lr: float) -> float:
        """Clip and apply the gradients whose :meth:`gradient_norm` was asked for last, and is finite, with rate ``lr``. Returns
        the norm before clipping. Collective with the distributed optimizer."""
        for group in self.megatron.param_groups:
            group["lr"] = lr
            group["weight_decay"] = self._weight_decay * group.get("wd_mult", 1.0)  # 0 for norms and biases
        clip = self._clip_grad / (self._norm + 1e-6)  # as Megatron's own step does, which would measure them again
        if clip < 1.0:
            for part in self._parts():
                grads = _gradients(part)
                if grads:  # a stage may have no experts, which have a part of their own
                    torch._foreach_mul_(grads, clip)  # pyright: ignore[reportPrivateImportUsage]
        self.megatron.step_with_ready_grads()
        return self._norm

    def sharded_state_dict(self, model_state: dict[str, Any], is_loading: bool) -> dict[str, Any]:
        """What dist_checkpointing stores, in the form that any other number of ranks can load."""
        # experts of several ranks have an optimizer of their own: its number in the names would be of this layout
        metadata: dict[str, Any] = {"chained_optim_avoid_prefix": True}
        if self._sharded:
            metadata["distrib_optim_sharding_type"] = _RESHARDABLE
        return self.megatron.sharded_state_dict(model_state, is_loading=is_loading, metadata=metadata)

    def load_state_dict(self, state: dict[str, Any], steps: int) -> None:
        """Restore what :meth:`sharded_state_dict` stored after ``steps`` optimizer steps."""
        inner = state.get("optimizer", state)
        if self._of_mixture:
            state = _in_form_of(self.megatron, self._parts(), state, steps)
        elif "state" in inner:  # Megatron stores no step count of 0, and AdamW does not load without one
            inner["state"].setdefault("common_step", torch.tensor(float(steps)))
        with torch.no_grad():
            self.megatron.load_state_dict(state)
        for part in self._torch_sgd:
            for entry in part.optimizer.state.values():
                entry.pop("step", None)  # Megatron's, of any optimizer
        for part in [*self._torch_adamw, *self._offloaded]:
            # DistributedOptimizer restores one shared tensor, which would count up once for each parameter.
            for entry in part.optimizer.state.values():
                if "step" in entry:  # TransformerEngine's counts by groups
                    entry["step"] = torch.tensor(float(steps))


def _gradients(part: Any) -> list[torch.Tensor]:
    """What an optimizer of Megatron's steps by."""
    where = "decoupled_grad" if part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8 else "grad"
    found = (getattr(parameter, where, None) for parameter in part.get_parameters())
    return [gradient for gradient in found if gradient is not None]


def _create_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Zero momentum before the first step, which makes the same of it, so that a checkpoint of version 0 is like any other."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _as_it_is(*_: Any) -> None:
    """Megatron asks for a state before it restores one, of gradient descent without saying of which form."""


def _nothing(*_: Any, **__: Any) -> dict[str, Any]:
    """The state of a part without parameters, and what restoring it gives."""
    return {}


def _create_state(optimizer: torch.optim.Optimizer) -> None:
    """Zero state before the first step, so that a checkpoint of version 0 is like any other."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter].update(
                step=torch.tensor(0.0), exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter)
            )


def _in_form_of(megatron: Any, parts: Sequence[Any], loaded: dict[Any, Any], steps: int) -> dict[Any, Any]:
    """What was loaded of a mixture, for the ``parts`` of an optimizer. How many there are, and which groups of parameters they
    have, depends on the layout; what is no tensor came in the form of the layout that saved it, so these ``parts`` say it."""
    of_parts = megatron.state_dict()
    forms = of_parts if len(parts) > 1 else [of_parts]
    found = [_in_form(form, loaded.get(i, {}) if len(parts) > 1 else loaded, steps) for i, form in enumerate(forms)]
    return dict(enumerate(found)) if len(parts) > 1 else found[0]


def _in_form(form: dict[str, Any], loaded: dict[str, Any], steps: int) -> dict[str, Any]:
    if not form:
        return form
    if "param_state" in loaded:  # DistributedOptimizer
        groups = [{**group, "step": steps} for group in form["optimizer"]["param_groups"]]
        tensors = {"param_state": loaded["param_state"], "param_state_sharding_type": _RESHARDABLE}
        return {**form, "optimizer": {**form["optimizer"], "param_groups": groups}, **tensors}
    of_half = "optimizer" in form  # Float16OptimizerWithFloat16Params
    inner, own = (loaded.get("optimizer", {}), form["optimizer"]) if of_half else (loaded, form)
    state = {**inner.get("state", {}), "common_step": torch.tensor(float(steps))}
    fresh = {"state": state, "param_groups": own["param_groups"]}
    if not of_half:
        return fresh
    return {**form, "optimizer": fresh, "fp32_from_fp16_params": loaded.get("fp32_from_fp16_params", [])}


def _state_setter(part: Any) -> Any:
    """DistributedOptimizer._set_main_param_and_optimizer_states for AdamW, whose state has a ``step`` that is not
    stored for each parameter (distrib_optimizer.py:939)."""

    def set_state(model_param: torch.nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
        group, order = part.model_param_group_index_map[model_param]
        main = part.optimizer.param_groups[group]["params"][order]
        for name, target in {"param": main, **part.optimizer.state[main]}.items():
            if name in tensors:
                target.copy_(tensors[name])

    return set_state
