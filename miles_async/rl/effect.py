"""Which keys of ``[algorithm]`` have an effect only with some built-ins: rules for ``config/effect.py``. Pure; no torch."""

from __future__ import annotations

from collections.abc import Callable

from miles_async.config.effect import Rule, is_one_of
from miles_async.config.schema import RunConfig, corrections
from miles_async.rl.builtin.table import CORRECTIONS, ESTIMATORS, GAMMA, LAMBD, PLAIN, POLICY_LOSSES, STD

PLAIN_REWARDS = tuple(sorted(name for name, entry in ESTIMATORS.items() if PLAIN in entry.looks_at))


def _corrects(key: str) -> Callable[[RunConfig], bool]:
    """Whether a correction looks at ``key``; one of the user's may."""
    return lambda config: any(
        name not in CORRECTIONS or key in CORRECTIONS[name].looks_at for name in corrections(config.algorithm)
    )


def _estimates(key: str) -> Callable[[RunConfig], bool]:
    names = [name for name, entry in ESTIMATORS.items() if key in entry.looks_at]
    return lambda config: is_one_of(config.algorithm.advantage_estimator, names, ESTIMATORS)


def _correction_rules() -> list[Rule]:
    """One for each key that is a correction's own."""
    rules: list[Rule] = []
    for key in dict.fromkeys(key for entry in CORRECTIONS.values() for key in entry.looks_at):
        names = [f'"{name}"' for name, entry in CORRECTIONS.items() if key in entry.looks_at]
        said = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
        rules.append(Rule((key,), _corrects(key), f"algorithm.correction {said}"))
    return rules


def _loss_rules() -> list[Rule]:
    """One for each policy loss with keys of its own; where none is named it is one without."""

    def named(name: str) -> Callable[[RunConfig], bool]:
        return lambda config: (
            config.algorithm.policy_loss is not None and is_one_of(config.algorithm.policy_loss, (name,), POLICY_LOSSES)
        )

    return [
        Rule(entry.looks_at, named(name), f'algorithm.policy_loss = "{name}"')
        for name, entry in POLICY_LOSSES.items()
        if entry.looks_at
    ]


RULES = (
    *_correction_rules(),
    *_loss_rules(),
    Rule(
        (STD,),
        lambda config: _estimates(STD)(config) and not config.algorithm.disable_rewards_normalization,
        'algorithm.advantage_estimator = "grpo" or "gspo", and their normalization',
    ),
    Rule((PLAIN,), _estimates(PLAIN), f"one of algorithm.advantage_estimator {', '.join(PLAIN_REWARDS)}"),
    Rule((GAMMA,), _estimates(GAMMA), 'algorithm.advantage_estimator = "ppo" or "reinforce_plus_plus"'),
    Rule((LAMBD,), _estimates(LAMBD), 'algorithm.advantage_estimator = "ppo"'),
)
