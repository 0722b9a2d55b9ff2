"""The trained adapters as a directory in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``.

Promises: ``peft.PeftModel.from_pretrained`` loads it on the model that training began with, and vLLM and SGLang as a LoRA; it
appears under its name only when it is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from miles_async.config.lora import Lora
from miles_async.disk.fence import before_it_counts, mark


def save_adapters(tensors: Mapping[str, torch.Tensor], lora: Lora, base: Path, directory: Path) -> None:
    """Write ``tensors`` (PEFT names) to ``directory``, replacing what is there. base: the model's directory."""
    from safetensors.torch import save_file

    writing = directory.with_name(f".writing-{mark()}{directory.name}")
    if writing.exists():
        shutil.rmtree(writing)
    writing.mkdir(parents=True)
    (writing / "adapter_config.json").write_text(json.dumps(_config(tensors, lora, base), indent=2) + "\n")
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    save_file(copies, writing / "adapter_model.safetensors", metadata={"format": "pt"})
    before_it_counts()
    if directory.exists():
        shutil.rmtree(directory)
    writing.rename(directory)


def _config(tensors: Mapping[str, torch.Tensor], lora: Lora, base: Path) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),  # ... .q_proj.lora_A.weight
        "inference_mode": True,
    }
