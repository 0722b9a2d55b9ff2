"""Whatever kernel a shape is computed with, it is the plain formula; and no prompt of a group is computed twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from engine_support import make_scheduler, request, run

from miles_async.engines.embedded.kernels import (
    ONEDNN_NUMBERS,
    ONEDNN_ROWS,
    add_linear,
    attend,
    linear,
    rms_norm,
    rotate,
    whole_rows,
)

EPS = torch.tensor(1e-6)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("plain", [True, False])
def test_a_norm_is_the_norm(plain: bool) -> None:
    x, weight = torch.randn(7, 3, 16), torch.randn(3, 16)
    close(rms_norm(x, weight, EPS, plain=plain), F.rms_norm(x, (16,), None, 1e-6) * weight)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 23, 24, 40, 77, 300])
def test_a_product_is_the_product_on_both_sides_of_the_threshold(rows: int, bias: bool) -> None:
    outs = ONEDNN_NUMBERS // 128
    x, weight, base = torch.randn(rows, 128), torch.randn(outs, 128), torch.randn(rows, outs)
    b = torch.randn(outs) if bias else None
    expected = (x.double() @ weight.double().T + (0 if b is None else b.double())).float()
    with torch.inference_mode():
        for plain in (True, False):
            close(linear(x, weight, b, plain=plain), expected)
            close(add_linear(base.clone(), x, weight, b, plain=plain), base + expected)


def test_however_many_rows_come_few_programs_are_made_for_them() -> None:
    sizes = {whole_rows(rows) for rows in range(ONEDNN_ROWS, 16385)}
    assert len(sizes) < 50
    assert all(rows <= whole_rows(rows) < rows * 1.25 + 8 for rows in range(ONEDNN_ROWS, 16385))


@pytest.mark.parametrize("plain", [True, False])
def test_attention_sees_what_the_mask_leaves_open(plain: bool) -> None:
    n, kv_heads, group, length, size = 5, 2, 3, 16, 8
    q, keys, values = (
        torch.randn(n, 6, size),
        torch.randn(n, kv_heads, length, size),
        torch.randn(n, kv_heads, length, size),
    )
    position = torch.tensor([0, 3, 15, 8, 1])
    later = torch.arange(length) > position[:, None]
    mask = torch.where(later, float("-inf"), 0.0).repeat_interleave(kv_heads, 0)[:, None]
    found = attend(q, keys.flatten(0, 1), values.flatten(0, 1), mask, 0.5, plain=plain)
    for row in range(n):
        at = int(position[row]) + 1
        k, v = (t[row, :, :at].repeat_interleave(group, 0) for t in (keys, values))
        expected = torch.softmax(torch.einsum("hd,hld->hl", q[row], k) * 0.5, -1)
        close(found[row].view(6, size), torch.einsum("hl,hld->hd", expected, v))


def test_a_rotation_may_take_the_place_of_what_it_rotates() -> None:
    heads, angle = torch.randn(4, 6, 8), torch.randn(4, 1, 4)
    cos, sin = angle.cos().repeat(1, 1, 2), torch.cat((-angle.sin(), angle.sin()), -1)
    first, second = heads[:, :5, :4].clone(), heads[:, :5, 4:].clone()
    with torch.inference_mode():
        rotate(heads[:, :5], cos, sin, heads[:, :5])
    close(heads[:, :5, :4], first * angle.cos() - second * angle.sin())
    close(heads[:, :5, 4:], second * angle.cos() + first * angle.sin())


def test_the_prompt_of_a_group_is_computed_once(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = make_scheduler(checkpoint)
    sizes: list[int] = []
    forward = scheduler.model.forward
    monkeypatch.setattr(scheduler.model, "forward", lambda ids, *rest: (sizes.append(len(ids)), forward(ids, *rest))[1])
    run(scheduler, [request([5, 6, 7, 8], max_new_tokens=2, sampling_seed=seed) for seed in range(8)])
    assert sizes == [8 + 3, 8]  # one pass: the newest token of each, and what all of them share
