"""When rewards tell nothing apart for several steps, so that nothing is learnt though the run looks well. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from miles_async.config.schema import RunConfig

STEPS = 3  # in a row
BY_GROUP = frozenset({"grpo", "gspo", "dr_grpo", "rloo", "reinforce_plus_plus_baseline"})  # compare within a group


class IdleRewards:
    """What one life of the learner has seen of rewards that tell nothing apart."""

    def __init__(self, config: RunConfig) -> None:
        algorithm = config.algorithm
        self._config = config
        self._by_group = algorithm.advantage_estimator in BY_GROUP and not algorithm.disable_rewards_normalization
        self._graded = algorithm.loss_type != "sft_loss" and not algorithm.use_opd
        self._steps = 0
        self._told = False

    def warning(self, metrics: Mapping[str, float]) -> str:
        """One line with the metrics of the last of ``STEPS`` such steps, once; else nothing."""
        least, greatest = metrics.get("reward_min"), metrics.get("reward_max")
        constant = least is not None and least == greatest
        groups = self._config.rollout.rollout_batch_size
        alike = self._by_group and metrics.get("zero_std_groups", 0.0) >= groups
        self._steps = self._steps + 1 if self._graded and (constant or alike) else 0
        if self._steps < STEPS or self._told:
            return ""
        self._told = True
        what = f"every reward was {least:g}" if constant else f"none of the {groups} groups had two different rewards"
        so = (
            f'with algorithm.advantage_estimator = "{self._config.algorithm.advantage_estimator}" every advantage is 0: '
            "nothing is learnt"
            if self._by_group
            else "they tell no response from another"
        )
        rm_type = self._config.reward.rm_type
        return (
            f'in each of the last {STEPS} steps {what}; {so}. Look at reward.rm_type = "{rm_type}", or let '
            'rollout.dynamic_sampling_filter = "nonzero_std" refuse such groups'
        )
