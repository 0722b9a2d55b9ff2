"""Snapshots, buckets and the fleet's bookkeeping."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bus.messages import EngineDown, EngineUp, Snapshot
from miles_async.config.schema import Data, Model, RunConfig, Weights
from miles_async.train.hf_export import save_hf
from miles_async.weights.buckets import make_buckets, unflatten
from miles_async.weights.fleet import Fleet, next_wave
from miles_async.weights.safetensors_file import specs_of
from miles_async.weights.snapshot import (
    WEIGHTS_FILE,
    SnapshotError,
    choose_root,
    load_snapshot,
    prune,
    write_snapshot,
    write_tensors,
)


@pytest.fixture
def hf_dir(tmp_path: Path) -> str:
    source = tmp_path / "hf"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "qwen3"}')
    (source / "tokenizer.json").write_text("{}")
    (source / "model.safetensors.index.json").write_text("{}")
    return str(source)


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "odd": torch.randn(7).to(torch.bfloat16),
        "wide": torch.randn(33, 5),
        "scalar": torch.tensor(3.0),
        "strided": torch.randn(3, 5).t(),
        "empty": torch.zeros(0, 4),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "half": torch.randn(9).to(torch.bfloat16),
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_a_snapshot_holds_the_very_bits_in_a_file_that_safetensors_reads(tmp_path: Path, hf_dir: str) -> None:
    tensors = some_tensors()
    path = write_snapshot(tmp_path / "root", 3, 1, tensors, hf_dir)
    assert same(load_snapshot(path), tensors)
    assert same(safetensors.torch.load_file(path / "model.safetensors"), tensors)
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("source", "dtype", "said"),
    [
        ({"dtype": "bfloat16"}, torch.float32, {"dtype": "float32"}),
        ({"torch_dtype": "float32"}, torch.bfloat16, {"torch_dtype": "bfloat16"}),
        ({"dtype": None, "torch_dtype": "float16"}, torch.float32, {"dtype": "float32", "torch_dtype": "float32"}),
        ({}, torch.bfloat16, {"dtype": "bfloat16"}),
        ({"dtype": "float16"}, torch.uint8, {"dtype": "float16"}),
    ],
)
def test_the_configuration_of_what_is_exported_names_the_type_that_its_tensors_have(
    source: dict[str, str], dtype: torch.dtype, said: dict[str, str], tmp_path: Path, hf_dir: str
) -> None:
    """A snapshot, and a Hugging Face directory."""
    (Path(hf_dir) / "config.json").write_text(json.dumps({"model_type": "qwen3", **source}))
    tensors = {"wide": torch.zeros(30, 5, dtype=dtype), "norm": torch.zeros(3, dtype=torch.float64).to(dtype)}
    if dtype.is_floating_point:
        tensors["small"] = torch.zeros(3, dtype=torch.float16)  # not what most of the values are
    save_hf(specs_of(tensors.items()), tensors.items(), Path(hf_dir), tmp_path / "export")
    for path in (write_snapshot(tmp_path / "root", 1, 1, tensors, hf_dir), tmp_path / "export"):
        assert json.loads((path / "config.json").read_text()) == {"model_type": "qwen3", **said}
        assert safetensors.torch.load_file(path / "model.safetensors")["wide"].dtype == dtype


def test_buckets_of_a_snapshot_are_views_of_the_file_aligned_for_every_dtype(tmp_path: Path, hf_dir: str) -> None:
    tensors = load_snapshot(write_snapshot(tmp_path / "root", 1, 0, some_tensors(), hf_dir))
    storage = tensors["wide"].untyped_storage().data_ptr()
    for bucket_bytes in (1, 64, 700, 1 << 20):
        buckets = make_buckets(tensors, bucket_bytes)
        found: dict[str, torch.Tensor] = {}
        for bucket in buckets:
            assert bucket.n_bytes == 0 or bucket.flat.untyped_storage().data_ptr() == storage
            assert len(bucket.names) == 1 or bucket.n_bytes <= bucket_bytes
            found |= unflatten(bucket)  # raises where a tensor is not aligned to its dtype
        assert same(found, tensors)


def test_buckets_of_scattered_tensors_are_copied_bit_for_bit() -> None:
    tensors = some_tensors()
    found: dict[str, torch.Tensor] = {}
    for bucket in make_buckets(tensors, 256):
        found |= unflatten(bucket)
    assert same(found, tensors)
    with pytest.raises(ValueError, match="without any tensor"):
        make_buckets({}, 256)


def test_tensors_that_come_in_any_order_make_the_same_file(tmp_path: Path, hf_dir: str) -> None:
    tensors = some_tensors()
    whole = write_snapshot(tmp_path / "root", 1, 1, tensors, hf_dir)
    stream = reversed(tensors.items())
    streamed = write_tensors(tmp_path / "other", 1, 1, specs_of(tensors.items())[::-1], stream, hf_dir)
    assert (streamed / WEIGHTS_FILE).read_bytes() == (whole / WEIGHTS_FILE).read_bytes()


def test_tensors_that_were_not_announced_or_do_not_come_make_no_snapshot(tmp_path: Path, hf_dir: str) -> None:
    tensors = some_tensors()
    specs, pairs = specs_of(tensors.items()), list(tensors.items())
    name = pairs[0][0]
    wrong = {
        "did not come: 1 tensors are missing": pairs[1:],
        f"{name} was not announced, or not with": [*pairs, pairs[0]],
        "other was not announced": [*pairs, ("other", torch.zeros(2))],
        "or not with 12 bytes": [(name, torch.zeros(3)), *pairs[1:]],
    }
    for words, stream in wrong.items():
        with pytest.raises(SnapshotError, match=words):
            write_tensors(tmp_path / "root", 1, 0, specs, stream, hf_dir)
    assert list((tmp_path / "root").iterdir()) == []


def test_a_snapshot_that_fails_leaves_nothing_behind(tmp_path: Path, hf_dir: str) -> None:
    with pytest.raises(SnapshotError, match=r"no config\.json"):
        write_snapshot(tmp_path / "root", 1, 0, some_tensors(), str(tmp_path))
    with pytest.raises(SnapshotError, match="complex64"):
        write_snapshot(tmp_path / "root", 1, 0, {"c": torch.zeros(1, dtype=torch.complex64)}, hf_dir)
    assert list((tmp_path / "root").iterdir()) == []


def test_old_snapshots_go_and_a_loaded_one_stays_readable(tmp_path: Path, hf_dir: str) -> None:
    root = tmp_path / "root"
    loaded = load_snapshot(write_snapshot(root, 7, 0, some_tensors(), hf_dir))
    for version in (5, 6):  # a learner that went back to a checkpoint
        write_snapshot(root, version, 0, {"w": torch.full((2,), float(version))}, hf_dir)
    assert sorted(p.name for p in root.iterdir()) == ["i0000-v00000005", "i0000-v00000006"]
    assert same(loaded, some_tensors())
    again = write_snapshot(root, 6, 0, {"w": torch.zeros(2)}, hf_dir)
    assert torch.equal(load_snapshot(again)["w"], torch.zeros(2))
    prune(root, 1)
    assert [p.name for p in root.iterdir()] == ["i0000-v00000006"]


def test_a_broken_snapshot_is_one_clear_error(tmp_path: Path, hf_dir: str) -> None:
    with pytest.raises(SnapshotError, match="cannot read"):
        load_snapshot(tmp_path / "nowhere")
    path = write_snapshot(tmp_path / "root", 1, 0, some_tensors(), hf_dir)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(SnapshotError, match="cut short"):
        load_snapshot(path)
    file.write_bytes(b"\xff" * 64)
    with pytest.raises(SnapshotError):
        load_snapshot(path)


def test_snapshots_lie_where_the_configuration_says_or_on_disk_if_memory_is_too_small(tmp_path: Path) -> None:
    config = RunConfig(model=Model(hf_checkpoint="x"), data=Data(prompt_data="y"))
    assert choose_root(config, tmp_path, n_bytes=1 << 60) == tmp_path / "snapshots"
    chosen = RunConfig(model=config.model, data=config.data, weights=Weights(snapshot_dir=str(tmp_path / "here")))
    assert choose_root(chosen, tmp_path) == tmp_path / "here"


def up(engine: str, incarnation: int = 1, version: int = 0, url: str | None = None) -> EngineUp:
    return EngineUp(engine=engine, url=url or f"http://{engine}", incarnation=incarnation, version=version)


def snapshot(version: int, incarnation: int = 0) -> Snapshot:
    return Snapshot(version=version, incarnation=incarnation, path="")


def names(fleet: Fleet, waves: int = 2) -> list[str]:
    return [member.name for member in next_wave(fleet, waves)]


def test_waves_reach_everybody_once_and_never_take_all_serving_engines_at_once() -> None:
    fleet = Fleet()
    for name in ("a", "b", "c"):
        fleet.fold(up(name))
    assert names(fleet) == []  # nothing to send yet
    fleet.fold(snapshot(0))
    assert names(fleet) == ["a", "b", "c"]  # none of them serves yet
    for member in fleet.members.values():
        member.serve(snapshot(0))
    fleet.fold(snapshot(1))
    seen = []
    while wave := next_wave(fleet, 2):
        assert len(wave) < 3
        seen += [member.name for member in wave]
        for member in wave:
            member.serve(snapshot(1))
    assert sorted(seen) == ["a", "b", "c"]


def test_a_newer_snapshot_between_two_waves_goes_first_to_who_is_furthest_behind() -> None:
    fleet = Fleet()
    for name in ("a", "b"):
        fleet.fold(up(name))
        fleet.members[name].serve(snapshot(1))
    fleet.fold(snapshot(2))
    assert names(fleet) == ["a"]
    fleet.members["a"].serve(snapshot(2))
    fleet.fold(snapshot(3))
    assert names(fleet) == ["b"]
    fleet.members["b"].serve(snapshot(3))
    assert names(fleet) == ["a"]


def test_a_learner_that_came_back_at_a_lower_version_is_obeyed() -> None:
    fleet = Fleet()
    fleet.fold(up("a"))
    fleet.fold(snapshot(9, incarnation=1))
    fleet.members["a"].serve(snapshot(9, incarnation=1))
    fleet.fold(snapshot(5, incarnation=2))
    fleet.fold(snapshot(10, incarnation=1))  # late, of the learner that is gone
    assert fleet.newest == snapshot(5, incarnation=2)
    assert names(fleet) == ["a"]


def test_a_restarted_engine_starts_from_nothing_and_old_news_about_it_are_ignored() -> None:
    fleet = Fleet()
    fleet.fold(snapshot(4))
    fleet.fold(up("a", incarnation=1))
    fleet.members["a"].serve(snapshot(4))
    fleet.fold(up("a", incarnation=2, url="http://a2"))
    fleet.fold(EngineDown(engine="a", incarnation=1, reason="killed"))
    fleet.fold(up("a", incarnation=1))
    assert names(fleet) == ["a"] and fleet.members["a"].url == "http://a2" and fleet.members["a"].fresh
    fleet.fold(EngineDown(engine="a", incarnation=2, reason="killed"))
    assert names(fleet) == []


def test_a_port_given_to_another_engine_is_not_updated_under_the_old_name() -> None:
    fleet = Fleet()
    fleet.fold(snapshot(1))
    fleet.fold(up("a", url="http://x:1"))
    fleet.fold(up("b", url="http://x:1"))
    assert names(fleet) == ["b"]
