"""The built-in reducers, as ``algorithm.loss_aggregation`` names them: the weight of each token in the step's mean.

Each is ``(mask, sample_index, rollout_index, totals, config) -> [N] float64``, like one of the user's own.
"""

from __future__ import annotations

import torch

from miles_async.config.schema import RunConfig
from miles_async.rl import reduce
from miles_async.rl.reduce import Totals


def token(
    mask: torch.Tensor, sample_index: torch.Tensor, rollout_index: torch.Tensor, totals: Totals, config: RunConfig
) -> torch.Tensor:
    """Mean over all tokens."""
    return reduce.token_mean(mask, sample_index, rollout_index, totals)


def sample(
    mask: torch.Tensor, sample_index: torch.Tensor, rollout_index: torch.Tensor, totals: Totals, config: RunConfig
) -> torch.Tensor:
    """Mean of each rollout's mean."""
    return reduce.sample_mean(mask, sample_index, rollout_index, totals)


def constant(
    mask: torch.Tensor, sample_index: torch.Tensor, rollout_index: torch.Tensor, totals: Totals, config: RunConfig
) -> torch.Tensor:
    """Sums over a constant: ``loss_constant``, or the longest response there can be."""
    length = config.algorithm.loss_constant or float(config.rollout.rollout_max_response_len)
    return reduce.constant(mask, sample_index, rollout_index, totals, length=length)
