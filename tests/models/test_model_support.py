"""Which models are refused at launch, and that docs/models.md says what the code does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from train_support import SHAPE, make_config

from miles_async.config.schema import ConfigError, Engine
from miles_async.engines.embedded.checkpoint import ModelFilesError, read_config
from miles_async.models.support import ENGINE, LEARNER, ComputingPart, ModelError, check_models, problems
from miles_async.train.bridge import load_hf_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text()
BASE = {"model_type": "qwen3", **SHAPE}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 32}
TWO = {"num_experts_per_tok": 2}
GLM = {"model_type": "glm4_moe"}
DEEPSEEK = {"model_type": "deepseek_v3", "num_hidden_layers": 4, "num_key_value_heads": 4}
YARN = {"rope_type": "yarn", "factor": 4.0}

# a row of the page, and configurations that it speaks of
ROWS: dict[str, list[dict[str, Any]]] = {
    "`qwen3`": [{}],
    "`qwen2`": [{"model_type": "qwen2"}],
    "`llama`": [{"model_type": "llama"}],
    "`qwen3_moe`": [
        {"model_type": "qwen3_moe"},
        {"model_type": "qwen3_moe", "norm_topk_prob": True, "num_experts": 4, **TWO},
    ],
    "`mixtral`": [{"model_type": "mixtral"}, {"model_type": "mixtral", "num_local_experts": 4, "sliding_window": None}],
    "`glm4_moe`": [{**GLM}, {**GLM, "attention_bias": True}, {**GLM, "partial_rotary_factor": 0.5}],
    "`deepseek_v3`": [{**DEEPSEEK}],
    "any other": [{"model_type": name} for name in ("gpt2", "gemma2", "mistral", "phi3", "qwen2_moe", "gpt_oss")],
    "tied and untied": [{"tie_word_embeddings": tied, "head_dim": 20} for tied in (True, False)],
    "`rope_type` `default`": [{"rope_parameters": {"rope_type": "default"}}, {"rope_scaling": {"type": "default"}}],
    "`rope_type` `linear`": [{"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_parameters": LLAMA3}],
    "another `rope_type` of a `deepseek_v3`": [
        {**DEEPSEEK, "rope_parameters": {"rope_type": kind, "factor": 2.0}} for kind in ("linear", "llama3", "dynamic")
    ],
    "`rope_type` `yarn` of a": [{**DEEPSEEK, "rope_parameters": YARN}, {**DEEPSEEK, "rope_scaling": YARN}],
    "`truncate`": [{**DEEPSEEK, "rope_parameters": {**YARN, "truncate": False}}],
    "`rope_type` `yarn`, ": [{"rope_parameters": {"rope_type": kind}} for kind in ("yarn", "dynamic", "longrope")],
    "`partial_rotary_factor`": [{"partial_rotary_factor": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}],
    "`attention_bias`": [{"attention_bias": True}, {"model_type": "llama", "mlp_bias": True}],
    "`use_sliding_window`": [{"use_sliding_window": True}, {"layer_types": ["full_attention", "sliding_attention"]}],
    "`hidden_act`": [{"hidden_act": "gelu"}],
    "`quantization_config`": [{"quantization_config": {"quant_method": "fp8"}}],
    "`n_group`": [{**DEEPSEEK, "topk_group": 3}, {**DEEPSEEK, "n_group": 7}],
    "`norm_topk_prob`": [{**one, "norm_topk_prob": False} for one in (GLM, DEEPSEEK)],
    "`decoder_sparse_step`": [
        {"model_type": "qwen3_moe", **one} for one in ({"mlp_only_layers": [0]}, {"decoder_sparse_step": 2})
    ],
}


def rows() -> dict[str, tuple[bool, bool]]:
    """The rows of the page's tables: whether the learner can, whether the engine can."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:1] == "|"]
    return {cells[0]: (cells[-2] == "yes", cells[-1] == "yes") for cells in lines if cells[-1] in ("yes", "no")}


def test_the_page_says_of_each_model_what_the_code_does() -> None:
    found = rows()
    assert len(found) == len(ROWS)
    for start, configs in ROWS.items():
        (said,) = [said for name, said in found.items() if name.startswith(start)]
        for config in configs:
            can = tuple(not problems({**BASE, **config}, part) for part in (LEARNER, ENGINE))
            assert can == said, f"{start}: {config}"
    assert {name for name in LEARNER.models if f"| `{name}` |" in PAGE} == set(LEARNER.models)


def test_a_launch_refuses_what_the_learner_and_the_embedded_engine_refuse(tmp_path: Path) -> None:
    """One function for all three, asked where each of them begins."""

    def refused(by: Any, kind: type[Exception]) -> bool:
        try:
            by()
        except kind as error:
            assert "\n" not in str(error)
            return True
        return False

    for configs in ROWS.values():
        for config in configs:
            (tmp_path / "config.json").write_text(json.dumps({**BASE, **config}))
            run = make_config(tmp_path)
            external = msgspec.structs.replace(run, engine=Engine(kind="external", urls=["http://x"]))
            learner = refused(lambda: load_hf_config(str(tmp_path)), ModelError)
            engine = refused(lambda: read_config(tmp_path), ModelFilesError)
            assert refused(lambda e=external: check_models(e, None), ConfigError) == learner, config
            assert refused(lambda r=run: check_models(r, ENGINE), ConfigError) == (learner or engine), config
            mine = msgspec.structs.replace(run, model=msgspec.structs.replace(run.model, model_provider="a.b"))
            assert refused(lambda m=mine: check_models(m, ENGINE), ConfigError) == engine, config


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"model_type": "gpt2"},
            r"the learner .*model_type 'gpt2' \(supported: deepseek_v3, glm4_moe, llama, mixtral, qwen2, qwen3, qwen3_moe\)",
        ),
        ({**DEEPSEEK, "rms_norm_eps": 1e-5}, r"rms_norm_eps 1e-05 \(supported: 1e-06\)"),
        ({**DEEPSEEK, "num_hidden_layers": 3}, "first_k_dense_replace: no layer has experts"),
        ({"model_type": "mixtral", "sliding_window": 9}, r"sliding-window attention \(supported: full attention\)"),
        ({"model_type": "mixtral", "num_experts_per_tok": 1}, "num_experts_per_tok 1 whose weight is always 1"),
        ({"model_type": "qwen3_moe", "num_experts": 4}, "num_experts_per_tok 8 of 4 experts"),
        ({"rope_scaling": YARN}, r"rope_type 'yarn' \(supported: default, linear, llama3\)"),
        ({"vocab_size": None, "hidden_size": "x"}, "config.json has no vocab_size and no hidden_size"),
    ],
)
def test_the_refusal_names_the_key_the_model_and_what_is_supported(
    config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**BASE, **config}))
    with pytest.raises(ConfigError, match=said) as caught:
        check_models(make_config(tmp_path), ENGINE)
    assert str(caught.value).startswith("model.hf_checkpoint: ") and str(tmp_path) in str(caught.value)
    for section, key in (("algorithm", "ref_load"), ("critic", "critic_load")):
        with pytest.raises(ConfigError, match=rf"{section}\.{key}: .*{said}"):
            check_models(make_config("builtin:digits", **{section: {key: str(tmp_path)}}), ENGINE)


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, "\x00"])
def test_a_configuration_that_is_none_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json: not") as caught:
        check_models(make_config(tmp_path), ENGINE)
    assert "\n" not in str(caught.value)


def test_a_gpu_that_is_not_there_is_refused_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config("builtin:digits", model={"device": "cuda"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ConfigError, match=r'model\.device = "cuda", but torch sees no CUDA device; allowed here: "auto"'
    ):
        check_models(config, ENGINE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_models(config, ENGINE)


def test_judging_a_model_costs_no_torch() -> None:
    code = (
        "import sys; from miles_async.models.support import problems, LEARNER; problems({}, LEARNER); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unsupported_model_is_refused_by_a_dry_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**BASE, "model_type": "gemma2"}))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "run.toml").write_text(
        f'[model]\nhf_checkpoint = "{tmp_path}"\n[data]\nprompt_data = "builtin:repeat"\n'
        '[algorithm]\ncorrection = "behaviour"\n'
    )
    command = [sys.executable, "-m", "miles_async.cli.app", "launch", str(tmp_path / "run.toml"), "--dry-run"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1
    assert re.search("model.hf_checkpoint: the learner cannot compute .*model_type 'gemma2'", result.stderr)


def test_parts_are_named_as_the_page_names_them() -> None:
    def column(part: ComputingPart) -> str:
        return part.name.removeprefix("the ").split(" (")[0]

    heads = [line for line in PAGE.splitlines() if line.startswith("| of such a model")]
    assert heads == [f"| of such a model | {column(LEARNER)} (Megatron) | {column(ENGINE)} |"]
