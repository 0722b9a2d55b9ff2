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
from miles_async.train.distributed import LearnerGroups
from miles_async.train.model import TrainedModel, gpt_model, is_last
from miles_async.train.objective import Sums
from miles_async.train.outputs import Outputs
from miles_async.train.schedule import rate_of
from miles_async.train.share import MicroShare

_ROLE = "critic-"
_HEAD, _CLASSIFIER = "score.", "ForTokenClassification"  # transformers' names
VALUE_LOSS, VALUE_CLIPFRAC = f"{_ROLE}value_loss", f"{_ROLE}value_clipfrac"
METRICS = (VALUE_LOSS, VALUE_CLIPFRAC)  # means over the step's tokens, all ranks
AT_REST = dict.fromkeys((f"{_ROLE}grad_norm", f"{_ROLE}lr", "values", "returns"), 0.0)  # where a batch has no token


class ValueHead(torch.nn.Linear):
    """Stands in the place of a GPTModel's output layer. It starts at 0, so the first advantages are the returns.

    Computes in float32. Its weights are of the model's dtype (the optimizer keeps float32 ones): Megatron's bfloat16
    optimizer does not store parameters of two kinds.
    """

    def __init__(self, hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(hidden_size, 1, dtype=dtype, device=device)
        with torch.no_grad():
            self.weight.zero_()
            self.bias.zero_()

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None]:
        """[..., hidden] of any float dtype to [..., 1] float32; called as Megatron calls an output layer."""
        return torch.nn.functional.linear(input.float(), self.weight.float(), self.bias.float()), None


class Critic:
    """The model of ``bridge`` with a value head, that of its directory where that has one. Raises ModelError if it has fewer
    tokens than the policy.

    vocab_size: the policy's.
    """

    def __init__(
        self, config: RunConfig, bridge: Any, vocab_size: int, groups: LearnerGroups, *, dtype: torch.dtype
    ) -> None:
        if bridge.hf_config.vocab_size < vocab_size:
            raise ModelError(
                f"the critic {bridge.path} has a vocabulary of {bridge.hf_config.vocab_size} tokens, the policy one of "
                f"{vocab_size}: critic.critic_load has to know every token of model.hf_checkpoint"
            )
        learner, critic = config.learner, config.critic
        self._value_clip = critic.value_clip
        chunks = bridge.chunks()
        for module in map(gpt_model, chunks):
            # a tied model would hand its embedding to the head as the weight to use, and the stages of a pipeline wait for one
            # another's gradients of it
            module.share_embeddings_and_output_weights = False
            if is_last(module):
                module.output_layer = ValueHead(module.config.hidden_size, dtype, groups.device)
                if (head := value_head(Path(bridge.path))) is not None:
                    module.output_layer.load_state_dict(head)
        self._bridge = bridge
        rate = rate_of(learner, lr=critic.critic_lr or learner.lr, warmup_steps=critic.critic_lr_warmup_steps)
        self.model = TrainedModel(chunks, bridge.config, learner, groups, dtype=dtype, rate=rate, prefix=_ROLE)

    def all_values(self, sequences: Sequences) -> torch.Tensor:
        """[N] float32 on the CPU: the values of all unmasked response tokens, without gradient."""
        return self.model.of_all_tokens(sequences, lambda _, outputs: _values(outputs))

    def save_hf(self, directory: Path) -> None:
        """A token classifier with one label for transformers: its output at a token is the value of what ends there. Written by
        rank 0; collective as the bridge's ``all_tensors`` is."""
        from miles_async.train.hf_export import save_hf

        last = self.model.modules[-1]
        head, tensors = None, {}
        if is_last(last):
            head, last.output_layer = last.output_layer, torch.nn.Identity()  # the bridge has no name for it
        try:
            tensors = {name: _copy(tensor) for name, tensor in self._bridge.all_tensors(self.model.modules)}
        finally:
            if head is not None:
                last.output_layer = head
        weights = self._head_on_first_stage(head)
        if self.model.groups.rank != 0:
            return
        tensors |= {f"{_HEAD}{name}": _copy(tensor) for name, tensor in weights.items()}
        kind = self._bridge.hf_config.architectures[0].replace("ForCausalLM", _CLASSIFIER)
        # there is no output layer that the embeddings could be tied to, and none that would have to be there
        settings = {"architectures": [kind], "id2label": {"0": "value"}, "label2id": {"value": 0}}
        save_hf(tensors, Path(self._bridge.path), directory, settings | {"tie_word_embeddings": True})

    def _head_on_first_stage(self, head: ValueHead | None) -> dict[str, torch.Tensor]:
        config, groups = self._bridge.config, self.model.groups
        if head is None:
            head = ValueHead(config.hidden_size, config.params_dtype, groups.device)  # of its shapes and types
        return {name: groups.from_last_stage(tensor.detach()) for name, tensor in head.named_parameters()}

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


def value_head(directory: Path) -> dict[str, torch.Tensor] | None:
    """The head that :meth:`Critic.save_hf` wrote to a directory, "weight" and "bias"; None for a model without one."""
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(_HEAD)]  # noqa: SIM118 (it is no dict)
            found |= {name.removeprefix(_HEAD): file.get_tensor(name) for name in names}
    return found or None


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
