"""The output layer of a critic: one number a token, the value of what lies before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

HEAD = "score."  # of its tensors' names, which are those of a token classifier in transformers


class ValueHead(torch.nn.Linear):
    """Stands in the place of a model's output layer. It starts at 0, so the first advantages are the returns.

    Computes in float32. Its weights are of the model's dtype (the optimizer keeps float32 ones): Megatron's bfloat16
    optimizer does not store parameters of two kinds.
    """

    def __init__(self, hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(hidden_size, 1, dtype=dtype, device=device)
        with torch.no_grad():
            self.weight.zero_()
            self.bias.zero_()

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None]:
        """[..., hidden] of any float dtype to [..., 1] float32; called as Megatron calls an output layer."""
        return torch.nn.functional.linear(input.float(), self.weight.float(), self.bias.float()), None


def value_head(directory: Path) -> dict[str, torch.Tensor] | None:
    """The head that ``Critic.save_hf`` wrote to a directory, "weight" and "bias"; None for a model without one."""
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(HEAD)]  # noqa: SIM118 (it is no dict)
            found |= {name.removeprefix(HEAD): file.get_tensor(name) for name in names}
    return found or None
