"""The learner's training engine: Megatron-core with data parallelism, one optimizer step for each batch of groups.

    groups ─► flatten ─► advantages, token weights ─► micro-batches ─► forward, loss, backward ─► reduce ─► Adam ─► version + 1

Promises:
- A token whose lag exceeds the bound stops the step on every rank before anything is touched (LagExceeded).
- The loss is a mean over the whole step, all ranks: neither the split into micro-batches nor the number of ranks
  changes it, beyond rounding.
- ``version`` is the number of optimizer steps in the weights; a restored checkpoint continues bit for bit.
- An exported tensor is a copy: later steps do not change it.

All methods are collective over ranks, in the same order. Any thread may call them, one at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bus.messages import Group
from miles_async.config import RunConfig
from miles_async.train import checkpoint, cpu_shim, objective, rng
from miles_async.train.batch import MicroBatch, micro_batches, whole_sequences
from miles_async.train.bridge import ModelBridge
from miles_async.train.distributed import LearnerGroups
from miles_async.train.intake import LagExceeded, admit
from miles_async.train.logprobs import token_logprobs
from miles_async.train.schedule import learning_rate

__all__ = ["LagExceeded", "MegatronTrainer"]


class MegatronTrainer:
    """One data-parallel rank. Builds process groups, model and optimizer, and loads the Hugging Face weights.

    model_path: a Hugging Face directory. init_method: where ranks meet, "file://..." or "tcp://127.0.0.1:port".
    Raises ModelError for an unsupported checkpoint, RanksSilent if the other ranks do not come.
    """

    def __init__(self, config: RunConfig, model_path: str, *, rank: int, world_size: int, init_method: str):
        self.config = config
        self.version = 0
        self._device = _device(config.model.device, rank)
        self._dtype = torch.bfloat16 if config.model.dtype == "bfloat16" else torch.float32
        _quiet_megatron()
        cpu_shim.install(self._device)
        self._groups = LearnerGroups(
            self._device,
            rank=rank,
            world_size=world_size,
            init_method=init_method,
            timeout_s=config.learner.grad_reduce_timeout_s,
        )
        try:
            with cpu_shim.cuda_means_cpu(self._device):
                self._build(model_path)
        except BaseException:
            self._groups.close()
            raise

    def _build(self, model_path: str) -> None:
        from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

        from miles_async.train.optimizer import LearnerOptimizer

        torch.manual_seed(self.config.run.seed)
        model_parallel_cuda_manual_seed(self.config.run.seed, force_reset_rng=True)
        self._bridge = ModelBridge(model_path, self._dtype, self._device)
        model: Any = self._bridge.build()
        self._module: Any = model.module if self._dtype is torch.bfloat16 else model  # Float16Module holds a GPTModel
        self._ddp = DistributedDataParallel(
            self._bridge.config,
            DistributedDataParallelConfig(
                grad_reduce_in_fp32=True,
                overlap_grad_reduce=False,
                use_distributed_optimizer=self.config.learner.use_distributed_optimizer,
            ),
            model,
        )
        self._optimizer = LearnerOptimizer(self.config.learner, self._dtype, self._ddp)

    # -- training -----------------------------------------------------------------------------------------------------

    def step(self, groups: Sequence[Group]) -> dict[str, float]:
        """One optimizer step on this rank's share of the batch, whole groups in ledger order.

        Returns metrics over all ranks, named as Miles names them. Raises, with the weights unchanged: LagExceeded,
        BatchError (this rank's groups are malformed), BatchRefused (another rank's are), NonFiniteGradient.
        """
        from megatron.core.distributed import finalize_model_grads

        algorithm = self.config.algorithm
        admitted = admit(
            groups,
            self._groups,
            version=self.version,
            max_lag=self.config.staleness.max_lag,
            vocab_size=self._bridge.hf_config.vocab_size,
        )
        batch = admitted.batch
        advantages, weights = objective.token_terms(admitted, algorithm)
        sums = torch.zeros(len(objective.METRICS), dtype=torch.float64, device=self._device)
        self._ddp.zero_grad_buffer()
        self._optimizer.zero_grad()
        for micro in micro_batches(batch.sequences, self.config.learner.max_tokens_per_micro_batch):
            logprobs, entropy = self._forward(
                micro, self.config.rollout.rollout_temperature, entropy_grad=algorithm.entropy_coef > 0
            )
            behaviour = torch.from_numpy(batch.behaviour[micro.token_index])
            terms = (behaviour, advantages[micro.token_index], weights[micro.token_index])
            loss, parts = objective.policy_loss(algorithm, logprobs, entropy, *(t.to(self._device) for t in terms))
            loss.backward()
            sums += parts
        with self._groups.waiting(f"the gradients of step {self.version + 1} of"):
            # Gradients are reduced here, once, not in backward: without overlap DDP needs no no_sync().
            finalize_model_grads([self._ddp])
            lr = self._learning_rate()
            with cpu_shim.cuda_means_cpu(self._device):
                grad_norm = self._optimizer.step(lr)
        self.version += 1
        means = objective.named(self._groups.sum(sums), algorithm)
        return {**means, "grad_norm": grad_norm, "lr": lr, **admitted.metrics}

    def _forward(
        self, micro: MicroBatch, temperature: float, *, entropy_grad: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-prob and entropy [n] of the micro-batch's tokens. Logits are computed at their positions only."""
        tokens = torch.from_numpy(micro.tokens).to(self._device)
        positions = torch.from_numpy(micro.positions).to(self._device)
        targets = torch.from_numpy(micro.targets).to(self._device)
        position_ids = torch.arange(tokens.shape[1], device=self._device).expand_as(tokens)

        def keep_wanted(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden, *rest = args  # [columns, rows, hidden]
            return (hidden.flatten(0, 1).index_select(0, positions)[:, None], *rest)

        handle = self._module.output_layer.register_forward_pre_hook(keep_wanted)
        try:
            logits = self._ddp(tokens, position_ids, None)  # [1, n, vocabulary]
        finally:
            handle.remove()
        return token_logprobs(logits[0], targets, temperature=temperature, entropy_grad=entropy_grad)

    def _learning_rate(self) -> float:
        learner = self.config.learner
        return learning_rate(
            self.version,
            lr=learner.lr,
            min_lr=learner.min_lr,
            warmup_steps=learner.lr_warmup_steps,
            decay_steps=learner.lr_decay_steps,
            decay_style=learner.lr_decay_style,
        )

    def log_probs(self, sequences: list[np.ndarray], temperature: float) -> list[np.ndarray]:
        """Log-prob of each token given its prefix, without the first: for a sequence of L token ids, [L - 1] float32."""
        packed = whole_sequences(sequences)
        flat = np.zeros(len(packed.mask), dtype=np.float32)
        with torch.no_grad():
            for micro in micro_batches(packed, self.config.learner.max_tokens_per_micro_batch):
                logprobs, _ = self._forward(micro, temperature)
                flat[micro.token_index] = logprobs.cpu().numpy()
        return np.split(flat, np.cumsum(packed.lengths - 1)[:-1])

    # -- weights out, state in and out --------------------------------------------------------------------------------

    def export(self) -> dict[str, torch.Tensor]:
        """Hugging Face name -> contiguous copy on the CPU, in the model's dtype. Empty on every rank but 0."""
        if self._groups.rank != 0:
            return {}
        return {
            name: torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
            for name, tensor in self._bridge.hf_tensors(self._module)
        }

    def save_hf(self, directory: Path) -> None:
        """A directory transformers can load: current weights, the original's configuration and tokenizer files."""
        from miles_async.train.hf_export import save_hf

        if self._groups.rank == 0:
            save_hf(self.export(), Path(self._bridge.path), Path(directory))
        self._groups.agree("the Hugging Face export")

    def save_checkpoint(self, directory: Path, extra: dict[str, Any]) -> Path:
        """Add a checkpoint of this version to ``directory`` and make it the latest; see checkpoint.py.

        extra: msgpack-able, returned by load_checkpoint. Keeps checkpoint.keep checkpoints. Returns the new one's path.
        """
        from miles_async.train import dist_save

        root = Path(directory)
        first = self._groups.rank == 0
        writing = Path(self._groups.agree("a checkpoint", str(checkpoint.begin(root, self.version)) if first else ""))
        with cpu_shim.cuda_means_cpu(self._device), self._groups.waiting("the checkpoint shards of"):
            dist_save.save(self._sharded_state(is_loading=False), writing)
        state = checkpoint.LearnerState(version=self.version, extra=extra)
        path = str(checkpoint.commit(root, writing, state, self.config.checkpoint.keep)) if first else ""
        return Path(self._groups.agree("the finished checkpoint", path))

    def load_checkpoint(self, directory: Path) -> dict[str, Any]:
        """Restore the latest checkpoint in ``directory`` (or the one it is). Returns its ``extra``.

        Raises CheckpointError if there is none. The number of ranks may differ from the one that saved it.
        """
        from megatron.core import dist_checkpointing

        path = checkpoint.resolve(Path(directory))
        state = checkpoint.read_state(path)
        with cpu_shim.cuda_means_cpu(self._device), self._groups.waiting("the checkpoint shards of"):
            loaded: Any = dist_checkpointing.load(self._sharded_state(is_loading=True), str(path))
            self._module.load_state_dict(loaded["model"])
            self._optimizer.load_state_dict(loaded["optimizer"], state.version)
        rng.set_state(loaded["rng"])
        self.version = state.version
        return state.extra

    def _sharded_state(self, is_loading: bool) -> dict[str, Any]:
        model = self._module.sharded_state_dict()
        return {
            "model": model,
            "optimizer": self._optimizer.sharded_state_dict(model, is_loading),
            "rng": rng.get_state(),
        }

    def close(self) -> None:
        """Leave the process groups."""
        self._groups.close()


def _quiet_megatron() -> None:
    """Megatron warns, once for each of its files, that TransformerEngine and Apex are absent. That is a choice here."""
    for message in ("Transformer Engine and Apex are not", "Apex is not installed", "full scope is deprecated"):
        warnings.filterwarnings("ignore", message=message, category=UserWarning)


def _device(wanted: str, rank: int) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError('model.device = "cuda", but torch sees no CUDA device; allowed here: "auto", "cpu"')
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", rank % torch.cuda.device_count())
