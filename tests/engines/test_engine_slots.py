"""A model takes the memory of a received bucket over: the same weights to the bit, and never memory that somebody else has."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import make_checkpoint, make_scheduler, request, run
from hypothesis import given
from hypothesis import strategies as st

from miles_async.engines.embedded.groups import KEPT_BUFFERS, Buffers, unflatten
from miles_async.engines.embedded.model import Decoder
from miles_async.engines.embedded.scheduler import Scheduler
from miles_async.weights.buckets import Bucket, dtype_name, make_buckets

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {"tie_word_embeddings": False}),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen2, biases": ("qwen2", {}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen3_moe": ("qwen3_moe", {}),
}


def scheduler_of(directory: Path, kind: str, seed: int, **more: Any) -> Scheduler:
    architecture, options = KINDS[kind]
    (directory / str(seed)).mkdir()
    return make_scheduler(make_checkpoint(directory / str(seed), architecture, seed=seed, **options, **more))


def model_of(directory: Path, kind: str, seed: int, **more: Any) -> Decoder:
    return scheduler_of(directory, kind, seed, **more).model


def received(bucket: Bucket) -> tuple[torch.Tensor, list[tuple[str, torch.Tensor]]]:
    """Memory of its own with a bucket's bytes, and the tensors in it."""
    flat = torch.empty(bucket.n_bytes, dtype=torch.uint8)
    flat.copy_(bucket.flat)
    specs = [
        (name, getattr(torch, dtype), list(shape))
        for name, dtype, shape in zip(bucket.names, bucket.dtypes, bucket.shapes, strict=True)
    ]
    return flat, unflatten(flat, specs)


def copies(model: Decoder) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.named_tensors().items()}


@pytest.mark.parametrize("bucket_bytes", [1 << 30, 20_000, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_model_adopts_is_what_it_would_have_copied(tmp_path: Path, kind: str, bucket_bytes: int) -> None:
    schedulers = [scheduler_of(tmp_path, kind, seed) for seed in (1, 2)]
    model, other = (scheduler.model for scheduler in schedulers)
    wanted = copies(other)
    for _ in range(2):  # the second time into memory that was adopted
        for bucket in make_buckets(wanted, bucket_bytes):
            _, tensors = received(bucket)
            model.load(tensors, complete=False, adopt=True)
    has = model.named_tensors()
    assert has.keys() == wanted.keys() and all(torch.equal(has[name], wanted[name]) for name in wanted)
    prompt = [random.Random(1).randrange(90) for _ in range(20)]
    asked = [run(scheduler, [request(prompt, max_new_tokens=12)]) for scheduler in schedulers]
    assert asked[0][0].output == asked[1][0].output and asked[0][0].logprobs == asked[1][0].logprobs


def test_whole_matrices_are_adopted_and_the_model_lets_go_of_what_it_had(tmp_path: Path) -> None:
    model = model_of(tmp_path, "qwen3", 1, head_dim=16)
    before = model.storages()
    [bucket] = make_buckets(copies(model), 1 << 30)
    flat, tensors = received(bucket)
    model.load(tensors, complete=True, adopt=True)
    kept = model.storages() & before
    repeated = sum(slot.repeats for slot in model._slots)
    assert flat.data_ptr() in model.storages() and len(kept) == repeated == len(model.layers)  # the q/k norms


@pytest.mark.parametrize("how", ["shifted", "order", "dtype", "part", "scattered"])
def test_what_does_not_lie_as_the_model_needs_it_is_copied(tmp_path: Path, how: str) -> None:
    model = model_of(tmp_path, "qwen3", 1)
    name = "model.layers.0.self_attn.{}_proj.weight"
    wanted = {name.format(part): torch.randn_like(model.named_tensors()[name.format(part)]) for part in "qkv"}
    size, padding = sum(tensor.nbytes for tensor in wanted.values()), 4 if how == "shifted" else 0
    flat, place = torch.empty(2 * size + padding, dtype=torch.uint8), padding
    sent: list[tuple[str, torch.Tensor]] = []
    for label, tensor in reversed(wanted.items()) if how == "order" else wanted.items():
        tensor = tensor.double() if how == "dtype" else tensor
        space = flat[place : place + tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
        sent.append((label, space.copy_(tensor)))
        place += tensor.nbytes
    if how == "part":
        sent.pop()
        wanted.popitem()
    if how == "scattered":
        sent[1] = (sent[1][0], sent[1][1].clone())
    model.load(sent, complete=False, adopt=True)
    assert flat.data_ptr() not in model.storages()
    assert all(torch.equal(model.named_tensors()[label], tensor) for label, tensor in wanted.items())


def test_parts_that_share_a_matrix_share_a_bucket_where_they_fit(tmp_path: Path) -> None:
    tensors = copies(model_of(tmp_path, "llama, biases", 1))
    largest = max(tensor.nbytes for tensor in tensors.values())
    for bucket_bytes in range(largest // 2, 8 * largest, largest // 2):
        buckets = make_buckets(tensors, bucket_bytes)
        assert sorted(name for bucket in buckets for name in bucket.names) == sorted(tensors)
        of = {name: number for number, bucket in enumerate(buckets) for name in bucket.names}
        for bucket in buckets:
            assert bucket.n_bytes <= bucket_bytes or len(bucket.names) == 1
        for layer in range(2):
            start = f"model.layers.{layer}."
            for parts in (("self_attn.q", "self_attn.k", "self_attn.v"), ("mlp.gate", "mlp.up")):
                names = [f"{start}{part}_proj.weight" for part in parts]
                if sum(tensors[name].nbytes for name in names) <= bucket_bytes:
                    assert len({of[name] for name in names}) == 1
    assert {dtype_name(tensor.dtype) for tensor in tensors.values()} == {"float32"}


@given(st.lists(st.tuples(st.sampled_from(["take", "adopt", "give back"]), st.integers(1, 400)), max_size=60))
def test_memory_is_lent_to_one_at_a_time_and_never_the_models(events: list[tuple[str, int]]) -> None:
    used: list[torch.Tensor] = []  # by the model, which holds three buckets
    lent: list[torch.Tensor] = []
    buffers = Buffers(lambda: {memory.untyped_storage().data_ptr() for memory in used})
    for event, size in events:
        if event == "take":
            memory = buffers.take(size)
            others = {other.data_ptr() for other in (*used, *lent)}
            assert memory.numel() == size and memory.data_ptr() not in others
            lent.append(memory)
            assert len(buffers._known) <= len(used) + len(lent) + KEPT_BUFFERS
        elif lent:
            memory = lent.pop(size % len(lent))
            if event == "adopt":
                used = [*used[-2:], memory]
            buffers.give_back(memory)


def test_updates_of_the_same_shape_take_turns_with_the_same_memory() -> None:
    used: list[torch.Tensor] = []
    buffers, seen = Buffers(lambda: {memory.data_ptr() for memory in used}), set[int]()
    for _ in range(20):
        memory = buffers.take(1 << 20)
        seen.add(memory.data_ptr())
        used = [memory]
        buffers.give_back(memory)
    assert len(seen) == 2
