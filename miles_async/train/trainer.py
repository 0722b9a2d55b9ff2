"""The learner's training engine: Megatron-core with data parallelism, one optimizer step for each batch of groups.

    groups ─► flatten ─► advantages, token weights ─► micro-batches ─► forward, loss, backward ─► reduce ─► Adam ─► version + 1

Promises:
- A token whose lag exceeds the bound stops the step on every rank before anything is touched (LagExceeded).
- The loss is a mean over the whole step, all ranks: neither the split into micro-batches nor the number of ranks
  changes it, beyond rounding.
- ``version`` is the number of steps behind the weights; a restored checkpoint continues bit for bit. A step is one of the
  optimizer, except that the first ``critic.num_critic_only_steps`` of them leave the policy's weights as they are.
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
from miles_async.rl.terms import LossTerms
from miles_async.train import cpu_shim, hooks, on_policy
from miles_async.train.batch import BatchError, MicroBatch, Sequences, flatten, micro_batches, whole_sequences
from miles_async.train.bridge import ModelBridge
from miles_async.train.checkpoint_choice import Choice
from miles_async.train.critic import METRICS as CRITIC_METRICS
from miles_async.train.critic import Critic
from miles_async.train.distributed import LearnerGroups
from miles_async.train.intake import Admitted, LagExceeded, admit
from miles_async.train.logprobs import token_logprobs
from miles_async.train.model import TrainedModel, of_all_tokens, update
from miles_async.train.model_state import ModelState
from miles_async.train.objective import Objective, named
from miles_async.train.reference import ReferenceWeights, copies
from miles_async.train.schedule import rate_of
from miles_async.train.share import MicroShare, Share, make_share, micro_share

__all__ = ["LagExceeded", "MegatronTrainer"]


class MegatronTrainer:
    """One data-parallel rank. Builds process groups, model and optimizer, and loads the Hugging Face weights.

    model_path: a Hugging Face directory. init_method: where ranks meet, "file://..." or "tcp://127.0.0.1:port".
    Raises ModelError for an unsupported checkpoint, RanksSilent if the other ranks do not come.
    """

    def __init__(self, config: RunConfig, model_path: str, *, rank: int, world_size: int, init_method: str):
        self.config = config
        self.version = 0
        self._objective = Objective(config)
        self._to_batch = next(iter(hooks.BATCH.functions(config)), flatten)
        self._before_log_prob = hooks.BEFORE_LOG_PROB.functions(config)
        self._before_step = hooks.BEFORE_TRAIN_STEP.functions(config)
        self._provider = next(iter(hooks.MODEL_PROVIDER.functions(config)), ModelBridge)
        # of this process; in a synchronous run it checks that the two ways to a log-prob agree
        self._first_step = config.staleness.max_lag == 0 and not self._objective.is_sft
        self._device = _device(config.model.device, rank)
        self._dtype = torch.bfloat16 if config.model.dtype == "bfloat16" else torch.float32
        quiet_megatron()
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
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

        torch.manual_seed(self.config.run.seed)
        model_parallel_cuda_manual_seed(self.config.run.seed, force_reset_rng=True)
        self._bridge = self._provider(model_path, self._dtype, self._device)
        reference = self._reference_weights() if self._objective.needs_reference else None
        learner = self.config.learner
        self._policy = TrainedModel(
            self._bridge.build(),
            self._bridge.config,
            learner,
            dtype=self._dtype,
            device=self._device,
            rate=rate_of(learner, lr=learner.lr, warmup_steps=learner.lr_warmup_steps),
        )
        self._module = self._policy.module
        self._reference = ReferenceWeights(self._module, reference) if reference is not None else None
        self._critic = self._build_critic() if self._objective.needs_critic else None
        critic = self._critic.model if self._critic is not None else None
        self._state = ModelState(self._policy, critic, self._groups, self._device)

    def _reference_weights(self) -> list[torch.Tensor]:
        """The parameters of the reference model, on the CPU."""
        path = self.config.algorithm.ref_load or self._bridge.path
        return copies(self._provider(path, self._dtype, self._device).build())

    def _build_critic(self) -> Critic:
        path = self.config.critic.critic_load or self._bridge.path
        bridge = self._provider(path, self._dtype, self._device)
        return Critic(self.config, bridge, self._bridge.hf_config.vocab_size, dtype=self._dtype, device=self._device)

    # -- training -----------------------------------------------------------------------------------------------------

    def step(self, groups: Sequence[Group]) -> dict[str, float]:
        """One optimizer step on this rank's share of the batch, whole groups in ledger order.

        Returns metrics over all ranks, named as Miles names them. Raises, with the weights unchanged: LagExceeded,
        BatchError (this rank's groups are malformed), BatchRefused (another rank's are), NonFiniteGradient.
        """
        admitted = admit(
            groups,
            self._groups,
            version=self.version,
            max_lag=self.config.staleness.max_lag,
            vocab_size=self._bridge.hf_config.vocab_size,
            to_batch=self._to_batch,
        )
        for function in self._before_step:
            function(self, self.version + 1)
        share = self._share(admitted)
        names = [*self._objective.names, *(CRITIC_METRICS if self._critic is not None else ())]
        sums = torch.zeros(len(names), dtype=torch.float64, device=self._device)
        drift = torch.zeros(2, dtype=torch.float64, device=self._device)
        learning = self._critic is None or self.version >= self.config.critic.num_critic_only_steps
        models = ([self._policy] if learning else []) + ([self._critic.model] if self._critic is not None else [])
        for model in models:
            model.zero_grad()
        for micro in micro_batches(admitted.batch.sequences, self.config.learner.max_tokens_per_micro_batch):
            part = micro_share(share, micro, self._device)
            with torch.set_grad_enabled(learning):
                logprobs, loss, parts = self._loss(micro, part)
            if learning:
                loss.backward()
            if self._critic is not None:
                parts |= self._critic.backward(micro, part)
            sums += torch.stack([parts[name] for name in names])
            if part.current is not None:
                drift += on_policy.drift(logprobs, part.current, part.weights, self.config.algorithm)
        if self._first_step:
            on_policy.check(self._groups.sum(drift), self.version + 1)
        self._first_step = False
        with self._groups.waiting(f"the gradients of step {self.version + 1} of"):
            moved = update(models)
        self.version += 1
        observed = [value.to(self._device) for value in share.observed.values()]
        totals = self._groups.sum(torch.cat([sums, *(value[None] for value in observed)]))
        means = named(totals, [*names, *share.observed])
        return {**means, "grad_norm": 0.0, "lr": 0.0, **moved, **admitted.metrics}

    def _share(self, admitted: Admitted) -> Share:
        """What has to be known of all tokens before the first micro-batch."""
        objective, sequences = self._objective, admitted.batch.sequences
        if self.config.algorithm.use_opd and not admitted.taught:
            raise BatchError("algorithm.use_opd = true, but samples came without a teacher's log-probs")
        reference = None
        if self._reference is not None:
            with self._reference.in_place():
                reference = self._all_logprobs(sequences, "reference")
        wanted = objective.needs_pass or self._first_step
        current = self._all_logprobs(sequences, "current") if wanted else None
        values = self._critic.all_values(sequences) if self._critic is not None else None
        return make_share(
            admitted,
            objective,
            self.version,
            current=current,
            reference=reference,
            values=values,
            all_sum=self._groups.sum_on_cpu,
            gather=self._groups.concatenate,
        )

    def _loss(self, micro: MicroBatch, part: MicroShare) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Log-probs [n] (detached), loss (with gradient) and metrics of one micro-batch."""
        temperature, objective = self.config.rollout.rollout_temperature, self._objective
        entropy_grad = self.config.algorithm.entropy_coef > 0
        logprobs, entropy = self._forward(micro, temperature, entropy_grad=entropy_grad)
        current = logprobs.detach() if part.current is None else part.current
        terms = LossTerms(
            logprobs=logprobs,
            old=objective.old(current, part.behaviour, part.versions, self.version),
            behaviour=part.behaviour,
            advantages=part.advantages,
            sample_index=part.sample_index,
            versions=part.versions,
            version=self.version,
            mask=torch.ones_like(part.behaviour),
        )
        loss, sums = objective.loss(
            terms,
            part.weights,
            pg_weights=part.pg_weights,
            entropy=entropy,
            reference=part.reference,
            batch_correction=part.correction,
        )
        return logprobs.detach(), loss, sums

    def _all_logprobs(self, sequences: Sequences, name: str) -> torch.Tensor:
        """[N] float32 on the CPU: log-probs of all unmasked response tokens, without gradient."""
        for function in self._before_log_prob:
            function(self, name)
        return self._pass(sequences, self.config.rollout.rollout_temperature)

    def _pass(self, sequences: Sequences, temperature: float) -> torch.Tensor:
        limit = self.config.learner.max_tokens_per_micro_batch
        return of_all_tokens(sequences, limit, lambda micro: self._forward(micro, temperature)[0])

    def _forward(
        self, micro: MicroBatch, temperature: float, *, entropy_grad: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-prob and entropy [n] of the micro-batch's tokens."""
        targets = torch.from_numpy(micro.targets).to(self._device)
        logits = self._policy.outputs(micro)
        return token_logprobs(logits, targets, temperature=temperature, entropy_grad=entropy_grad)

    def log_probs(self, sequences: list[np.ndarray], temperature: float) -> list[np.ndarray]:
        """Log-prob of each token given its prefix, without the first: for a sequence of L token ids, [L - 1] float32."""
        packed = whole_sequences(sequences)
        flat = self._pass(packed, temperature).numpy()
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
        return self._state.save(Path(directory), self.version, extra, keep=self.config.checkpoint.keep)

    def choose_checkpoint(self, directory: Path, forgotten: int) -> Choice:
        """The newest sound checkpoint in ``directory``, of step ``forgotten`` or later; see checkpoint_choice.py."""
        return self._state.choose(Path(directory), forgotten)

    def load_checkpoint(self, directory: Path, *, verified: bool = False) -> dict[str, Any]:
        """Restore the latest checkpoint in ``directory`` (or the one it is). Returns its ``extra``.

        Raises CheckpointError: there is none, it is damaged (not looked for if ``verified``), or it has a critic and this run
        none, or the reverse. The number of ranks may differ from the one that saved it.
        """
        state = self._state.load(Path(directory), verified=verified)
        self.version = state.version
        return state.extra

    def close(self) -> None:
        """Leave the process groups."""
        self._groups.close()


def quiet_megatron() -> None:
    """Megatron warns, once for each of its files, that TransformerEngine and Apex are absent. That is a choice here."""
    for message in ("Transformer Engine and Apex are not", "Apex is not installed", "full scope is deprecated"):
        warnings.filterwarnings("ignore", message=message, category=UserWarning)


def _device(wanted: str, rank: int) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError('model.device = "cuda", but torch sees no CUDA device; allowed here: "auto", "cpu"')
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", rank % torch.cuda.device_count())
