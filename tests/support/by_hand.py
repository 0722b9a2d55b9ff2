"""Numbers that a test writes by hand, as tensors; and the two that are none."""

from __future__ import annotations

import torch

NAN, INF = float("nan"), float("inf")


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)
