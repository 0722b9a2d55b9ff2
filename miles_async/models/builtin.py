"""Tiny checkpoints and prompt sets made here, so that a run needs no download.

Promises: the same name and seed give the same bytes; a checkpoint is an ordinary Hugging Face directory (Qwen3
architecture, safetensors, ``tokenizer.json``) that transformers, SGLang, mbridge and the embedded engine load like any
other. Nothing here imports torch: the launch makes its inputs while other processes load it.

``builtin:digits``   16 tokens (pad, eos, '>', the digits, 3 spare), 75,136 parameters: learns ``builtin:repeat``.
``builtin:guess``    the same sizes (pad, eos, '>', the digits, '+', '-', '?'), a chat template without role names:
                     ``?>5<eos>+>7<eos>``; learns ``examples/guess_number.toml``.
``builtin:words``    128 tokens (printable ASCII by character), 804,096 parameters: any English prompt.
``builtin:repeat``   60 prompts ``c>k>``, answer k times the digit c, k in 1..6; ``builtin:repeat9``: 90, k in 1..9.
"""

from __future__ import annotations

import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

PREFIX = "builtin:"
PAD, EOS = "_", "<eos>"
PAD_ID, EOS_ID = 0, 1


@dataclass(frozen=True)
class Architecture:
    """The sizes of a Qwen3 model with tied embeddings, and the normal deviation its matrices start with."""

    vocab: tuple[str, ...]
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    init_std: float
    max_position: int
    chat_template: str


def padded(tokens: tuple[str, ...], size: int) -> tuple[str, ...]:
    """``tokens`` with spare ones up to ``size``: single private-use characters, which no text holds."""
    return tokens + tuple(chr(0xE000 + i) for i in range(size - len(tokens)))


_ASCII = "\n" + "".join(chr(c) for c in range(32, 127) if chr(c) != PAD) + "\ufffd"

_ROLES = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# what the policy wrote ends with its own end of sequence, anything else with '>': a turn costs few tokens
_TERSE = (
    "{% for message in messages %}"
    "{{ message['content'] + (eos_token if message['role'] == 'assistant' else '>') }}"
    "{% endfor %}"
)

MODELS: dict[str, Architecture] = {
    # theta 100 and deviation 0.1 instead of the usual 10000 and 0.02: at this size they decide whether it learns at all
    "builtin:digits": Architecture(
        padded((PAD, EOS, ">", *string.digits), 16), 64, 128, 2, 4, 2, 16, 100.0, 0.1, 256, _ROLES
    ),
    "builtin:guess": Architecture(
        (PAD, EOS, ">", *string.digits, *"+-?"), 64, 128, 2, 4, 2, 16, 100.0, 0.1, 256, _TERSE
    ),
    "builtin:words": Architecture(padded((PAD, EOS, *_ASCII), 128), 128, 384, 4, 8, 4, 16, 10000.0, 0.05, 2048, _ROLES),
}
PROMPTS: dict[str, int] = {"builtin:repeat": 6, "builtin:repeat9": 9}  # name to the largest count asked for


def is_builtin(name: str) -> bool:
    """Whether ``name`` means something made here and not a path."""
    return name.startswith(PREFIX)


def prompt_rows(name: str) -> list[dict[str, Any]]:
    """The rows ``{"input", "label"}`` of a built-in prompt set. Raises KeyError for an unknown name."""
    return [
        {"input": f"{digit}>{count}>", "label": str(digit) * count}
        for digit in range(10)
        for count in range(1, PROMPTS[name] + 1)
    ]


def make_model(name: str, directory: Path, seed: int) -> None:
    """Write the checkpoint ``name``, random float32 weights drawn from ``seed``, into ``directory`` (made if absent).

    Raises KeyError for an unknown name.
    """
    write_model(MODELS[name], directory, seed)


def shape_of(name: str) -> dict[str, Any]:
    """``config.json`` of the model of that name."""
    return _model_config(MODELS[name])


def tensor_names(name: str) -> list[str]:
    """Of the weights of the model of that name."""
    return [*_weights(MODELS[name], 0)]


def write_model(arch: Architecture, directory: Path, seed: int) -> None:
    """Write a checkpoint of ``arch``, as :func:`make_model` does."""
    from safetensors.numpy import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(_weights(arch, seed), str(directory / "model.safetensors"), metadata={"format": "pt"})
    _write(directory / "tokenizer.json", _tokenizer(arch))
    _write(directory / "tokenizer_config.json", _tokenizer_config(arch))
    _write(directory / "generation_config.json", {"eos_token_id": EOS_ID, "pad_token_id": PAD_ID})
    # the last file: a directory with a config.json is complete
    _write(directory / "config.json", _model_config(arch))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _weights(arch: Architecture, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """HF-named tensors: matrices normal with ``init_std``, drawn in the order of the names below; norms one."""
    generator = np.random.Generator(np.random.PCG64(seed))

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float32]:
        return generator.standard_normal((rows, columns), dtype=np.float32) * np.float32(arch.init_std)

    def ones(size: int) -> npt.NDArray[np.float32]:
        return np.ones(size, np.float32)

    hidden, query, key = arch.hidden, arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    tensors = {"model.embed_tokens.weight": matrix(len(arch.vocab), hidden)}
    for layer in range(arch.layers):
        tensors |= {
            f"model.layers.{layer}.{part}.weight": tensor
            for part, tensor in (
                ("input_layernorm", ones(hidden)),
                ("self_attn.q_proj", matrix(query, hidden)),
                ("self_attn.k_proj", matrix(key, hidden)),
                ("self_attn.v_proj", matrix(key, hidden)),
                ("self_attn.o_proj", matrix(hidden, query)),
                ("self_attn.q_norm", ones(arch.head_dim)),
                ("self_attn.k_norm", ones(arch.head_dim)),
                ("post_attention_layernorm", ones(hidden)),
                ("mlp.gate_proj", matrix(arch.intermediate, hidden)),
                ("mlp.up_proj", matrix(arch.intermediate, hidden)),
                ("mlp.down_proj", matrix(hidden, arch.intermediate)),
            )
        }
    tensors["model.norm.weight"] = ones(hidden)
    return tensors


def _model_config(arch: Architecture) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": len(arch.vocab),
        "hidden_size": arch.hidden,
        "intermediate_size": arch.intermediate,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": arch.max_position,
        "initializer_range": arch.init_std,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": arch.layers,
        "layer_types": ["full_attention"] * arch.layers,
        # transformers 5 reads rope_parameters, everything older rope_theta
        "rope_parameters": {"rope_type": "default", "rope_theta": arch.rope_theta},
        "rope_theta": arch.rope_theta,
        "bos_token_id": None,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        "dtype": "float32",
    }


def _tokenizer(arch: Architecture) -> dict[str, Any]:
    """One token a character. Pad is an ordinary character, so that a response that holds it does not hide it."""
    unknown = "\ufffd" if "\ufffd" in arch.vocab else PAD
    eos = {"id": EOS_ID, "content": EOS, "special": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [eos | flags],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": r"[\s\S]"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {token: index for index, token in enumerate(arch.vocab)},
            "unk_token": unknown,
        },
    }


def _tokenizer_config(arch: Architecture) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": arch.max_position,
        "clean_up_tokenization_spaces": False,
        "chat_template": arch.chat_template,
    }
