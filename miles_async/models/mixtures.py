"""Mixtures of experts, as their ``config.json`` says them: how many experts there are, and what of one cannot be computed.

Promises: what Megatron would compute differently from transformers is an objection, in words; importing this costs no torch.
"""

from __future__ import annotations

from typing import Any

from miles_async.models.hf_config import rope

MIXTURES = ("qwen3_moe", "mixtral", "glm4_moe", "deepseek_v3")  # by model_type
BIASED = ("glm4_moe", "deepseek_v3")  # of them, those whose experts are chosen with a bias besides
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # names that architectures have for their number


def experts_of(raw: dict[str, Any]) -> int:
    """How many experts a layer of the model can have; 0: it is no mixture."""
    return next((raw[name] for name in _EXPERTS if raw.get(name)), 0)


def expert_size(raw: dict[str, Any]) -> int:
    """The intermediate size of one expert."""
    return raw.get("moe_intermediate_size") or raw["intermediate_size"]


def normalizes(config: dict[str, Any]) -> bool:
    """Whether the weights of a token's experts are made to add up to 1."""
    return config.get("norm_topk_prob", True)


def mixture_problems(config: dict[str, Any]) -> list[str]:
    """What of the mixture would be computed differently from transformers; empty: nothing, or it is none. config: complete
    (hf_config.completed)."""
    if config["model_type"] not in MIXTURES:
        return []
    experts, chosen = experts_of(config), config["num_experts_per_tok"]
    found = []
    if not 1 <= chosen <= experts:
        found.append(f"num_experts_per_tok {chosen} of {experts} experts")
    elif chosen == 1 and normalizes(config):
        found.append("num_experts_per_tok 1 whose weight is always 1: no gradient reaches the router")
    if config.get("decoder_sparse_step", 1) != 1 or config.get("mlp_only_layers"):
        found.append(
            "decoder_sparse_step or mlp_only_layers: layers without experts (supported: experts in every layer)"
        )
    if config["model_type"] == "mixtral" and config.get("sliding_window") is not None:
        found.append("sliding-window attention (supported: full attention)")
    return found + [problem for problem in _OF_MODEL.get(config["model_type"], lambda _: [])(config) if problem]


def _grouped(config: dict[str, Any]) -> list[str]:
    """Of a sigmoid router, whose experts are chosen from the best groups of them."""
    experts, groups, chosen = config["n_routed_experts"], config["n_group"], config["num_experts_per_tok"]
    uneven = groups > 1 and (experts % groups or chosen != 2 * config["topk_group"])
    return [
        "norm_topk_prob false (supported: true)" if not config["norm_topk_prob"] else "",
        "tie_word_embeddings true (supported: false)" if config["tie_word_embeddings"] else "",
        "" if config["n_shared_experts"] >= 1 else "n_shared_experts below 1",
        ""
        if config["first_k_dense_replace"] < config["num_hidden_layers"]
        else "first_k_dense_replace: no layer has experts",
        # Megatron rates a group by as many experts as a token takes from it, transformers by two
        "n_group above 1 whose experts are not num_experts_per_tok = 2 * topk_group" if uneven else "",
    ]


def _latent(config: dict[str, Any]) -> list[str]:
    """The same of one whose attention is over latent keys and values."""
    scaling = rope(config)
    yarn = (scaling.get("rope_type") or scaling.get("type")) == "yarn"
    return [
        *_grouped(config),
        "" if config["rope_interleave"] else "rope_interleave false (supported: true)",
        # transformers has 1e-6 for the norms of the latent vectors, whatever it says
        "" if config["rms_norm_eps"] == 1e-6 else f"rms_norm_eps {config['rms_norm_eps']} (supported: 1e-06)",
        ""
        if config["num_key_value_heads"] == config["num_attention_heads"]
        else "fewer num_key_value_heads than heads",
        "rope_type 'yarn' without a factor" if yarn and not scaling.get("factor") else "",
        "rope_type 'yarn' with truncate false (supported: true)" if yarn and not scaling.get("truncate", True) else "",
    ]


_OF_MODEL = {"glm4_moe": _grouped, "deepseek_v3": _latent}
