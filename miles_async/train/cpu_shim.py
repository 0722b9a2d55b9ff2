"""What megatron-core 0.16 needs to run on a CPU: the few places where it names CUDA without asking.

Promises: nothing happens for a CUDA device; nothing on disk is changed. Three parts:

- :func:`install` points six functions of ``torch.cuda`` at the CPU, for the whole process: the learner's own process.
- :func:`install_mixtures` does the same for what a mixture of experts asks for besides.
- :func:`cuda_means_cpu` rewrites ``device="cuda"``, ``pin_memory``, ``Tensor.cuda()`` and ``Tensor.type()`` in the calling
  thread and only inside the ``with``: Megatron's model construction, optimizer and checkpoints need it, and passes through a
  model that is split.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from miles_async.train.light_imports import absent, imported_when_called, undecorated

# What Megatron loads besides itself, and gets by without; it is most of the time that it takes: DTensor (with sympy) and FSDP,
# its timers' TensorBoard, a compiler of extensions for CUDA. Checkpoints do without DTensor too (light_imports.py).
_ABSENT = (
    "torch.distributed._tensor",
    "torch.distributed.fsdp",
    "megatron.core.distributed.fsdp.src.megatron_fsdp",
    "torch.utils.tensorboard",
)
_WHEN_CALLED = ("megatron.core.transformer.fsdp_dtensor_checkpoint", "torch.utils.cpp_extension")


def install(device: torch.device) -> None:
    """Make megatron-core importable and usable on ``device``; without effect for CUDA, and the second time."""
    if device.type == "cuda" or getattr(torch.cuda, "_miles_async_on_cpu", False):
        return
    torch.cuda._miles_async_on_cpu = True  # pyright: ignore[reportAttributeAccessIssue]
    generator = torch.default_generator

    def set_state(state: torch.Tensor, device: int = -1, graph_safe: bool = False) -> None:
        generator.set_state(state)

    # Where Megatron asks for "the current device" it wants a place for a tensor, so a torch.device serves as well as
    # an index. (param_and_grad_buffer.py, rotary_pos_embedding.py, dist_checkpointing)
    torch.cuda.current_device = lambda: torch.device("cpu")  # pyright: ignore[reportAttributeAccessIssue]
    torch.cuda.synchronize = lambda device=None: None  # pyright: ignore[reportAttributeAccessIssue]
    # The RNG tracker (tensor_parallel/random.py) keeps named CUDA states; on a CPU they live in the default generator.
    torch.cuda.manual_seed = generator.manual_seed  # pyright: ignore[reportAttributeAccessIssue]
    torch.cuda.get_rng_state = lambda device="cuda": generator.get_state()
    torch.cuda.random.get_rng_state = torch.cuda.get_rng_state
    # Its ``jit_fuser`` is ``torch.compile``, which on a CPU would load the inductor (over a second) and call a C++ compiler at
    # the first step, for functions of a few microseconds.
    with undecorated(torch, "compile"), absent(*_ABSENT), imported_when_called(*_WHEN_CALLED):
        from megatron.core.tensor_parallel import random as megatron_random

    megatron_random._set_cuda_rng_state = set_state
    _without_dynamo()


class _Stream:
    """In the place of CUDA's streams and events. A class: others annotate with it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record_event(self, *_: Any) -> _Stream:
        return self

    def nothing(self, *_: Any) -> None:
        """There is nobody to wait for."""

    wait_stream = wait_event = record = wait = synchronize = nothing


def install_mixtures(device: torch.device) -> None:
    """Make Megatron's mixtures of experts usable on ``device`` without TransformerEngine; of its CUDA parts only on a CPU."""
    from megatron.core.transformer import multi_latent_attention
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    # where it is not, its names can still be imported, which this takes for having it
    multi_latent_attention.HAVE_TE = importlib.util.find_spec("transformer_engine") is not None
    if not hasattr(moe_utils, "te_general_gemm"):  # bound where TransformerEngine is, and asked for everywhere
        moe_utils.te_general_gemm = None  # pyright: ignore[reportAttributeAccessIssue]
    if device.type == "cuda":
        return

    def on_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    # what it takes to be numpy arrays (sizes of an all-to-all) it makes such of CUDA tensors only
    token_dispatcher.maybe_move_tensor_to_cpu = on_cpu
    torch.cuda.Stream = torch.cuda.Event = _Stream  # pyright: ignore[reportAttributeAccessIssue]
    torch.cuda.current_stream = lambda device=None: _Stream()  # pyright: ignore[reportAttributeAccessIssue]
    torch.cuda.stream = lambda stream: contextlib.nullcontext()  # pyright: ignore[reportAttributeAccessIssue]


def _without_dynamo() -> None:
    """An optimizer loads torch's compiler (up to a second) to be hidden from it, which here compiles nothing."""
    # torch/_compile.py, _disable_dynamo: what a function is replaced by is kept at the function
    for method in vars(torch.optim.Optimizer).values():
        hidden = getattr(method, "__wrapped__", None)
        if hidden is not None:
            hidden.__dynamo_disable = hidden
    # torch/optim/optimizer.py, _use_grad_for_differentiable: it breaks the graph where it turns gradients off
    step = torch.optim.Adam.step  # AdamW inherits it
    if getattr(step, "__wrapped__", None) is not None and not hasattr(step, "hooked"):
        torch.optim.Adam.step = torch.no_grad()(step.__wrapped__)  # pyright: ignore[reportFunctionMemberAccess]


class _CudaMeansCpu(TorchFunctionMode):
    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs:
            device = kwargs.get("device")
            if device is not None and str(device).startswith("cuda"):
                kwargs = {**kwargs, "device": "cpu"}
            if kwargs.get("pin_memory"):  # rope_utils.py
                kwargs = {**kwargs, "pin_memory": False}
        else:
            kwargs = {}
        if func is torch.Tensor.cuda:
            return args[0]
        result = func(*args, **kwargs)
        if func is torch.Tensor.type and isinstance(result, str):
            # optimizer.py and clip_grads.py sort parameters by comparing with "torch.cuda.FloatTensor" and its like
            return result if result.startswith("torch.cuda.") else result.replace("torch.", "torch.cuda.", 1)
        return result


def cuda_means_cpu(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Inside the ``with``, and in this thread only, CUDA means CPU. Without effect for a CUDA device."""
    return contextlib.nullcontext() if device.type == "cuda" else _CudaMeansCpu()
