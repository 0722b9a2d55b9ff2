"""Weights of a running engine over HTTP: tokens tell the truth about them whatever becomes of an update."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import make_scheduler
from running_engine import LONG, Running
from safetensors.torch import load_file, save_file

from miles_async.engines.checksum import checksums, overall_checksum
from miles_async.engines.embedded.groups import TransferError, flattened_size, unflatten


async def test_an_update_without_a_pause_holds_back_those_that_come_later(engine: Running, other: Path) -> None:
    """Those under way finish under the old weights, those behind the update start under the new ones."""
    await engine.call("/pause_generation", {"mode": "in_place"})
    before = asyncio.create_task(engine.generate(sampling_params=LONG))
    await engine.until(num_waiting_reqs=1)
    await engine.call("/continue_generation")
    body = {"model_path": str(other), "weight_version": "1"}
    update = asyncio.create_task(engine.call("/update_weights_from_disk", body))
    behind: list[asyncio.Task[Any]] = []
    while not update.done():
        behind.append(asyncio.create_task(engine.generate(sampling_params={"max_new_tokens": 2})))
        await asyncio.wait({behind[-1], update}, return_when=asyncio.FIRST_COMPLETED)
    assert (await update)[0] == 200
    assert len((await before)["output_ids"]) == LONG["max_new_tokens"]
    for answer in (await before, *[await task for task in behind]):
        (span,) = answer["meta_info"]["weight_versions"]
        assert span["version"] == answer["meta_info"]["weight_version"]
    assert (await before)["meta_info"]["weight_version"] == "0"
    assert (await engine.generate())["meta_info"]["weight_version"] == "1"


async def test_a_refused_flush_is_a_failed_update_whose_tokens_still_tell_the_truth(
    engine: Running, other: Path
) -> None:
    """As SGLang: paused in place, the weights change, the answer is 400, /model_info keeps the old version."""
    running = asyncio.create_task(engine.generate(sampling_params=LONG))
    await engine.until(num_running_reqs=1)
    await engine.call("/pause_generation", {"mode": "in_place"})
    status, answer = await engine.call("/update_weights_from_disk", {"model_path": str(other), "weight_version": "1"})
    assert (status, answer["success"]) == (400, False)
    assert "cache was not flushed" in answer["message"]
    assert (await engine.call("/model_info", method="GET"))[1]["weight_version"] == "0"
    await engine.call("/continue_generation")
    meta = (await running)["meta_info"]
    assert [span["version"] for span in meta["weight_versions"]] == ["0", "1"]


async def test_weights_that_are_no_numbers_fail_their_requests_and_not_the_engine(
    engine: Running, checkpoint: Path, tmp_path: Path
) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], torch.nan)
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    save_file(tensors, tmp_path / "model.safetensors")
    await engine.call("/update_weights_from_disk", {"model_path": str(tmp_path), "weight_version": "1"})
    status, answer = await engine.call("/generate", {"input_ids": [[1], [2]]})
    assert (status, answer) == (500, {"error": {"message": "weights 1 give no finite probabilities"}})
    await engine.call("/update_weights_from_disk", {"model_path": str(checkpoint), "weight_version": "2"})
    assert (await engine.generate())["meta_info"]["weight_version"] == "2"


async def test_checksums_are_those_of_the_checkpoint_file(engine: Running, checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    expected = {name: hashlib.sha256(t.numpy().tobytes()).hexdigest()[:16] for name, t in tensors.items()}
    answer = (await engine.call("/weights_checker", {"action": "checksum"}))[1]
    assert answer["ranks"][0]["checksums"] == expected == checksums(tensors)
    assert answer["per_engine_checksum"] == overall_checksum(expected)


def test_a_bucket_comes_apart_as_it_was_put_together() -> None:
    tensors = [("a", torch.randn(3, 2)), ("b", torch.randn(5).bfloat16()), ("c", torch.arange(6, dtype=torch.int8))]
    specs = [(name, tensor.dtype, list(tensor.shape)) for name, tensor in tensors]
    flat = torch.cat([tensor.flatten().view(torch.uint8) for _, tensor in tensors])
    assert flattened_size(specs) == len(flat)
    assert all(torch.equal(got, sent) for (_, got), (_, sent) in zip(unflatten(flat, specs), tensors, strict=True))
    with pytest.raises(TransferError, match="a starts at byte 6, not a multiple of 4"):
        flattened_size([specs[2], specs[0]])


def test_memory_is_given_back_when_the_cache_is_flushed(checkpoint: Path) -> None:
    scheduler = make_scheduler(checkpoint)
    scheduler.cache.reserve(8, 100, 0)
    assert scheduler.flush()
    assert scheduler.cache.store.numel() == 0
