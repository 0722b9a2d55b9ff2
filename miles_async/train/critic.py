"""The critic: a model like the policy whose output layer is one number a token, the value of what lies before it.

    hidden state that predicts token t ─► value head ─► V_t        (the state before token t is written)

Promises: trained beside the policy, never in its place: same micro-batches, same token weights, its own
gradients, Adam and learning rate; what :meth:`Critic.save_hf` writes is what critic.critic_load reads, value head included.
Sources: GAE, arXiv 1506.02438; value clipping, PPO's reference code; names as in Miles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from miles_async.config.schema import RunConfig
from miles_async.rl.losses import value_loss
from miles_async.rl.reduce import weighted_sum
from miles_async.train.batch import MicroBatch, Sequences
from miles_async.train.bridge import ModelError
from miles_async.train.model import TrainedModel, gpt_model, of_all_tokens
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
        self, config: RunConfig, bridge: Any, vocab_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        if bridge.hf_config.vocab_size < vocab_size:
            raise ModelError(
                f"the critic {bridge.path} has a vocabulary of {bridge.hf_config.vocab_size} tokens, the policy one of "
                f"{vocab_size}: critic.critic_load has to know every token of model.hf_checkpoint"
            )
        learner, critic = config.learner, config.critic
        self._max_tokens, self._value_clip = learner.max_tokens_per_micro_batch, critic.value_clip
        model = bridge.build()
        module = gpt_model(model)
        # a tied model would hand its embedding to the head as the weight to use
        module.share_embeddings_and_output_weights = False
        module.output_layer = ValueHead(module.config.hidden_size, dtype, device)
        self._bridge = bridge
        if (head := value_head(Path(bridge.path))) is not None:
            module.output_layer.load_state_dict(head)
        rate = rate_of(learner, lr=critic.critic_lr or learner.lr, warmup_steps=critic.critic_lr_warmup_steps)
        self.model = TrainedModel(model, bridge.config, learner, dtype=dtype, device=device, rate=rate, prefix=_ROLE)

    def values(self, micro: MicroBatch) -> torch.Tensor:
        """[n] float32, with gradient: the value of the state before each of the micro-batch's tokens."""
        return self.model.outputs(micro)[:, 0]

    def all_values(self, sequences: Sequences) -> torch.Tensor:
        """[N] float32 on the CPU: the values of all unmasked response tokens, without gradient."""
        return of_all_tokens(sequences, self._max_tokens, self.values)

    def save_hf(self, directory: Path) -> None:
        """A token classifier with one label for transformers: its output at a token is the value of what ends there."""
        from miles_async.train.hf_export import save_hf

        module = self.model.module
        head, module.output_layer = module.output_layer, torch.nn.Identity()  # the bridge has no name for it
        try:
            tensors = {name: _copy(tensor) for name, tensor in self._bridge.hf_tensors(module)}
        finally:
            module.output_layer = head
        tensors |= {f"{_HEAD}{name}": _copy(tensor) for name, tensor in head.named_parameters()}
        kind = self._bridge.hf_config.architectures[0].replace("ForCausalLM", _CLASSIFIER)
        # there is no output layer that the embeddings could be tied to, and none that would have to be there
        settings = {"architectures": [kind], "id2label": {"0": "value"}, "label2id": {"value": 0}}
        save_hf(tensors, Path(self._bridge.path), directory, settings | {"tie_word_embeddings": True})

    def backward(self, micro: MicroBatch, part: MicroShare) -> dict[str, torch.Tensor]:
        """Add the gradient of a micro-batch's share in the step's value loss. Returns its share of METRICS, float64."""
        assert part.values is not None and part.returns is not None
        per_token, clipped = value_loss(self.values(micro), part.values, part.returns, value_clip=self._value_clip)
        loss = weighted_sum(per_token, part.weights)
        loss.backward()
        return {VALUE_LOSS: loss.detach(), VALUE_CLIPFRAC: weighted_sum(clipped.double(), part.weights)}


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
