"""A Hugging Face directory is written tensor by tensor, in files of a bounded size, and is what transformers loads."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from train_support import assert_equal

from miles_async.train.hf_export import save_hf
from miles_async.weights.safetensors_file import specs_of
from miles_async.weights.sealed import SnapshotError


@pytest.mark.parametrize("shard_bytes", [1, 5000, 10**9])
def test_an_export_in_several_files_is_the_model_for_transformers(
    qwen3_and_model: tuple[Path, Any], tmp_path: Path, shard_bytes: int
) -> None:
    from transformers import AutoModelForCausalLM

    source, model = qwen3_and_model
    tensors = {name: 2 * parameter.detach() for name, parameter in model.named_parameters()}
    backwards = reversed(tensors.items())
    save_hf(specs_of(tensors.items()), backwards, source, tmp_path / "hf", shard_bytes=shard_bytes)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert_equal(dict(found.named_parameters()), tensors)

    sizes = {file.name: file.stat().st_size for file in (tmp_path / "hf").glob("*.safetensors")}
    index = tmp_path / "hf" / "model.safetensors.index.json"
    if shard_bytes == 10**9:
        assert list(sizes) == ["model.safetensors"] and not index.exists()
        return
    said = json.loads(index.read_text())
    assert said["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert set(said["weight_map"]) == set(tensors) and set(said["weight_map"].values()) == set(sizes)
    largest = max(tensor.nbytes for tensor in tensors.values())
    assert max(sizes.values()) <= max(shard_bytes, largest) + 4096  # its header
    assert len(sizes) == len(tensors) if shard_bytes == 1 else 1 < len(sizes) < len(tensors)


def test_nobody_holds_a_tensor_that_is_written(qwen3: Path, tmp_path: Path) -> None:
    specs = [(f"w{i}", torch.float32, (8, 8)) for i in range(6)]

    def one_by_one() -> Iterator[tuple[str, torch.Tensor]]:
        last = None
        for name, dtype, shape in specs:
            assert last is None or last() is None, f"{name} is asked for while the one before it is kept"
            tensor = torch.ones(shape, dtype=dtype)
            last = weakref.ref(tensor)
            yield name, tensor
            del tensor

    save_hf(specs, one_by_one(), qwen3, tmp_path / "hf", shard_bytes=600)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) == 3


@pytest.mark.parametrize(
    ("come", "said"),
    [(["a"], "b did not come"), (["a", "b", "c"], "c was not announced"), (["a", "a"], "a was not ann")],
)
def test_an_export_that_is_not_whole_takes_no_name(qwen3: Path, tmp_path: Path, come: list[str], said: str) -> None:
    specs = [(name, torch.float32, (2,)) for name in "ab"]
    with pytest.raises(SnapshotError, match=said):
        save_hf(specs, ((name, torch.ones(2)) for name in come), qwen3, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
