"""``learner.megatron_args``: fields of Megatron's own configurations, by their names there.

Promises: a name that Megatron does not have, a value of another type, and a field that a key of this project says, that the
model says, or that the learner relies on, is refused before anything starts, in one line; what is given reaches every
configuration of Megatron that has the field. Importing this file costs no Megatron: only who gives such a field pays for it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from miles_async.config.schema import ConfigError, RunConfig
from miles_async.config.words import nearest, show

KEY = "learner.megatron_args"
SAID = {  # by a key of ours
    "tensor_model_parallel_size": "learner.tensor_parallel_size",
    "pipeline_model_parallel_size": "learner.pipeline_parallel_size",
    "virtual_pipeline_model_parallel_size": "learner.virtual_pipeline_size",
    "context_parallel_size": "learner.context_parallel_size",
    "expert_model_parallel_size": "learner.expert_parallel_size",
    "expert_tensor_parallel_size": "learner.expert_tensor_parallel_size",
    "sequence_parallel": "learner.sequence_parallel",
    "use_distributed_optimizer": "learner.use_distributed_optimizer",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    **dict.fromkeys(("params_dtype", "pipeline_dtype"), "model.dtype"),
    **{name: f"learner.{name}" for name in ("lr", "min_lr", "weight_decay", "adam_beta1", "adam_beta2", "adam_eps")},
    **{f"recompute_{name}": f"learner.recompute_{name}" for name in ("granularity", "method", "num_layers", "modules")},
    "clip_grad": "learner.clip_grad",
    "moe_enable_routing_replay": "rollout.routing_replay",
    **{name: f"learner.{name}" for name in ("optimizer", "optimizer_cpu_offload", "optimizer_offload_fraction")},
    **{name: f"learner.{name}" for name in ("moe_aux_loss_coeff", "moe_z_loss_coeff", "moe_router_bias_update_rate")},
}
MODEL = {  # what config.json says
    *("num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "kv_channels", "ffn_hidden_size"),
    *("layernorm_epsilon", "normalization", "gated_linear_unit", "activation_func", "add_bias_linear", "add_qkv_bias"),
    *("qk_layernorm", "rotary_interleaved", "num_moe_experts", "multi_latent_attention", "position_embedding_type"),
    *("moe_ffn_hidden_size", "moe_layer_freq", "moe_shared_expert_intermediate_size", "moe_shared_expert_gate"),
    *(f"moe_router_{name}" for name in ("topk", "pre_softmax", "score_function", "num_groups", "group_topk")),
    *("moe_router_topk_scaling_factor", "moe_router_enable_expert_bias", "moe_latent_size", "mtp_num_layers"),
}
RELIED_ON = {
    "calculate_per_token_loss": "a loss is a mean over its optimizer step",
    "variable_seq_lengths": "micro-batches differ in width",
    "hidden_dropout": "the two passes over a batch have to be the same",
    "attention_dropout": "the two passes over a batch have to be the same",
    "overlap_param_gather": "weights are read as soon as a step has made them",
    "overlap_param_gather_with_optimizer_step": "weights are read as soon as a step has made them",
    "overlap_grad_reduce": "gradients are reduced once an optimizer step",
    "grad_reduce_in_fp32": "gradients are sums over a whole batch",
    "use_cpu_initialization": "weights come from a checkpoint",
    "timers": "nothing reads them",
    "moe_router_load_balancing_type": "the balance of each sequence is what is lost",
    "moe_router_dtype": "routers compute in float32",
    **dict.fromkeys(
        ("moe_expert_capacity_factor", "moe_input_jitter_eps", "moe_router_force_load_balancing", "moe_token_dropping"),
        "tokens go to the experts that the engine chooses",
    ),
}
# needs kernels of TransformerEngine, or fails in Megatron without CUDA
OF_CUDA = (
    "fp8",
    "fp4",
    "use_precision_aware_optimizer",
    "moe_grouped_gemm",
    "enable_cuda_graph",
)


class MegatronArgs(NamedTuple):
    """The fields of each of Megatron's configurations."""

    transformer: dict[str, Any]
    ddp: dict[str, Any]
    optimizer: dict[str, Any]


def megatron_args(given: Mapping[str, Any]) -> MegatronArgs:
    """``given`` by configuration, each value of its field's type. Raises ConfigError."""
    if not given:
        return MegatronArgs({}, {}, {})
    kinds = _configurations()
    fields = [_fields(kind) for kind in kinds]
    known = set().union(*fields)
    for name in given:
        _refuse(name, known)
        if name in OF_CUDA and given[name] and not _cuda():
            raise ConfigError(f"{KEY}.{name} = {show(given[name])} needs a CUDA device, and torch sees none")
    found = [{name: _converted(name, value, of[name]) for name, value in given.items() if name in of} for of in fields]
    return MegatronArgs(*found)


def check(config: RunConfig) -> None:
    """Refuse an optimizer that is not to be had, and fields that cannot be given to Megatron. Raises ConfigError."""
    learner = config.learner
    if learner.optimizer == "muon":
        raise ConfigError(
            'learner.optimizer = "muon": Megatron\'s needs the package emerging_optimizers, which this project does not have; '
            'allowed: "adam", "sgd"'
        )
    if learner.optimizer != "adam" and learner.use_distributed_optimizer:
        raise ConfigError(
            f'learner.optimizer = "{learner.optimizer}" with learner.use_distributed_optimizer = true: Megatron stores Adam\'s '
            "state only where ranks share one"
        )
    _check_offload(config)
    megatron_args(learner.megatron_args)


def _check_offload(config: RunConfig) -> None:
    """Refuse an optimizer in the CPU's memory where it lies there anyway, or where Megatron has none. Raises ConfigError."""
    learner = config.learner
    if not learner.optimizer_cpu_offload:
        return
    why = ""
    if config.model.device == "cpu" or not _cuda():
        why = "has an effect on a CUDA device only: on a CPU its state lies in the CPU's memory anyway"
    elif not learner.use_distributed_optimizer or learner.optimizer != "adam":
        why = 'needs learner.use_distributed_optimizer = true and learner.optimizer = "adam": Megatron has no other one'
    elif config.model.dtype != "bfloat16" or learner.fp32_parameters:
        why = 'needs model.dtype = "bfloat16" without learner.fp32_parameters: Megatron restores no other state'
    elif importlib.util.find_spec("transformer_engine") is None:
        why = "needs the package transformer_engine, which is not installed: Megatron takes its optimizer"
    if why:
        raise ConfigError(f"learner.optimizer_cpu_offload = true {why}")


def _refuse(name: str, known: set[str]) -> None:
    if name in SAID:
        raise ConfigError(f"{KEY}.{name} is said by {SAID[name]}")
    if name in MODEL:
        raise ConfigError(f"{KEY}.{name} is the model's: its config.json says it")
    if name in RELIED_ON:
        raise ConfigError(f"{KEY}.{name} cannot be changed: {RELIED_ON[name]}")
    if name not in known:
        raise ConfigError(
            f"{KEY}.{name}: no field of Megatron's TransformerConfig, DistributedDataParallelConfig or OptimizerConfig"
            f"{nearest(name, known)}"
        )


def _converted(name: str, value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{KEY}.{name} = {show(value)}: {str(error)[:1].lower()}{str(error)[1:]}") from None
    except TypeError:  # of a class that msgspec does not know
        raise ConfigError(f"{KEY}.{name} has no value that TOML can say: {kind}") from None


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _configurations() -> tuple[Any, ...]:
    import torch

    if not _cuda():
        from miles_async.train import cpu_shim
        from miles_async.train.quiet_megatron import quiet_megatron

        quiet_megatron()
        cpu_shim.install(torch.device("cpu"))  # Megatron cannot be imported before
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer.transformer_config import TransformerConfig

    return TransformerConfig, DistributedDataParallelConfig, OptimizerConfig


def _fields(kind: Any) -> dict[str, Any]:
    """The type of each field of a dataclass."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
