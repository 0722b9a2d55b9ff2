"""What trains a learner's weights, as ``actors/learner.py`` sees it. A new one is a class below ``LearnerBackend`` in a file of
its own, and a line in the table below.

Promises: importing this file costs no torch; a backend of the user's that cannot be made is a HookFailed that names
``learner.train_backend``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bus.messages import Group
from miles_async.config.effect import Rule, rules_of
from miles_async.config.schema import ConfigError, RunConfig
from miles_async.hooks.calls import refused
from miles_async.hooks.choice import Choice
from miles_async.models.any_causal import ANY_CAUSAL
from miles_async.models.support import LEARNER, ModelJudge
from miles_async.train import megatron_rules
from miles_async.train.checkpoint import CheckpointError
from miles_async.train.checkpoint_choice import CheckpointChoice
from miles_async.train.fsdp import rules as fsdp_rules
from miles_async.train.ranks import Ranks

if TYPE_CHECKING:
    import numpy as np
    import torch

    from miles_async.weights.safetensors_file import Spec

METHODS = (
    "step",
    "export",
    "save_hf",
    "save_critic",
    "save_checkpoint",
    "choose_checkpoint",
    "load_checkpoint",
    "close",
)


class LearnerBackend:
    """The weights of one learner process, and what is done with them.

    model_path: a Hugging Face directory. All methods are collective over ranks,
    in the same order; any thread may call them, one at a time. ``version``: the number of batches behind the weights.
    """

    version: int = 0

    def __init__(self, config: RunConfig, model_path: str, ranks: Ranks) -> None:
        """Build and load the weights. Raises train.distributed.RanksSilent if the other ranks do not come."""
        raise NotImplementedError

    HOLDS: bool = False  # whether ``step`` takes ``ticks``, as staleness.policy = "elastic" needs

    def step(
        self,
        groups: Sequence[Group],
        *,
        max_lag: int | None = None,
        sizes: Sequence[int] | None = None,
        ticks: bool = True,
    ) -> dict[str, float]:
        """Train one batch, of which ``groups`` are this replica's, and be of the next version. ticks: false where the weights
        are held, and with them the version: the next batch's step has the mean of both gradients. (It is given only then.)

        max_lag: versions that a token may be behind the weights; None: staleness.max_lag. sizes: how many of the groups are of
        each optimizer step of a pass; None: equally many. Returns metrics over all ranks, ``raw_reward`` among them. Raises,
        with the weights unchanged, what actors/learner_share.py makes of it: train.intake.LagExceeded,
        train.checked_batch.UnusableGroups and train.batch.BatchRefused.
        """
        raise NotImplementedError

    def token_log_probs(self) -> np.ndarray | None:
        """With record.learner_log_probs, right after :meth:`step`: [N] float32, the learner's own log-prob of each response
        token of the groups that it was given, in their order, as the pass that trained it first had it; nan where none did.
        None: there is nothing, or another process of this replica has it. Not collective."""
        return None

    def export(self) -> Mapping[str, torch.Tensor]:
        """Hugging Face name to a copy on the CPU that later steps do not change. Empty on every rank but 0."""
        raise NotImplementedError

    def stream(self) -> tuple[Sequence[Spec], Iterable[tuple[str, torch.Tensor]]]:
        """Of what :meth:`export` gives: name, dtype and shape of all tensors, and then one after the other; each may be a view
        of the weights, and is read before the next is asked for. Nothing on every rank but 0, which go through it too."""
        from miles_async.weights.safetensors_file import specs_of

        tensors = self.export().items()
        return specs_of(tensors), tensors

    def save_hf(self, directory: Path) -> None:
        """The weights as a directory that transformers loads."""
        raise NotImplementedError

    def save_adapters(self, directory: Path) -> None:
        """The adapters of learner.lora_rank in PEFT's format; nothing where there are none."""

    def save_critic(self, directory: Path) -> None:
        """The critic as a directory that critic.critic_load takes; nothing where there is none."""
        raise NotImplementedError

    def save_checkpoint(self, directory: Path, extra: dict[str, Any]) -> Path:
        """Add a checkpoint of this version below ``directory``, durable when this returns its path. extra: msgpack-able."""
        raise NotImplementedError

    def begin_checkpoint(self, directory: Path, extra: dict[str, Any]) -> Callable[[], Path]:
        """The part of :meth:`save_checkpoint` that the next step has to wait for, a copy; with checkpoint.async_save.

        Returns the rest, which another thread does while this one trains on. It is called once, on all ranks, before the next
        one is begun, and is collective without meeting the collectives of other methods.
        """
        raise NotImplementedError

    def choose_checkpoint(self, directory: Path, forgotten: int) -> CheckpointChoice:
        """The newest sound checkpoint below ``directory``, of step ``forgotten`` or later; the same on all ranks."""
        raise NotImplementedError

    def load_checkpoint(self, directory: Path, *, verified: bool = False) -> dict[str, Any]:
        """Go on from that checkpoint, bit for bit; returns its ``extra``."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave the process groups."""
        raise NotImplementedError

    @classmethod
    def checkpoint_weights(cls, config: RunConfig, model: Path, checkpoint: Path) -> dict[str, torch.Tensor]:
        """What :meth:`export` would give of a verified checkpoint, in a process that trains nothing. model: the directory that
        training began with. Raises CheckpointError, ModelError."""
        raise CheckpointError(f"{checkpoint}: {cls.__module__}.{cls.__qualname__} cannot convert its checkpoints")

    @classmethod
    def checkpoint_adapters(cls, config: RunConfig, model: Path, checkpoint: Path) -> dict[str, torch.Tensor]:
        """The same of :meth:`save_adapters`: PEFT's name to tensor."""
        raise CheckpointError(f"{checkpoint}: {cls.__module__}.{cls.__qualname__} has no adapters")


@dataclass(frozen=True)
class BackendEntry:
    """What is known of a backend of ours without importing it, which costs torch. looks_at: keys that not every one of them
    looks at. computes: which models. check: refuses what it cannot do, with a ConfigError. reimplements: its model is another
    implementation than transformers'."""

    path: str
    looks_at: tuple[str, ...]
    computes: ModelJudge
    check: Callable[[RunConfig], None]
    reimplements: bool


_LAYOUT = (
    "tensor_parallel",
    "pipeline_parallel",
    "virtual_pipeline",
    "context_parallel",
    "expert_parallel",
    "expert_tensor_parallel",
)
_MEGATRON = (
    *(f"learner.{name}_size" for name in _LAYOUT),
    *(f"learner.{name}" for name in ("sequence_parallel", "qkv_format", "use_distributed_optimizer", "megatron_args")),
    *(f"learner.recompute_{name}" for name in ("method", "num_layers", "modules")),
    *(f"learner.moe_{name}" for name in ("aux_loss_coeff", "z_loss_coeff", "router_bias_update_rate")),
    "learner.freeze_moe_router",
    "learner.fp32_parameters",
    *(f"learner.optimizer_{name}" for name in ("cpu_offload", "offload_fraction")),
    "rollout.routing_replay",
    "learner.log_probs_chunk_size",
    "learner.optimizer",
    "model.model_provider",
)
ENTRIES = {
    "megatron": BackendEntry(
        "miles_async.train.trainer.MegatronTrainer",
        looks_at=_MEGATRON,
        computes=LEARNER,
        check=megatron_rules.check,
        reimplements=True,
    ),
    "fsdp": BackendEntry(
        "miles_async.train.fsdp_trainer.FsdpTrainer",
        looks_at=(),
        computes=ANY_CAUSAL,
        check=fsdp_rules.check,
        reimplements=False,
    ),
}
BACKENDS = Choice(
    "learner.train_backend",
    LearnerBackend,
    ("config", "model_path", "ranks"),
    {name: entry.path for name, entry in ENTRIES.items()},
    needs=("__init__", *METHODS),
)
COMPARED = {name for name, entry in ENTRIES.items() if entry.reimplements}


def check(config: RunConfig) -> None:
    """Refuse a name that leads nowhere, and what the backend cannot do. Ours are not imported: they cost torch. Raises
    HookError, ConfigError."""
    name = config.learner.train_backend
    if config.staleness.policy == "elastic" and not holds(config):
        raise ConfigError(f'staleness.policy = "elastic" needs HOLDS = True of {name}, learner.train_backend')
    if (entry := ENTRIES.get(name)) is not None:
        entry.check(config)
        return
    for key, method in (("checkpoint.async_save", "begin_checkpoint"), ("record.learner_log_probs", "token_log_probs")):
        section, _, field = key.partition(".")
        lacks = getattr(BACKENDS.load(name), method) is getattr(LearnerBackend, method)
        if getattr(getattr(config, section), field) and lacks:
            raise ConfigError(f"{key} = true needs a method {method} of {name}, learner.train_backend")


def computes(config: RunConfig) -> ModelJudge:
    """Which models the learner can compute; one of the user's is held to what Megatron's can."""
    return ENTRIES.get(config.learner.train_backend, ENTRIES["megatron"]).computes


def effects() -> list[Rule]:
    """Which keys only one backend looks at."""
    return rules_of("learner.train_backend", {name: entry.looks_at for name, entry in ENTRIES.items()})


def make_backend(config: RunConfig, model_path: str, ranks: Ranks) -> LearnerBackend:
    """The backend that ``learner.train_backend`` names. Raises HookError, HookFailed, and what one of ours raises."""
    name = config.learner.train_backend
    return BACKENDS.called(name, BACKENDS.load(name), config, model_path, ranks)


def holds(config: RunConfig) -> bool:
    """Whether the backend can add the gradients of several batches up."""
    name = config.learner.train_backend
    return name in ENTRIES or BACKENDS.load(name).HOLDS


def check_step(backend: LearnerBackend, step: int, metrics: Any) -> None:
    """Refuse what no ``step`` may leave behind: the same batch would be trained without end, or what it was is not on record.
    Raises HookFailed."""
    of = type(backend).step
    if backend.version != step:
        raise refused(BACKENDS.hook, of, backend.version, f"{step} as the backend's version after step {step}")
    if not isinstance(metrics, dict) or "raw_reward" not in metrics:
        raise refused(BACKENDS.hook, of, metrics, "metrics by name, raw_reward among them")
    if odd := {name: value for name, value in metrics.items() if not isinstance(value, int | float)}:
        raise refused(BACKENDS.hook, of, odd, "metrics that are numbers")
