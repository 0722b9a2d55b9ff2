"""Where the learner will compute, as far as a launch can tell: torch of the launch's machine says it of that machine only.

Promises: torch is imported only where its answer is needed.
"""

from __future__ import annotations

from miles_async.config.schema import ConfigError, RunConfig


def on_cuda(config: RunConfig) -> bool:
    """Whether the learner computes on GPUs."""
    if config.model.device == "cpu":
        return False
    if config.placement.kind == "ray":  # it sees what it asks for
        return config.placement.learner.num_gpus > 0
    import torch

    return torch.cuda.is_available()


def check_device(config: RunConfig) -> None:
    """Refuse ``model.device = "cuda"`` where there is none. Raises ConfigError."""
    if config.model.device == "cuda" and not on_cuda(config):
        if config.placement.kind == "ray":
            raise ConfigError(
                'model.device = "cuda" needs placement.learner.num_gpus: an actor of Ray sees only the GPUs that it asks for'
            )
        raise ConfigError('model.device = "cuda", but torch sees no CUDA device; allowed here: "auto", "cpu"')
