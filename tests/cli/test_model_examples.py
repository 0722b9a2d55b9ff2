"""The examples of real models are what a launch takes, of models of these shapes; that needs no weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT
from typer.testing import CliRunner

from miles_async.cli.app import app
from miles_async.cli.load import load
from miles_async.models.builtin import make_model
from miles_async.recipes.sizing import Machine, needs, packed

QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": None,
    "attention_bias": False,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}


def shape(hidden: int, intermediate: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    return {**QWEN3, **sizes, "num_attention_heads": heads, **more}


MIXTURE = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True}
MIXTURE |= {"model_type": "qwen3_moe", "decoder_sparse_step": 1, "mlp_only_layers": [], "num_key_value_heads": 4}
# config.json of each, and on how many machines of eight GPUs the example runs
SHAPES = {
    "qwen3-0.6b": (shape(1024, 3072, 28, 16), 1),
    "qwen3-4b": (shape(2560, 9728, 36, 32), 1),
    "qwen3-30b-a3b": (shape(2048, 6144, 48, 32, **MIXTURE, tie_word_embeddings=False), 3),
}
HERE = ["--set", "model.parity_check=false"]  # there are no weights to compare


def test_every_example_of_a_real_model_is_tried() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("qwen3-*.toml")} == {*SHAPES}


@pytest.mark.parametrize("name", SHAPES)
def test_a_dry_run_takes_the_example(name: str, tmp_path: Path) -> None:
    written, machines = SHAPES[name]
    file = Path(shutil.copy(ROOT / "examples" / f"{name}.toml", tmp_path))
    config = load(file, check=False)
    model = Path(config.model.hf_checkpoint)
    make_model("builtin:words", model, 1)  # its tokenizer, and the name of a file of weights
    (model / "config.json").write_text(json.dumps(written))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "math.jsonl").write_text('{"input": "What is 7 + 5?", "label": "12"}\n')

    here = HERE if config.placement.kind == "ray" else [*HERE, "--set", "model.device=auto"]
    asked = ["launch", str(file), "--run-dir", str(tmp_path / "run"), "--dry-run", "--json", *here]
    done = CliRunner().invoke(app, asked)

    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["prompts"]["data.prompt_data"]["read"] == 1
    assert len(packed(needs(config), Machine(8, None))) == machines
