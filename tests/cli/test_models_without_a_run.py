"""``miles-async convert`` and ``miles-async eval``: a run's checkpoint as a model, and a model measured, without the run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import train_support
from safetensors.torch import load_file
from train_support import make_groups
from typer.testing import CliRunner, Result

from miles_async.cli.app import app
from miles_async.cli.load import load
from miles_async.config.toml import dump
from miles_async.models.builtin import make_model
from miles_async.train.ranks import alone
from miles_async.train.trainer import MegatronTrainer

TOML = """
[model]
hf_checkpoint = "builtin:digits"
device = "cpu"
dtype = "bfloat16"
[data]
prompt_data = "builtin:repeat"
[staleness]
max_lag = 1000
[algorithm]
correction = "behaviour"
[learner]
lr = 1e-2
[rollout]
rollout_max_response_len = 6
[eval]
eval_interval = 10
eval_temperature = 0.0
[eval.datasets.some]
prompt_data = "builtin:repeat@[0:5]"
[eval.datasets.others]
prompt_data = "builtin:repeat@[5:9]"
n_samples_per_eval_prompt = 2
"""


def miles_async(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run's directory as it is left behind, with checkpoints of versions 1 and 2, and the weights of the last."""
    run_dir = tmp_path_factory.mktemp("run")
    monkeypatch = pytest.MonkeyPatch()
    (run_dir / "run.toml").write_text(TOML)
    config = load(run_dir / "run.toml")
    (run_dir / "config.toml").write_text(dump(config))
    model = run_dir / "inputs" / "model"
    make_model("builtin:digits", model, config.run.seed)
    monkeypatch.setattr(train_support, "VOCAB", 16)
    trainer = MegatronTrainer(config, str(model), alone(f"file://{run_dir}/meeting"))
    try:
        for seed in (0, 1):
            trainer.step(make_groups(4, 4, seed=seed))
            trainer.save_checkpoint(run_dir / "checkpoints", {})
        weights = trainer.export()
    finally:
        trainer.close()
        monkeypatch.undo()
    return run_dir, weights


def test_a_converted_checkpoint_has_the_bits_that_the_run_would_have_exported(
    trained: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    run_dir, weights = trained
    result = miles_async("convert", run_dir, tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["version"] == 2 and found["verified"] and found["checkpoint"].endswith("iter_0000002")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors.keys() == weights.keys() and all(torch.equal(tensors[name], weights[name]) for name in weights)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    older = miles_async("convert", run_dir / "checkpoints" / "iter_0000001", tmp_path / "older", "--json")
    assert json.loads(older.stdout)["version"] == 1


def test_what_cannot_be_converted_is_one_line_and_nothing_is_written(
    trained: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    run_dir, _ = trained

    def refused(said: str, *arguments: object) -> None:
        result = miles_async("convert", *arguments)
        assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1 and said in result.stderr

    refused("no checkpoint in", tmp_path, tmp_path / "out")
    (tmp_path / "mine").touch()
    refused("is there already", run_dir, tmp_path)
    shard = run_dir / "checkpoints" / "iter_0000001" / "__0_0.distcp"
    content = shard.read_bytes()
    shard.write_bytes(content[:-64] + bytes(64))
    refused("iter_0000001 is damaged: __0_0.distcp", run_dir / "checkpoints" / "iter_0000001", tmp_path / "out")
    shard.write_bytes(content)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_a_checkpoint_is_evaluated_without_a_run_as_the_directory_that_it_converts_to(
    trained: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    run_dir, _ = trained
    found: list[dict[str, Any]] = []
    assert miles_async("convert", run_dir, tmp_path / "out").exit_code == 0
    responses: list[list[str]] = []
    for model in (run_dir, tmp_path / "out", run_dir / "inputs" / "model"):
        result = miles_async("eval", run_dir / "run.toml", model, "--samples", tmp_path / "samples", "--json")
        assert result.exit_code == 0, result.output
        found.append(json.loads(result.stdout))
        said = (tmp_path / "samples" / f"others-{found[-1]['version']}.jsonl").read_text().splitlines()
        responses.append([json.loads(line)["response"] for line in said[-8:]])
    assert [document["version"] for document in found] == [2, 0, 0]
    assert found[0]["metrics"] == found[1]["metrics"]
    assert responses[0] == responses[1] != responses[2]  # and not those of the model that training began with
    assert {"some", "others", "others-pass@2", "some/response_len/mean"} <= found[0]["metrics"].keys()
    lines = [len((tmp_path / "samples" / f"{name}-2.jsonl").read_text().splitlines()) for name in ("some", "others")]
    assert lines == [5, 8]


def test_what_is_measured_without_a_run_needs_no_interval_of_one(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(TOML.replace("eval_interval = 10\n", ""))
    make_model("builtin:digits", tmp_path / "model", 1)
    result = miles_async("eval", tmp_path / "run.toml", tmp_path / "model", "--json")
    assert result.exit_code == 0, result.output
    assert "some" in json.loads(result.stdout)["metrics"]
    gone = miles_async(
        "eval", tmp_path / "run.toml", tmp_path / "model", "--set", "eval.datasets.some.prompt_data=gone"
    )
    assert gone.exit_code == 2 and "eval.datasets.some.prompt_data" in gone.stderr and "no such file" in gone.stderr


def test_a_conversion_says_its_line_and_no_warnings_of_what_it_imports(
    trained: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "miles_async", "convert", str(trained[0]), str(tmp_path / "out")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "" and len(done.stdout.splitlines()) == 1, done


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TOML.partition("[eval]")[0], "eval.datasets is empty"),
        (
            TOML.replace("[eval]", '[engine]\nkind = "external"\nurls = ["http://a"]\n[eval]\nurls = ["http://b"]'),
            'engine.kind = "external": miles-async eval starts an engine of its own',
        ),
        (TOML.replace('"cpu"', '"cuda"'), "torch sees no CUDA device"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "run.toml").write_text(text)
    make_model("builtin:digits", tmp_path / "model", 1)
    result = miles_async("eval", tmp_path / "run.toml", tmp_path / "model")
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1 and said in result.stderr


def test_a_place_for_samples_that_cannot_be_had_is_known_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.toml").write_text(TOML)
    (tmp_path / "taken").write_text("")
    make_model("builtin:digits", tmp_path / "model", 1)
    monkeypatch.setattr("miles_async.evaluation.standalone.evaluate", lambda *_: pytest.fail("it was measured"))
    result = miles_async("eval", tmp_path / "run.toml", tmp_path / "model", "--samples", tmp_path / "taken")
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1 and "taken" in result.stderr
