"""Whether a model can be split as ``[learner]`` says, told from ``config.json`` alone.

Promises: sizes that do not divide are refused before anything starts, in one line with the arithmetic; importing this costs no
torch.
"""

from __future__ import annotations

from typing import Any

from miles_async.config.layout import Layout, layout_of
from miles_async.config.lora import ATTENTION, DIRECT_QUERIES, LATENT_KEYS, LATENT_QUERIES, USUAL
from miles_async.config.schema import ConfigError, Learner, RunConfig
from miles_async.config.words import show
from miles_async.models import builtin
from miles_async.models.device import on_cuda
from miles_async.models.mixtures import BIASED, expert_size, experts_of
from miles_async.models.support import read_config_json

OF_MIXTURE = ("moe_aux_loss_coeff", "moe_z_loss_coeff", "moe_router_bias_update_rate", "freeze_moe_router")
_SHARED = "shared_experts"  # which the models have whose routers have biases


def check_layout(config: RunConfig) -> None:
    """Refuse a layout that the policy's model, or the critic's, cannot have, what only a mixture of experts has, and adapters
    beside one. Raises ConfigError, ModelError."""
    layout = layout_of(config.learner)
    policy = config.model.hf_checkpoint
    if not (layout.splits_model or config.learner.lora_rank or _of_mixture(config.learner)):
        return
    for directory in filter(None, (policy, config.critic.critic_load)):
        raw = builtin.shape_of(directory) if builtin.is_builtin(directory) else read_config_json(directory)
        if found := problem(raw, layout):
            raise ConfigError(f"{found}, which {directory} has")
        if directory == policy:
            _check_policy(config.learner, directory, raw)
    if layout.expert > 1 and layout.expert_tensor > 1 and not on_cuda(config):
        raise ConfigError(
            f"learner.expert_tensor_parallel_size = {layout.expert_tensor} with expert_parallel_size = {layout.expert} needs a "
            "CUDA device: gloo gathers no tensors of several sizes; allowed here: 1"
        )


def _check_policy(learner: Learner, directory: str, raw: dict[str, Any]) -> None:
    """Refuse what has no effect on the model, and adapters where it has no such matrices. Raises ConfigError."""
    if learner.lora_rank and learner.train_backend != "fsdp":
        _check_adapters(learner, directory, raw)
    for given, biased in _of_mixture(learner).items():
        if not experts_of(raw):
            raise ConfigError(f"{given} has an effect on a mixture of experts only, unlike the dense model {directory}")
        if biased and raw.get("model_type") not in BIASED:
            raise ConfigError(f"{given} has an effect on {' and '.join(BIASED)} only, unlike {directory}")


def _check_adapters(learner: Learner, directory: str, raw: dict[str, Any]) -> None:
    """Refuse adapters of experts and of what the model has not, and routers that would move beside what is frozen. Raises
    ConfigError."""
    targets, allowed = learner.lora_targets or list(USUAL), _matrices(raw)
    if set(targets) - allowed:
        experts = bool(experts_of(raw)) and any(USUAL.get(name, ATTENTION) != ATTENTION for name in targets)
        why = f"experts, which {directory} has, get no adapters" if experts else f"{directory} has not all of them"
        raise ConfigError(f"learner.lora_targets = {show(targets)}: {why}; allowed here: {', '.join(sorted(allowed))}")
    if not experts_of(raw):
        return
    for key in ("freeze_moe_router", "moe_router_bias_update_rate"):
        if value := getattr(learner, key):
            raise ConfigError(
                f"learner.{key} = {show(value)} with learner.lora_rank: routers are frozen beside adapters"
            )


def _matrices(raw: dict[str, Any]) -> set[str]:
    """What can have adapters: of a mixture only attention, since transformers' model has the experts of a layer as one tensor,
    and no linear layers for PEFT to load a pair beside."""
    if raw.get("model_type") == "deepseek_v3":
        queries = DIRECT_QUERIES if raw.get("q_lora_rank", 1) is None else LATENT_QUERIES
        return {"linear_proj", *queries, *LATENT_KEYS}
    return {name for name, part in USUAL.items() if part == ATTENTION or not experts_of(raw)}


def _of_mixture(learner: Learner) -> dict[str, bool]:
    """What is given that a dense model has no use for, and whether only a router with biases has one."""
    keys = {key: getattr(learner, key) for key in OF_MIXTURE if getattr(learner, key)}
    modules = {name for name in learner.recompute_modules or () if name in ("moe", _SHARED)}
    said = {f"learner.{key} = {show(value)}": key == "moe_router_bias_update_rate" for key, value in keys.items()}
    return said | {f'learner.recompute_modules with "{name}"': name == _SHARED for name in sorted(modules)}


def problem(raw: dict[str, Any], layout: Layout) -> str:
    """What of the model does not divide; empty: everything does. raw: config.json."""
    heads, layers, vocabulary = raw["num_attention_heads"], raw["num_hidden_layers"], raw["vocab_size"]
    groups = raw.get("num_key_value_heads") or heads
    experts = experts_of(raw)
    tensor, stages = layout.tensor, layout.pipeline * layout.virtual
    key = f"learner.tensor_parallel_size = {tensor}"
    if heads % tensor:
        return f"{key} must divide the {heads} attention heads"
    if groups % tensor and tensor % groups:
        return f"{key} must divide the {groups} key-value heads, or be a multiple of them"
    if vocabulary % tensor:
        return f"{key} must divide the vocabulary of {vocabulary} tokens"
    if (not experts or raw.get("first_k_dense_replace")) and raw["intermediate_size"] % tensor:
        return f"{key} must divide the intermediate size of {raw['intermediate_size']}"
    if layers % stages:
        return (
            f"learner.pipeline_parallel_size * virtual_pipeline_size = {layout.pipeline} * {layout.virtual} = {stages} must "
            f"divide the {layers} layers"
        )
    if not experts:
        needs = f"learner.expert_parallel_size = {layout.expert} needs a mixture of experts, unlike the dense model"
        return needs if layout.expert > 1 else ""
    if experts % layout.expert:
        return f"learner.expert_parallel_size = {layout.expert} must divide the {experts} experts"
    if tensor > 1 and not layout.sequence:
        return f"learner.sequence_parallel = false with {key}: not for a mixture of experts"
    if (size := expert_size(raw)) % layout.expert_tensor:
        return f"learner.expert_tensor_parallel_size = {layout.expert_tensor} must divide an expert's size of {size}"
    return ""
