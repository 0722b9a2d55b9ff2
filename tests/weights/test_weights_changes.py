"""What has changed between versions, and what is sent of it."""

from __future__ import annotations

from pathlib import Path

import torch

from miles_async.weights.buckets import make_buckets
from miles_async.weights.changes import Changes, same_bits, to_send
from miles_async.weights.snapshot import load_snapshot, write_snapshot

A, B, C = (torch.full((4, 4), value) for value in (1.0, 2.0, 3.0))


def test_between_two_versions_is_whatever_changed_on_the_way() -> None:
    changes = Changes()
    one, two, three, four = (
        changes.see(tensors)
        for tensors in (
            {"a": A, "b": B, "c": C},
            {"a": A, "b": A, "c": C},
            {"a": A, "b": B, "c": C},  # back, for who has the first
            {"a": A, "b": B, "c": A},
        )
    )
    assert set(changes.between(one, four) or ()) == {"b", "c"} == set(changes.between(two, four) or ())
    assert set(changes.between(three, four) or ()) == {"c"}
    assert changes.between(one, three) is None and changes.between(0, four) is None  # nobody has looked


def test_nothing_is_said_of_versions_of_other_tensors_and_something_always_carries_the_version() -> None:
    changes = Changes()
    one = changes.see({"a": A, "b": torch.zeros(2)})
    two = changes.see({"a": A, "b": torch.zeros(2)})
    assert list(changes.between(one, two) or ()) == ["b"]  # the smallest
    three = changes.see({"a": A, "b": torch.zeros(3)})
    assert changes.between(two, three) is None
    four = changes.see({"a": A, "b": torch.zeros(3, dtype=torch.bfloat16)})
    assert changes.between(three, four) is None


def test_every_bit_counts() -> None:
    zero, nan = torch.zeros(2), torch.full((2,), float("nan"))
    assert not same_bits(zero, -zero) and same_bits(nan, nan.clone())
    half = torch.zeros(3, dtype=torch.bfloat16)
    assert same_bits(half, half.clone()) and not same_bits(half, half + 1e-40)


def test_what_little_lies_between_is_sent_along_and_a_bucket_is_a_view(tmp_path: Path, digits_model: Path) -> None:
    layers = {
        f"layers.{i}.{name}": torch.rand(size) for i in range(3) for name, size in (("m", (40, 40)), ("n", (40,)))
    }
    path = write_snapshot(
        tmp_path, 1, 0, {"embed": torch.rand(40, 90), "head": torch.rand(40, 90), **layers}, str(digits_model)
    )
    tensors = load_snapshot(path)
    changed = {name for name in tensors if name.endswith("m")}
    sent = to_send(tensors, changed)
    assert set(sent) == changed | {"layers.0.n", "layers.1.n"}
    [bucket] = make_buckets(sent, 1 << 30)
    assert bucket.flat.untyped_storage().data_ptr() == tensors["embed"].untyped_storage().data_ptr()
    assert set(to_send(tensors, {"embed", "layers.0.m"})) == {"embed", "layers.0.m"}  # what lies between is large
