"""Tiny random Hugging Face checkpoints, their log-probs by transformers, and the engine's scheduler without HTTP."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

from miles_async.engines.embedded.checkpoint import read_config
from miles_async.engines.embedded.protocol import Item
from miles_async.engines.embedded.request import EngineRequest
from miles_async.engines.embedded.sampling_params import RequestLimits, SamplingParams, check_sampling
from miles_async.engines.embedded.scheduler import Scheduler
from miles_async.engines.embedded.server import load_model
from miles_async.engines.embedded.text import TextCodec

VOCAB = 96
CONTEXT = 512
TOLERANCE = 1e-4
CONFIGS = {"qwen3": Qwen3Config, "qwen2": Qwen2Config, "llama": LlamaConfig, "qwen3_moe": Qwen3MoeConfig}
EXPERTS, TOP_K = 6, 2


def make_checkpoint(
    directory: Path, kind: str = "qwen3", *, seed: int = 0, words: bool = False, **options: Any
) -> Path:
    """Write a random float32 model (2 layers, hidden 32) of ``kind``; ``words``: with a tokenizer, id 7 is "w7"."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.2,  # peaked distributions: a wrong model is far outside of the tolerance
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if kind != "qwen2":
        sizes["head_dim"] = 12  # not hidden_size / heads
    if kind == "qwen3_moe":
        sizes |= {"num_experts": EXPERTS, "num_experts_per_tok": TOP_K, "moe_intermediate_size": 24}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIGS[kind](**{**sizes, **options}), dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):  # ones and zeros would hide that they are left out
                torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.2)
    model.save_pretrained(directory)
    if words:
        tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
        tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@torch.inference_mode()
def hf_logprobs(directory: Path, prompt: list[int], output: list[int], temperature: float = 1.0) -> list[float]:
    """Log-prob of each output token by transformers, after temperature."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.tensor([prompt + output])
    scores = torch.log_softmax(model(ids).logits[0].float() / temperature, -1)
    return scores[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()


@torch.inference_mode()
def hf_routes(directory: Path, tokens: list[int], top_k: int = TOP_K) -> list[list[list[int]]]:
    """The experts that transformers' router takes for each token but the last, by layer, the likeliest first."""
    logits = _model_of(directory)(torch.tensor([tokens]), output_router_logits=True).router_logits
    chosen = [layer.view(len(tokens), -1).softmax(-1).topk(top_k, -1).indices[:-1] for layer in logits]
    return torch.stack(chosen, 1).tolist()


@functools.lru_cache(2)
def _model_of(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def make_scheduler(
    directory: Path, *, max_running: int = 64, max_tokens: int = 1 << 16, version: str = "0"
) -> Scheduler:
    """The engine's batcher on a checkpoint, on the CPU."""
    model = load_model(str(directory), read_config(directory), torch.device("cpu"))
    return Scheduler(model, TextCodec(directory), max_running=max_running, max_tokens=max_tokens, version=version)


def request(
    prompt: Iterable[int],
    *,
    rid: str = "r",
    eos: int | None = None,
    logprob_start_len: int = -1,
    routes_from: int = -1,
    **sampling: Any,
) -> EngineRequest:
    """A request with SGLang's sampling parameters; log-probs on."""
    checked = check_sampling(SamplingParams(**sampling), RequestLimits(VOCAB, CONTEXT, True))
    item = Item(rid, list(prompt), checked, True, logprob_start_len, routes_from=routes_from)
    stops = checked.stop_token_ids | (frozenset() if eos is None else {eos})
    return EngineRequest(
        item, checked.seed or 0, frozenset() if checked.ignore_eos else stops, stream=False, stop_window=9
    )


def run(scheduler: Scheduler, requests: list[EngineRequest]) -> list[EngineRequest]:
    """Submit all, step until they are finished."""
    scheduler.submit(requests)
    while any(one.finish is None for one in requests):
        assert scheduler.runnable
        scheduler.step()
    return requests
