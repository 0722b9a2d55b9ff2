"""Stands in for SGLang's compiled kernels on a CPU: they are published as CUDA wheels only.

SGLang calls ``torch.ops.sgl_kernel.*`` on a CPU only with Intel AMX *and* these kernels present (it looks for
``convert_weight_packed``, which is not here); otherwise every layer takes its ``forward_native``. What is left is names
imported at module level. Promises: the one function that a CPU server calls is real; any other name can be imported and
raises NotImplementedError when called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

__version__ = "0.0.0+cpu.shim"


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Write the KV slots of each request into its row of the page table, in place.

    Request ``i`` takes the next ``end_offset[i] - start_offset[i]`` entries of ``out_cache_loc`` (1-D int) into
    ``req_to_token[req_pool_indices[i], start_offset[i]:end_offset[i]]`` ([rows, pool_len] int).
    """
    first = 0
    for row, start, end in zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True):
        last = first + end - start
        req_to_token[row, start:end] = out_cache_loc[first:last].to(req_to_token.dtype)
        first = last


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} has no CPU version in this shim")

    absent.__name__ = name
    return absent


class _HostMemory:
    """``torch.cuda.cudart()`` of a CPU build: host memory needs no registration with a device.

    ``--enable-return-routed-experts`` registers its host buffer even on a CPU.
    """

    class cudaError:
        success = 0

    @staticmethod
    def cudaHostRegister(*_: Any) -> int:
        return 0

    @staticmethod
    def cudaHostUnregister(*_: Any) -> int:
        return 0

    @staticmethod
    def cudaGetErrorString(error: Any) -> str:
        return f"cudart error {error}"


def _cudart() -> type[_HostMemory]:
    return _HostMemory


if not torch.backends.cuda.is_built():
    torch.cuda.cudart = _cudart
