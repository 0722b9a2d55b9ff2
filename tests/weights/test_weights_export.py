"""The hook between the learner's tensors and the engines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

from miles_async.config.schema import ConfigError, Data, Model, RunConfig, Weights
from miles_async.weights.buckets import make_buckets, unflatten
from miles_async.weights.export import exported
from miles_async.weights.snapshot import load_snapshot, write_snapshot

Pairs = Iterable[tuple[str, torch.Tensor]]


def to_int8(tensors: Pairs) -> Iterator[tuple[str, torch.Tensor]]:
    """Matrices as int8 with one scale a row; the rest as it is."""
    for name, tensor in tensors:
        if tensor.ndim != 2:
            yield name, tensor
            continue
        scale = tensor.abs().amax(1, keepdim=True) / 127
        yield name, (tensor / scale).round().to(torch.int8)
        yield f"{name}_scale", scale


def twice(tensors: Pairs) -> Pairs:
    return [*tensors] * 2


def nothing(tensors: Pairs) -> Pairs:
    return []


def config(function: str | None) -> RunConfig:
    path = None if function is None else f"{__file__}:{function}"
    return RunConfig(model=Model(hf_checkpoint="x"), data=Data(prompt_data="y"), weights=Weights(export_function=path))


def test_what_the_function_gives_is_what_is_written_and_sent(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {"w": torch.randn(4, 8), "norm": torch.ones(8)}
    (tmp_path / "config.json").write_text("{}")
    assert exported(config(None), tensors) == tensors
    path = write_snapshot(tmp_path / "root", 1, 0, exported(config("to_int8"), tensors), str(tmp_path))
    sent = {name: t for bucket in make_buckets(load_snapshot(path), 64) for name, t in unflatten(bucket).items()}
    assert {name: t.dtype for name, t in sent.items()} == {
        "w": torch.int8,
        "w_scale": torch.float32,
        "norm": torch.float32,
    }
    assert torch.allclose(sent["w"] * sent["w_scale"], tensors["w"], atol=0.02)


@pytest.mark.parametrize("function", ["twice", "nothing"])
def test_a_function_that_gives_no_set_of_tensors_is_refused_by_its_key(function: str) -> None:
    gave = {"twice": r"\('w', tensor\(\[1\.\]\)\)", "nothing": r"\[\]"}[function]
    line = (
        rf"weights\.export_function, test_weights_export\.py:{function}: it gave {gave}, not pairs of .* each name once"
    )
    with pytest.raises(ConfigError, match=line):
        exported(config(function), {"w": torch.ones(1)})
