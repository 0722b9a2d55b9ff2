"""A tiny Qwen3 checkpoint with a tokenizer of numbered words, and its log-probs according to Hugging Face transformers.

Promises: the same seed gives the same bytes; token ``i`` is the word ``w%03d`` and words are separated by one space, so
that a text and its token ids are each other's image.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3MoeConfig

VOCAB_SIZE = 512
CONTEXT_LENGTH = 4096  # tokens, prompt and response
EOS_ID, PAD_ID = 1, 2
LAYERS, EXPERTS, TOP_K = 2, 8, 2  # of a mixture


def word(token_id: int) -> str:
    return f"w{token_id:03d}"


def text_of(token_ids: Sequence[int]) -> str:
    return " ".join(word(i) for i in token_ids)


def make_checkpoint(directory: Path, seed: int, *, mixture: bool = False) -> Path:
    """Write a random float32 Qwen3, or Qwen3-MoE, (2 layers, hidden 64) and its tokenizer; returns ``directory``."""
    experts = {
        "num_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
    }
    config = (Qwen3MoeConfig if mixture else Qwen3Config)(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=False,
        eos_token_id=EOS_ID,
        bos_token_id=None,
        pad_token_id=PAD_ID,
        initializer_range=0.1,  # peaked distributions: a wrong model is far outside the tolerance
        dtype=torch.float32,
        **(experts if mixture else {}),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel({word(i): i for i in range(VOCAB_SIZE)}, unk_token=word(0)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]  # the stubs know no setter
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=word(0), eos_token=word(EOS_ID), pad_token=word(PAD_ID)
    ).save_pretrained(directory)
    return directory


@functools.cache
def _load(directory: Path) -> Any:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def log_probs(directory: Path, prompt: Sequence[int], response: Sequence[int], temperature: float = 1.0) -> list[float]:
    """Log-prob of each response token under the model of ``directory``, given the prompt and the tokens before it."""
    ids = torch.tensor([[*prompt, *response]])
    with torch.inference_mode():
        logits = _load(directory)(ids).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0].tolist()


def experts_chosen(directory: Path, tokens: Sequence[int]) -> list[list[list[int]]]:
    """The experts of each token but the last, by layer, in ascending order, that the mixture of ``directory`` goes to."""
    with torch.inference_mode():
        logits = _load(directory)(torch.tensor([list(tokens)]), output_router_logits=True).router_logits
    chosen = [layer.view(len(tokens), -1).softmax(-1).topk(TOP_K, -1).indices[:-1] for layer in logits]
    return torch.stack(chosen, 1).sort(-1).values.tolist()


def greedy_tokens(directory: Path, prompt: Sequence[int], length: int) -> list[int]:
    """The response of the model of ``directory`` at temperature 0."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(length):
            ids.append(int(_load(directory)(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@functools.cache
def prompt_that_ends(directory: Path) -> tuple[int, int]:
    """A prompt of two tokens to which the model of ``directory`` answers with the end token at temperature 0."""
    ordinary = [i for i in range(VOCAB_SIZE) if i not in (EOS_ID, PAD_ID)]
    for first in ordinary:
        with torch.inference_mode():
            logits = _load(directory)(torch.tensor([[first, second] for second in ordinary])).logits[:, -1]
        for second in (logits.argmax(-1) == EOS_ID).nonzero().flatten().tolist():
            return first, ordinary[second]
    raise AssertionError(f"no two tokens make the model of {directory} end")
