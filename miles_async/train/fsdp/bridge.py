"""Hugging Face directory <-> transformers' model in float32.

Promises: the model has every weight of its directory and no other; what transformers would leave at random, or calls otherwise
than the checkpoint does, is refused with one line; an export has the checkpoint's names, and before training its bits.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.utils import logging

from miles_async.models.any_causal import ANY_CAUSAL
from miles_async.models.support import ModelError, check_model
from miles_async.train.fsdp.lora import is_adapter, merged, parts, peft_name, whole
from miles_async.train.value_head import HEAD, ValueHead, value_head


class FsdpBridge:
    """One model of one checkpoint. Raises ModelError."""

    def __init__(self, path: str, dtype: torch.dtype, *, rank: int, recompute: bool = False) -> None:
        check_model(path, ANY_CAUSAL)
        self.path, self._dtype, self._rank, self._recompute = path, dtype, rank, recompute
        self.hf_config: Any = AutoConfig.from_pretrained(path, local_files_only=True)

    def model(self) -> Any:
        """The causal language model with the checkpoint's weights, on the CPU, in float32, without dropout."""
        logging.disable_progress_bar()
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self.path, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            model, found = loaded
        except (OSError, ValueError, RuntimeError) as error:
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(f"the learner cannot load {self.path}: {line}") from error
        self._check_names(model, [name for name in found["unexpected_keys"] if not name.startswith(HEAD)])
        embeddings = model.get_input_embeddings()
        embeddings.padding_idx = None  # it would get no gradient, even where it is an ordinary token
        if self._recompute:
            for layer in self.layers(model):
                layer.forward = functools.partial(
                    checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
                )
        return model.eval()

    def _check_names(self, model: Any, unexpected: Sequence[str]) -> None:
        there = {name for file in sorted(Path(self.path).glob("*.safetensors")) for name in _names(file)}
        if odd := sorted({name for name, _ in model.named_parameters()} - there):
            raise ModelError(
                f"the learner cannot train {self.path}: its files have no {odd[0]} ({len(odd)} such), which transformers' "
                f"{type(model).__name__} has: engines would get weights under names that they do not know"
            )
        if held := sorted({name for name, _ in model.named_buffers()} & there):
            raise ModelError(
                f"the learner cannot train {self.path}: its {held[0]} ({len(held)} such) is no parameter of transformers' "
                f"{type(model).__name__}, so that no export would have it"
            )
        if unexpected:
            raise ModelError(
                f"the learner cannot train {self.path}: {unexpected[0]} ({len(unexpected)} such) is no part of transformers' "
                f"{type(model).__name__}, so that no export would have it"
            )

    def layers(self, model: Any) -> list[Any]:
        """Those of its parts that transformers says belong together."""
        return [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]

    def critic(self) -> ValueModel:
        """The model with a value head, that of its directory where there is one."""
        head = ValueHead(self.hf_config.hidden_size, torch.float32, torch.device("cpu"))
        if (known := value_head(Path(self.path))) is not None:
            head.load_state_dict(known)
        return ValueModel(self.model(), head)

    def all_tensors(self, modules: Sequence[torch.nn.Module]) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and value of each tensor of the Hugging Face checkpoint, in the model's type, on rank 0, and on its device;
        nothing on the others. One tensor is whole at a time. Collective."""
        with torch.no_grad():
            for name, parameter, adapted in parts(modules[0]):
                if adapted is None:
                    tensor = whole(parameter.detach().to(self._dtype))
                else:
                    tensor = merged(whole(parameter.detach()), adapted).to(self._dtype)
                if self._rank == 0:
                    yield name, tensor

    def all_adapters(self, modules: Sequence[torch.nn.Module]) -> Iterator[tuple[str, torch.Tensor]]:
        """As :meth:`all_tensors`, of what fsdp/lora.py put into the model, under PEFT's names."""
        with torch.no_grad():
            for name, parameter in modules[0].named_parameters():
                if is_adapter(name):
                    tensor = whole(parameter.detach().to(self._dtype))
                    if self._rank == 0:
                        yield peft_name(name), tensor


class ValueModel(torch.nn.Module):
    """The body of a causal language model under a value head, its parts named as in transformers' token classifiers."""

    def __init__(self, causal: Any, head: ValueHead) -> None:
        super().__init__()
        self.body = causal.base_model_prefix
        self.add_module(self.body, causal.base_model)
        self.add_module(HEAD.rstrip("."), head)
        self._no_split_modules = causal._no_split_modules

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.get_submodule(HEAD.rstrip("."))

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> TokenClassifierOutput:
        """[rows, columns] token ids to values, ``logits``, [..., 1] float32."""
        hidden = self.get_submodule(self.body)(input_ids=input_ids, use_cache=use_cache).last_hidden_state
        values: Any = self.get_output_embeddings()(hidden)[0]
        return TokenClassifierOutput(logits=values)


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as found:
        return list(found.keys())
