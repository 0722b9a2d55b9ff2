"""Token log-probs and entropies from logits whose vocabulary may be split over tensor-parallel ranks.

Promises: float32 arithmetic whatever the logits' dtype; the same numbers for any split of the vocabulary; gradients
equal to those of the unsplit softmax.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

# Entropy without gradient is computed over so many rows at a time: it needs a few tensors of [rows, vocabulary].
_ENTROPY_ROWS = 2048


def token_logprobs(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float = 1.0,
    entropy_grad: bool = False,
    tp_group: dist.ProcessGroup | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-prob of each target token and entropy of each distribution, at ``softmax(logits / temperature)``.

    logits: [N, V / tp] of this rank, any float dtype. targets: [N] int64 in the whole vocabulary. temperature: above 0.
    Returns (logprobs [N] float32 with gradient, entropy [N] float32, with gradient only if ``entropy_grad``).
    """
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    if tp_group is None or tp_group.size() == 1:
        log_z = torch.logsumexp(logits, dim=-1)
        target_logit = logits.gather(-1, targets[:, None])[:, 0]
        return target_logit - log_z, _entropy(logits, log_z, entropy_grad, None)
    log_z = _split_logsumexp(logits, tp_group)
    local = targets - tp_group.rank() * logits.shape[-1]
    mine = (local >= 0) & (local < logits.shape[-1])
    picked = logits.gather(-1, local.clamp(0, logits.shape[-1] - 1)[:, None])[:, 0]
    target_logit = _sum_over(torch.where(mine, picked, torch.zeros_like(picked)), tp_group)
    return target_logit - log_z, _entropy(logits, log_z, entropy_grad, tp_group)


def _split_logsumexp(logits: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    top = logits.detach().amax(dim=-1)
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    return top + _sum_over((logits - top[:, None]).exp().sum(dim=-1), group).log()


def _entropy(
    logits: torch.Tensor, log_z: torch.Tensor, with_grad: bool, group: dist.ProcessGroup | None
) -> torch.Tensor:
    """``log Z - sum(p * logit)``: [N]."""
    if with_grad:
        local_z = _to_every_rank(log_z, group)
        return log_z - _sum_over(((logits - local_z[:, None]).exp() * logits).sum(dim=-1), group)
    with torch.no_grad():
        parts = [
            ((rows - z[:, None]).exp() * rows).sum(dim=-1)
            for rows, z in zip(logits.split(_ENTROPY_ROWS), log_z.split(_ENTROPY_ROWS), strict=True)
        ]
        expected = torch.cat(parts) if parts else logits.new_zeros(0)
        return log_z.detach() - _sum_over(expected, group)


def _sum_over(values: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """Sum over the group's ranks; its gradient goes to every rank's addend unchanged."""
    if group is None or group.size() == 1:
        return values
    from megatron.core.tensor_parallel import reduce_from_tensor_model_parallel_region

    return reduce_from_tensor_model_parallel_region(values, group=group)


def _to_every_rank(values: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """Use a value all ranks share in a computation on this rank's part: its gradient is the sum over the ranks."""
    if group is None or group.size() == 1:
        return values
    from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region

    return copy_to_tensor_model_parallel_region(values, group=group)
