"""Megatron's HybridDeviceOptimizer on a CPU: tensors say that they are on CUDA, but for copies that were asked for on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from miles_async.train import cpu_shim

_ON_HOST = "_on_host"


class _AsIfCuda(TorchFunctionMode):
    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return not hasattr(args[0], _ON_HOST)
        if func is torch.Tensor.cpu:
            found = args[0].detach().clone()
        elif func is torch.Tensor.pin_memory or (func is torch.Tensor.to and args[1:2] == ("cuda",)):
            return args[0]
        else:
            found = func(*args, **kwargs)
            if not (torch.is_tensor(found) and args and hasattr(args[0], _ON_HOST)):
                return found
        setattr(found, _ON_HOST, True)  # what is made of a tensor on the CPU is there, too
        return found


@contextlib.contextmanager
def as_if_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside the ``with``, in this thread, parameters look as if they were on CUDA. TransformerEngine is not asked for."""
    cpu = torch.device("cpu")
    cpu_shim.install(cpu)
    from megatron.core.optimizer import optimizer_config

    for name in ("Stream", "Event"):
        monkeypatch.setattr(torch.cuda, name, cpu_shim._Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: cpu_shim._Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(optimizer_config, "is_te_min_version", lambda *_, **__: False)
    with cpu_shim.cuda_means_cpu(cpu), _AsIfCuda():
        yield
