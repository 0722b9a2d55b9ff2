"""The engine computes what transformers computes, for every architecture it accepts, and accepts no other."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import CONTEXT, TOLERANCE, VOCAB, hf_logprobs, make_checkpoint, make_scheduler, request, run
from safetensors.torch import load_file, save_file

from miles_async.engines.embedded.checkpoint import ModelFilesError, read_config
from miles_async.engines.embedded.model import WeightError
from miles_async.engines.embedded.scheduler import Scheduler
from miles_async.engines.embedded.server import load_model
from miles_async.engines.embedded.text import TextCodec

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {"tie_word_embeddings": False}),
    "qwen3 tied": (
        "qwen3",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 99.0}},
    ),
    "qwen3 biased": ("qwen3", {"attention_bias": True, "num_key_value_heads": 4}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "llama": ("llama", {"num_key_value_heads": 1}),
    "llama biased, scaled": ("llama", {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}),
    "llama, linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "qwen3_moe": ("qwen3_moe", {"norm_topk_prob": True}),
    "qwen3_moe, weights as they are": ("qwen3_moe", {"norm_topk_prob": False, "num_experts_per_tok": 4}),
    "qwen3_moe, one expert": ("qwen3_moe", {"norm_topk_prob": False, "num_experts_per_tok": 1, "attention_bias": True}),
}


@pytest.mark.parametrize("name", MODELS)
def test_log_probs_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    kind, options = MODELS[name]
    make_checkpoint(tmp_path, kind, **options)
    rng = random.Random(1)
    prompts = [[rng.randrange(VOCAB) for _ in range(n)] for n in (1, 2, 9, 40, 41, 150)]
    scheduler = make_scheduler(tmp_path)
    done = run(
        scheduler, [request(p, max_new_tokens=30, temperature=0.8, sampling_seed=i) for i, p in enumerate(prompts)]
    )
    for one in done:
        assert one.logprobs == pytest.approx(hf_logprobs(tmp_path, one.item.prompt, one.output, 0.8), abs=TOLERANCE)


def test_log_probs_of_the_prompt_are_those_of_transformers(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    prompt = list(range(3, 40))
    whole, tail, none = run(
        make_scheduler(tmp_path),
        [request(prompt, max_new_tokens=1, temperature=0.5, logprob_start_len=start) for start in (0, 30, len(prompt))],
    )
    expected = hf_logprobs(tmp_path, prompt[:1], prompt[1:])
    assert whole.input_logprobs is not None and tail.input_logprobs is not None
    assert whole.input_logprobs[0] is tail.input_logprobs[0] is None
    assert whole.input_logprobs[1:] == pytest.approx(expected, abs=TOLERANCE)
    assert tail.input_logprobs[1:] == pytest.approx(expected[30:], abs=TOLERANCE)
    assert none.input_logprobs == []


def test_a_checkpoint_of_transformers_4_means_the_same(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 123.0})
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["torch_dtype"] = config.pop("dtype")
    new = read_config(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "rope_theta": rope["rope_theta"], "rope_scaling": None})
    )
    assert read_config(tmp_path) == new


def test_a_sharded_checkpoint_is_read_whole(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(whole)
    for part, some in enumerate((names[:5], names[5:])):
        save_file({name: whole[name] for name in some}, tmp_path / f"part-{part}.safetensors")
    index = {name: f"part-{int(i >= 5)}.safetensors" for i, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    model = load_model(str(tmp_path), read_config(tmp_path), torch.device("cpu"))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in model.named_tensors().items())
    assert model.named_tensors().keys() == whole.keys()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type 'yarn'"),
    ],
)
def test_a_model_it_would_get_wrong_is_refused(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    make_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelFilesError, match=complaint):
        read_config(tmp_path)


def test_no_checkpoint_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match=r"config\.json: cannot be read"):
        read_config(tmp_path)
    make_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ModelFilesError, match=r"model\.safetensors"):
        load_model(str(tmp_path), read_config(tmp_path), torch.device("cpu"))


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_refused_weights_change_nothing(tmp_path: Path, fault: str) -> None:
    make_checkpoint(tmp_path)
    model = load_model(str(tmp_path), read_config(tmp_path), torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in model.named_tensors().items()}
    bad = {name: tensor + 1 for name, tensor in before.items()}
    last = max(bad)
    if fault == "missing":
        del bad[last]
    elif fault == "unknown":
        bad["model.layers.9.mlp.up_proj.weight"] = torch.zeros(1)
    else:
        bad[last] = torch.zeros(3, 5)
    with pytest.raises(WeightError, match=r"missing|not a tensor|shape"):
        model.load(bad.items(), complete=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_tensors().items())


def test_positions_beyond_the_first_tables_are_right(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    prompt = [i % VOCAB for i in range(CONTEXT - 10)]
    (one,) = run(make_scheduler(tmp_path), [request(prompt, max_new_tokens=9)])
    assert one.logprobs == pytest.approx(hf_logprobs(tmp_path, prompt, one.output), abs=TOLERANCE)


def test_bfloat16_stays_close_to_float32(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, initializer_range=0.1)
    model = load_model(str(tmp_path), read_config(tmp_path), torch.device("cpu"), "bfloat16")
    scheduler = Scheduler(model, TextCodec(tmp_path), max_running=8, max_tokens=1 << 14)
    for one in run(scheduler, [request([i, 5, 9], max_new_tokens=20, sampling_seed=i) for i in range(8)]):
        assert one.logprobs == pytest.approx(hf_logprobs(tmp_path, one.item.prompt, one.output), abs=0.15)
