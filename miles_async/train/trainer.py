"""The learner's training engine, whatever its models are made of (parts.py): one weight version for each batch of groups.

    groups ─► flatten ─► denominators, advantages, token weights ─► optimizer steps (steps.py) ─► version + 1

Promises:
- A token whose lag exceeds the bound stops the batch on every rank before anything is touched (LagExceeded).
- What an optimizer step is measured against (denominators, advantages, reference, the critic's values, corrections of the
  whole batch) is computed once, with the weights from before the batch.
- The loss of a step is a mean over its own mini-batch, all ranks: neither the split into micro-batches nor the number of
  ranks, nor how they split the model, changes it, beyond rounding. Metrics are the same on every rank.
- ``version`` is the number of batches behind the weights, however many optimizer steps a batch is; a restored checkpoint
  continues bit for bit (stored_trainer.py). The first ``critic.num_critic_only_steps`` batches leave the policy's weights as
  they are.

All methods are collective over ranks, in the same order. Any thread may call them, one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from bus.messages import Group
from miles_async.config.optimizer_steps import even, steps_of_batch, steps_of_pass
from miles_async.config.schema import RunConfig
from miles_async.groups.model_routes import route_shape
from miles_async.hooks.calls import called
from miles_async.train import hooks, on_policy, steps
from miles_async.train.batch import BatchError, Sequences, flatten, whole_sequences
from miles_async.train.checked_batch import checked
from miles_async.train.critic import AT_REST, Critic
from miles_async.train.critic import METRICS as CRITIC_METRICS
from miles_async.train.denominators import denominators
from miles_async.train.distributed import device_of, dtype_of
from miles_async.train.idle_steps import suspects
from miles_async.train.intake import Admitted, LagExceeded, admit
from miles_async.train.kept_weights import KeptWeights, copies
from miles_async.train.megatron_parts import MegatronParts
from miles_async.train.minibatch import MiniBatch, split
from miles_async.train.model_state import ModelState
from miles_async.train.objective import MISMATCH, MISMATCH_TOKENS, Objective, Sums, named
from miles_async.train.own_log_probs import OwnLogProbs
from miles_async.train.policy import Policy
from miles_async.train.ranks import Ranks
from miles_async.train.reward_metrics import reward_metrics
from miles_async.train.share import MicroShare, Share, make_share, micro_share
from miles_async.train.stored_trainer import StoredTrainer
from miles_async.train.trained import Trained

__all__ = ["LagExceeded", "MegatronTrainer", "Trainer"]


class Trainer(StoredTrainer):
    """The ``LearnerBackend`` (backend.py) of one rank. Builds process groups, model and optimizer, and loads the weights.

    model_path: a Hugging Face directory. Raises ModelError for an unsupported checkpoint, RanksSilent if the other ranks do
    not come.
    """

    HOLDS = True

    def __init__(self, config: RunConfig, model_path: str, ranks: Ranks) -> None:
        self.config = config
        self.version = 0
        self._objective = Objective(config)
        self._before_log_prob = hooks.BEFORE_LOG_PROB.functions(config)
        self._before_step = hooks.BEFORE_TRAIN_STEP.functions(config)
        # of this process; in a synchronous run it checks that the two ways to a log-prob agree
        self._first_step = config.staleness.max_lag == 0 and not self._objective.is_sft
        self._device = device_of(config.model.device, ranks.rank)
        self._parts = self.PARTS(config, self._device, dtype_of(config.model))
        self._groups = self._parts.meet(ranks)
        self._own = OwnLogProbs(config.record.learner_log_probs, self._groups)
        try:
            with self._parts.building():
                self._build(model_path)
        except BaseException:
            self._groups.close()
            raise

    def _build(self, model_path: str) -> None:
        self._parts.seed(self.config.run.seed)
        self._bridge = self._parts.bridge(model_path)
        replayed = route_shape(vars(self._bridge.hf_config)) if self.config.rollout.routing_replay else None
        ours = partial(flatten, routes=replayed)
        self._to_batch = next((checked(function) for function in hooks.BATCH.functions(self.config)), ours)
        ref_load = self.config.algorithm.ref_load
        # beside adapters the frozen weights are the reference's too, unless it has a directory of its own
        frozen = self._parts.lora is None or ref_load is not None
        reference = None
        if self._objective.needs_reference and frozen:
            reference = self._parts.reference(ref_load or self._bridge.path)
        self._policy = Policy(self.config, self._objective, partial(self._parts.policy, self._bridge))
        if self._objective.needs_reference and not frozen:
            reference = copies(self._policy.model.modules, frozen=False)
        self._kept = KeptWeights(
            self._policy.model.modules,
            reference,
            ref_update_interval=self.config.algorithm.ref_update_interval,
            old_versions=self.config.staleness.max_lag if self.config.algorithm.keep_old_actor else 0,
            frozen=frozen,
        )
        self._critic = self._build_critic() if self._objective.needs_critic else None
        critic = self._critic.model if self._critic is not None else None
        self._steps = steps.OptimizerSteps(self._groups, self.config.learner.max_skipped_steps, suspects(self.config))
        parts = self._parts
        self._state = ModelState(self._policy.model, critic, self._kept, self._groups, parts.files, parts.lora)

    def _build_critic(self) -> Critic:
        bridge = self._parts.bridge(self.config.critic.critic_load or self._bridge.path)
        return Critic(self.config, bridge, self._bridge.hf_config.vocab_size, self._parts)

    def step(
        self,
        groups: Sequence[Group],
        *,
        max_lag: int | None = None,
        sizes: Sequence[int] | None = None,
        ticks: bool = True,
    ) -> dict[str, float]:
        """The optimizer steps of one batch, of which these are this rank's groups, one mini-batch after the other.

        max_lag: versions that a token may be behind the weights; None: staleness.max_lag. sizes: how many of the groups are of
        each mini-batch; None: equally many. ticks: false where the weights are held: the gradients wait for those of the next
        batch, and the version stays.
        Returns metrics over all ranks, named as Miles names them, means over the optimizer steps that were made. Raises, with
        the weights unchanged: LagExceeded, BatchError (this rank's groups are malformed), BatchRefused (another rank's are);
        and NonFiniteGradient.
        """
        staleness = self.config.staleness
        admitted = admit(
            groups,
            self._groups,
            version=self.version,
            max_lag=staleness.max_lag if max_lag is None else max_lag,
            aim=None if staleness.hard_bound else staleness.max_lag,
            vocab_size=self._bridge.hf_config.vocab_size,
            to_batch=self._to_batch,
        )
        for function in self._before_step:
            called(hooks.BEFORE_TRAIN_STEP, function, self, self.version + 1)
        self._kept.before_batch(self.version)
        self._own.begin(len(admitted.batch.sequences.mask))
        names = [*self._objective.names, *(CRITIC_METRICS if self._critic is not None else ())]
        if admitted.metrics["n_tokens"]:
            sizes = even(len(groups), steps_of_pass(self.config)) if sizes is None else sizes
            metrics = self._optimize(admitted, sizes, names, ticks=ticks)
        else:  # there is no loss, no gradient, no step
            metrics = named(torch.zeros(len(names)), names) | (AT_REST if self._critic is not None else {})
            metrics |= {"grad_norm": 0.0, "lr": 0.0, **steps.counts(empty=steps_of_batch(self.config))}
            if ticks:
                metrics |= self._apply_held(len(names))
        if ticks:
            self.version += 1
            self._kept.after_batch(self.version)
        rewards = {} if self._objective.is_sft else reward_metrics(groups, self._groups)
        return {**metrics, **admitted.metrics, **rewards}

    def _optimize(self, admitted: Admitted, sizes: Sequence[int], names: list[str], *, ticks: bool) -> dict[str, float]:
        """Train on a batch with something to learn; the metrics of its optimizer steps."""
        learner = self.config.learner
        parts = split(admitted, sizes, self._groups.sum_on_cpu)
        share = self._share(admitted, parts)
        learning, models = self._learning, self._models()

        def backward(part: MiniBatch, unmoved: bool) -> torch.Tensor:
            return self._backward(share, part, names, unmoved=unmoved, learning=learning)

        name, size = f"step {self.version + 1}", len(names)
        outcome = self._steps.run(models, parts, learner.ppo_epochs, backward, size=size, name=name, ticks=ticks)
        if not (passes := outcome.made + outcome.held):
            return outcome.counts
        observed = [value.to(self._device) for value in share.observed.values()]
        totals = torch.cat([outcome.sums / passes, *(value[None] for value in observed)])
        means = named(self._groups.sum(totals), [*names, *share.observed])
        return {**means, "grad_norm": 0.0, "lr": 0.0, **outcome.means, **outcome.counts}

    @property
    def _learning(self) -> bool:
        """Whether the policy is trained at this version, not only its critic."""
        return self._critic is None or self.version >= self.config.critic.num_critic_only_steps

    def _models(self) -> list[Trained]:
        critic = [] if self._critic is None else [self._critic.model]
        return [self._policy.model, *critic] if self._learning else [*critic]

    def _apply_held(self, size: int) -> dict[str, float]:
        """One optimizer step with what earlier batches have added up, where the one that ends them has no token to train."""
        outcome = self._steps.finish(self._models(), size=size, name=f"step {self.version + 1}")
        return {**outcome.means, **outcome.counts} if outcome.made or outcome.skipped else {}

    def _backward(
        self, share: Share, part: MiniBatch, names: list[str], *, unmoved: bool, learning: bool
    ) -> torch.Tensor:
        """Add up the gradients of a mini-batch; its metrics' sums [names] of this replica. unmoved: no weight has changed since
        before the batch. learning: the policy does, too."""
        sums = torch.zeros(len(names), dtype=torch.float64, device=self._device)
        drift = torch.zeros(2, dtype=torch.float64, device=self._device)
        of_policy = len(self._objective.names)
        seen: list[torch.Tensor] = []

        def observe(logprobs: torch.Tensor, mine: MicroShare, parts: Sums) -> None:
            seen.append(logprobs)
            if not unmoved:  # these compare the version itself with the engine's
                parts = parts | {name: torch.zeros_like(parts[name]) for name in (MISMATCH, MISMATCH_TOKENS)}
            sums[:of_policy] += torch.stack([parts[name] for name in names[:of_policy]])
            if self._first_step and mine.current is not None:
                drift.add_(on_policy.drift(logprobs, mine.current, mine.weights, self.config.algorithm))

        def observe_critic(parts: Sums) -> None:
            sums[of_policy:] += torch.stack([parts[name] for name in names[of_policy:]])

        batches = self._policy.model.micro_batches(part.sequences)
        micros = [(micro, micro_share(share, micro, self._device)) for micro in batches]
        self._policy.train_pass(micros, self.version, observe, learning=learning)
        self._own.add(batches, seen)
        if self._critic is not None:
            self._critic.train_pass(micros, observe_critic)
        sums, drift = self._groups.from_last_stage(torch.cat([sums, drift])).tensor_split([len(names)])
        if self._first_step:
            on_policy.check(self._groups.sum(drift.clone()), self.version + 1)
        self._first_step = False
        return sums

    def _share(self, admitted: Admitted, parts: Sequence[MiniBatch] = ()) -> Share:
        """What has to be known of all tokens before the first optimizer step."""
        objective, sequences = self._objective, admitted.batch.sequences
        if self.config.algorithm.use_opd and not admitted.taught:
            raise BatchError("algorithm.use_opd = true, but samples came without a teacher's log-probs")
        teacher_top = admitted.batch.teacher_top if self.config.algorithm.opd_log_prob_top_k else None
        reference = None
        if self._kept.has_reference:
            with self._kept.reference_in_place():
                # its experts are those that it chooses itself
                reference = self._all_logprobs(replace(sequences, routes=None), "reference")
        wanted = objective.needs_pass or self._first_step
        current = None
        if wanted:
            current = denominators(admitted.batch, self.version, self._kept, self._groups, self._all_logprobs)
        values = self._critic.all_values(sequences) if self._critic is not None else None
        top = self._policy.of_tokens(sequences, teacher_top[0]) if teacher_top is not None else None
        return make_share(
            admitted,
            objective,
            self.version,
            parts,
            current=current,
            reference=reference,
            values=values,
            top=top,
            all_sum=self._groups.sum_on_cpu,
            gather=self._groups.concatenate,
        )

    def _all_logprobs(self, sequences: Sequences, name: str) -> torch.Tensor:
        """[N] float32 on the CPU: log-probs of all unmasked response tokens, without gradient."""
        for function in self._before_log_prob:
            called(hooks.BEFORE_LOG_PROB, function, self, name)
        return self._policy.all_logprobs(sequences)

    def token_log_probs(self) -> np.ndarray | None:
        return self._own.fetch()

    def log_probs(self, sequences: list[np.ndarray], temperature: float) -> list[np.ndarray]:
        """Log-prob of each token given its prefix, without the first: for a sequence of L token ids, [L - 1] float32. Their
        experts are those that the model chooses."""
        packed = whole_sequences(sequences)
        flat = self._policy.all_logprobs(packed, temperature).numpy()
        return np.split(flat, np.cumsum(packed.lengths - 1)[:-1])


class MegatronTrainer(Trainer):
    """With Megatron-core, in any layout."""

    PARTS = MegatronParts
