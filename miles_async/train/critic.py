"""The critic: a model like the policy whose output layer is one number a token, the value of what lies before it.

    hidden state that predicts token t ─► value head ─► V_t        (the state before token t is written)

Promises: trained beside the policy, never in its place: same micro-batches, same token weights, its own
gradients, Adam and learning rate; what :meth:`Critic.save_hf` writes is what critic.critic_load reads, value head included.
Sources: GAE, arXiv 1506.02438; value clipping, PPO's reference code; names as in Miles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from miles_async.config.schema import RunConfig
from miles_async.rl.losses import value_loss
from miles_async.rl.reduce import weighted_sum
from miles_async.train.batch import MicroBatch, Sequences
from miles_async.train.bridge import ModelError
from miles_async.train.objective import Sums
from miles_async.train.outputs import Outputs
from miles_async.train.parts import LearnerParts
from miles_async.train.schedule import rate_of
from miles_async.train.share import MicroShare

_ROLE = "critic-"
_CLASSIFIER = "ForTokenClassification"  # transformers' name
VALUE_LOSS, VALUE_CLIPFRAC = f"{_ROLE}value_loss", f"{_ROLE}value_clipfrac"
METRICS = (VALUE_LOSS, VALUE_CLIPFRAC)  # means over the step's tokens, all ranks
AT_REST = dict.fromkeys((f"{_ROLE}grad_norm", f"{_ROLE}lr", "values", "returns"), 0.0)  # where a batch has no token


class Critic:
    """The model of ``bridge`` with a value head, that of its directory where that has one. Raises ModelError if it has fewer
    tokens than the policy.

    vocab_size: the policy's.
    """

    def __init__(self, config: RunConfig, bridge: Any, vocab_size: int, parts: LearnerParts) -> None:
        if bridge.hf_config.vocab_size < vocab_size:
            raise ModelError(
                f"the critic {bridge.path} has a vocabulary of {bridge.hf_config.vocab_size} tokens, the policy one of "
                f"{vocab_size}: critic.critic_load has to know every token of model.hf_checkpoint"
            )
        learner, critic = config.learner, config.critic
        self._value_clip = critic.value_clip
        self._bridge, self._parts = bridge, parts
        rate = rate_of(learner, lr=critic.critic_lr or learner.lr, warmup_steps=critic.critic_lr_warmup_steps)
        self.model = parts.critic(bridge, rate, _ROLE)

    def all_values(self, sequences: Sequences) -> torch.Tensor:
        """[N] float32 on the CPU: the values of all unmasked response tokens, without gradient."""
        return self.model.of_all_tokens(sequences, lambda _, outputs: _values(outputs))

    def save_hf(self, directory: Path) -> None:
        """A token classifier with one label for transformers: its output at a token is the value of what ends there. Written by
        rank 0; collective as the bridge's ``all_tensors`` is."""
        from miles_async.train.hf_export import save_hf
        from miles_async.weights.safetensors_file import specs_of

        tensors = {name: _copy(tensor) for name, tensor in self._parts.critic_tensors(self._bridge, self.model)}
        if self.model.groups.rank != 0:
            return
        kind = self._bridge.hf_config.architectures[0].replace("ForCausalLM", _CLASSIFIER)
        # there is no output layer that the embeddings could be tied to, and none that would have to be there
        settings: dict[str, Any] = {"architectures": [kind], "id2label": {"0": "value"}, "label2id": {"value": 0}}
        settings |= {"tie_word_embeddings": True}
        save_hf(specs_of(tensors.items()), tensors.items(), Path(self._bridge.path), directory, settings)

    def train_pass(self, micros: Sequence[tuple[MicroBatch, MicroShare]], observe: Callable[[Sums], None]) -> None:
        """Add the gradients of micro-batches' shares in the step's value loss up. observe: is given each one's part of METRICS,
        float64."""
        shares = iter(micros)

        def loss_of(micro: MicroBatch, outputs: Outputs) -> torch.Tensor:
            part = next(shares)[1]
            assert part.values is not None and part.returns is not None
            values = _values(outputs)
            per_token, clipped = value_loss(values, part.values, part.returns, value_clip=self._value_clip)
            loss = weighted_sum(per_token, part.weights)
            observe({VALUE_LOSS: loss.detach(), VALUE_CLIPFRAC: weighted_sum(clipped.double(), part.weights)})
            return loss

        self.model.train_pass([micro for micro, _ in micros], loss_of)


def _values(outputs: Outputs) -> torch.Tensor:
    """[n] float32, with gradient: the value of the state before each of the micro-batch's tokens."""
    return outputs.whole(outputs.values[:, 0])


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
