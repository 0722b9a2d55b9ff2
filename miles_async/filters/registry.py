"""The functions that judge groups, by the keys that name them.

    scored group ─► dynamic_sampling_filter ─► sample_filter ─► reward_post_process ─► ready ─► buffer_filter ─► batch

The first three are called by a rollout worker on the samples of one group, with the rewards as they were graded; the last
one by the learner. All are plain functions: they are called on the event loop and have to be quick.
"""

from __future__ import annotations

from miles_async.hooks.hook import Hook

DYNAMIC_SAMPLING_FILTER = Hook(
    "rollout.dynamic_sampling_filter",
    ("samples",),
    returns="whether the group is kept, or (that, the reason of the drop)",
    default="none: every group is kept",
    built_in={name: f"miles_async.filters.dynamic_sampling.{name}" for name in ("nonzero_std", "no_aborted")},
)
SAMPLE_FILTER = Hook(
    "rollout.sample_filter",
    ("samples",),
    returns="for each sample, whether it is trained on",
    default="none: all are",
)
REWARD_POST_PROCESS = Hook(
    "reward.reward_post_process",
    ("samples",),
    returns="the reward of each sample, finite",
    default="none: the rewards as they were graded",
)
BUFFER_FILTER = Hook(
    "rollout.buffer_filter",
    ("ready", "version"),
    returns="the ids of the ready groups to drop",
    default="none: no group is dropped",
)

HOOKS = (DYNAMIC_SAMPLING_FILTER, SAMPLE_FILTER, REWARD_POST_PROCESS, BUFFER_FILTER)
