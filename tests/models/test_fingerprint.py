"""Two models have one fingerprint exactly where they are one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from miles_async.models.fingerprint import fingerprint
from miles_async.models.support import ModelError


def directory(path: Path, tensors: dict[str, np.ndarray], files: int = 1, **config: object) -> Path:
    path.mkdir()
    names = sorted(tensors)
    for number in range(files):
        save_file({name: tensors[name] for name in names[number::files]}, str(path / f"model-{number}.safetensors"))
    (path / "config.json").write_text(json.dumps({"model_type": "qwen3", **config}))
    return path


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"a": rng.normal(size=(64, 100)).astype(np.float32), "b": rng.normal(size=3).astype(np.float32)}


def test_neither_the_place_nor_the_number_of_files_nor_who_wrote_them_is_the_model(
    tensors: dict[str, np.ndarray], tmp_path: Path
) -> None:
    first = fingerprint(directory(tmp_path / "one", tensors, transformers_version="4", _name_or_path="x"))
    assert fingerprint(directory(tmp_path / "two", tensors, files=2, transformers_version="5")) == first


@pytest.mark.parametrize("place", [0, 3200, 6399])  # the first, one in the middle, the last of a
def test_a_number_that_has_changed_is_another_model(tensors: dict[str, np.ndarray], place: int, tmp_path: Path) -> None:
    first = fingerprint(directory(tmp_path / "one", tensors))
    tensors["a"].reshape(-1)[place] += 1e-4
    assert fingerprint(directory(tmp_path / "two", tensors)) != first


def test_so_is_another_name_type_shape_or_setting(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    others = [
        {"c": tensors["a"], "b": tensors["b"]},
        {"a": tensors["a"].reshape(100, 64), "b": tensors["b"]},
        {"a": tensors["a"].view(np.int32), "b": tensors["b"]},
        {"a": tensors["a"]},
    ]
    found = {fingerprint(directory(tmp_path / str(number), one)) for number, one in enumerate([tensors, *others])}
    found.add(fingerprint(directory(tmp_path / "other", tensors, rope_theta=100.0)))
    assert len(found) == 6


def test_a_file_that_is_cut_short_or_a_directory_without_a_model_is_one_line(
    digits_model: Path, tmp_path: Path
) -> None:
    assert fingerprint(digits_model) == fingerprint(directory_of(digits_model, tmp_path / "copy"))
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        fingerprint(tmp_path)
    (tmp_path / "copy" / "model-0.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ModelError, match="no safetensors file"):
        fingerprint(tmp_path / "copy")


def directory_of(model: Path, path: Path) -> Path:
    """The same model, in two files."""
    copy = directory(path, load_file(model / "model.safetensors"), files=2)
    (copy / "config.json").write_bytes((model / "config.json").read_bytes())
    return copy
