"""The built-ins that ``[algorithm]`` can name, and what a configuration's checks have to know of each. No torch."""

from __future__ import annotations

from typing import NamedTuple

PLAIN = "algorithm.disable_rewards_normalization"
STD = "algorithm.grpo_std_normalization"
GAMMA, LAMBD = "algorithm.gamma", "algorithm.lambd"


class EstimatorEntry(NamedTuple):
    """An advantage estimator: a function of estimators.py.

    whitens: its advantages are normalised over the batch unless the configuration says no. has_critic: it needs a critic's
    values. reward_kl: it gives each token a reward, so that ``kl_coef`` has a place. compares_in_group: a reward counts only
    against the others of its group. looks_at: keys that only some estimators look at.
    """

    function: str
    whitens: bool = False
    has_critic: bool = False
    reward_kl: bool = False
    compares_in_group: bool = False
    looks_at: tuple[str, ...] = ()


ESTIMATORS = {
    "grpo": EstimatorEntry("grpo", compares_in_group=True, looks_at=(STD, PLAIN)),
    "dr_grpo": EstimatorEntry("dr_grpo", compares_in_group=True),
    "rloo": EstimatorEntry("rloo", compares_in_group=True),
    "reinforce_plus_plus": EstimatorEntry("reinforce_plus_plus", whitens=True, reward_kl=True, looks_at=(GAMMA,)),
    "reinforce_plus_plus_baseline": EstimatorEntry(
        "reinforce_plus_plus_baseline", whitens=True, reward_kl=True, compares_in_group=True, looks_at=(PLAIN,)
    ),
    "ppo": EstimatorEntry("ppo", has_critic=True, reward_kl=True, looks_at=(GAMMA, LAMBD)),
    # GRPO's advantage with a loss of its own
    "gspo": EstimatorEntry("grpo", compares_in_group=True, looks_at=(STD, PLAIN)),
}


class PolicyLossEntry(NamedTuple):
    """A function of policy_losses.py. dual_clip: it looks at ``eps_clip_c``. looks_at: keys of its own."""

    dual_clip: bool = False
    looks_at: tuple[str, ...] = ()


POLICY_LOSSES = {
    "ppo_clip": PolicyLossEntry(dual_clip=True),
    "gspo": PolicyLossEntry(dual_clip=True),
    "cispo": PolicyLossEntry(),
    "truncated_reinforce": PolicyLossEntry(),
    "dppo": PolicyLossEntry(looks_at=("algorithm.dppo_tv_threshold", "algorithm.dppo_kl_coef")),
}


class CorrectionEntry(NamedTuple):
    """A function of corrections.py. weighs: it does so by the ratio to the behaviour policy, which is 1 where that is the
    denominator. looks_at: keys of its own."""

    function: str
    weighs: bool = True
    looks_at: tuple[str, ...] = ()


_CLIPS = ("algorithm.tis_clip", "algorithm.tis_clip_low")
_MIS = tuple(f"algorithm.mis_{key}" for key in ("level", "mode", "upper", "lower", "batch_normalize"))
_RS = tuple(f"algorithm.rs_{key}" for key in ("level", "upper", "lower"))
CORRECTIONS = {
    "behaviour": CorrectionEntry("nothing", weighs=False),
    "uncorrected": CorrectionEntry("nothing", weighs=False),
    "tis": CorrectionEntry("tis", looks_at=_CLIPS),
    "icepop": CorrectionEntry("icepop", looks_at=_CLIPS),
    "mis": CorrectionEntry("mis", looks_at=_MIS),
    "rs": CorrectionEntry("rs", looks_at=(*_RS, "algorithm.rs_veto_threshold")),
    "veto": CorrectionEntry("veto", looks_at=("algorithm.rs_veto_threshold",)),
    "opsm": CorrectionEntry("opsm", weighs=False, looks_at=("algorithm.opsm_delta",)),
    "m2po": CorrectionEntry("m2po", looks_at=("algorithm.m2po_threshold",)),
    "span_tis": CorrectionEntry("span_tis", looks_at=_CLIPS),
}
REDUCERS = ("token", "sample", "constant")
