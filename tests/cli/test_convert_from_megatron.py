"""``miles-async convert --model``: a ``torch_dist`` checkpoint that another program's Megatron wrote becomes a Hugging Face
directory, from which a run can begin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from megatron_elsewhere import ITERATION, written_elsewhere
from safetensors.torch import load_file
from train_support import VOCAB, make_checkpoint
from typer.testing import CliRunner, Result

from miles_async.cli.app import app

PADDED = {"model.embed_tokens.weight", "lm_head.weight"}


def convert(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["convert", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``theirs``, what Megatron wrote of the model at ``padded``; ``model``, one of the same shape without the padding."""
    found = tmp_path_factory.mktemp("megatron")
    make_checkpoint(found / "padded", tied=False, vocab_size=VOCAB + 8)
    make_checkpoint(found / "model", tied=False)
    written_elsewhere(found / "theirs", found / "padded")
    return found


@pytest.mark.parametrize("source", ["theirs", f"theirs/iter_{ITERATION:07d}"])
def test_what_megatron_wrote_elsewhere_becomes_a_model_with_its_bits(root: Path, tmp_path: Path, source: str) -> None:
    result = convert(root / source, tmp_path / "out", "--model", root / "model", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["version"] == ITERATION
    found, expected = (load_file(path / "model.safetensors") for path in (tmp_path / "out", root / "padded"))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        wanted = expected[name][:VOCAB] if name in PADDED else expected[name]
        assert torch.equal(tensor, wanted), name


def test_what_is_no_such_checkpoint_or_one_of_another_model_is_one_line(root: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "wider", tied=False, intermediate_size=64)
    for source, model, said in (
        (root / "model", root / "model", "is no torch_dist checkpoint: it has no .metadata"),
        (root / "theirs", root / "theirs", "is no Hugging Face directory: it has no config.json"),
        (root / "theirs", tmp_path / "wider", "Global shape mismatch"),
    ):
        result = convert(source, tmp_path / "out", "--model", model)
        assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1, result.output
        assert said in result.stderr and not (tmp_path / "out").exists()
