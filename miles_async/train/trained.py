"""One model in training, whatever computes it: model.py has Megatron's, fsdp/model.py transformers'.

Promises of each: a pass goes through the micro-batches in their order; no weight changes before gradients are applied; the
state restores bit for bit. All methods are collective over ranks, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from miles_async.train.batch import MicroBatch, Sequences
from miles_async.train.distributed import LearnerGroups
from miles_async.train.outputs import Outputs

Loss = Callable[[MicroBatch, Outputs], torch.Tensor]
Compute = Callable[[MicroBatch, Outputs], torch.Tensor]


class Trained:
    """``modules``: the parts of the model in this process; ``steps``: optimizer steps in the weights."""

    groups: LearnerGroups
    modules: list[Any]
    steps: int = 0

    # passes

    def micro_batches(self, sequences: Sequences) -> list[MicroBatch]:
        """Those that it takes least time to compute."""
        raise NotImplementedError

    def train_pass(self, micros: Sequence[MicroBatch], loss_of: Loss, *, learning: bool = True) -> None:
        """Add the gradients of ``loss_of(micro-batch, its outputs)``, a scalar, up, of one micro-batch after the other; no
        gradient unless ``learning``. It is asked where there are outputs, of micro-batches with tokens."""
        raise NotImplementedError

    def of_all_tokens(self, sequences: Sequences, compute: Compute, width: int | None = None) -> torch.Tensor:
        """[N] (or [N, width]) float32 on the CPU, on every rank: what ``compute`` gives for a micro-batch's tokens, [n] (or [n,
        width]), for all unmasked response tokens; zeros elsewhere. Without gradient."""
        flat = torch.zeros(len(sequences.mask), *([] if width is None else [width]))

        def keep(micro: MicroBatch, outputs: Outputs) -> torch.Tensor:
            flat[torch.from_numpy(micro.token_index)] = compute(micro, outputs).cpu()
            return outputs.values.new_zeros(())

        self.train_pass(self.micro_batches(sequences), keep, learning=False)
        return self.groups.from_last_stage(flat)

    # optimizer steps

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        raise NotImplementedError

    def scale_gradients(self, factor: float) -> None:
        """Multiply what was added up so far, before it is reduced."""
        raise NotImplementedError

    def reduce_gradients(self) -> float:
        """Add the gradients of all ranks up. Returns their norm, inf or nan where they must not be applied."""
        raise NotImplementedError

    def apply_gradients(self) -> dict[str, float]:
        """One optimizer step with gradients that were reduced and are finite. Returns their norm before clipping, and the
        learning rate."""
        raise NotImplementedError

    # in a checkpoint

    def sharded_state(self, *, is_loading: bool) -> dict[str, Any]:
        """What the checkpoint files (parts.py) store, or fill in to load."""
        raise NotImplementedError

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what was loaded into :meth:`sharded_state`."""
        raise NotImplementedError

    def sharded_weights(self, weights: Sequence[torch.Tensor], *, frozen: bool = True) -> dict[str, Any]:
        """The same of other weights than its own, as ``kept_weights.copies`` gives them, by ``"number of the module.name"``.
        frozen: also of those that are not trained."""
        raise NotImplementedError


def loss_or_zero(micro: MicroBatch, outputs: Outputs, loss_of: Loss) -> torch.Tensor:
    """What ``loss_of`` gives; without asking it, a zero that has gradients where there is nothing to compute."""
    return loss_of(micro, outputs) if len(micro.targets) else outputs.values.sum() * 0
