"""Which keys of ``[algorithm]`` have an effect only with some built-ins: rules for ``config/effect.py``. Pure; no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from miles_async.config.effect import Rule, is_one_of
from miles_async.config.schema import RunConfig, corrections
from miles_async.rl.builtin.table import CORRECTIONS, ESTIMATORS, GAMMA, LAMBD, PLAIN, POLICY_LOSSES, STD


def _corrects(key: str) -> Callable[[RunConfig], bool]:
    """Whether a correction looks at ``key``; one of the user's may."""
    return lambda config: any(
        name not in CORRECTIONS or key in CORRECTIONS[name].looks_at for name in corrections(config.algorithm)
    )


def _estimators(key: str) -> list[str]:
    """Those of ours that look at ``key``."""
    return sorted(name for name, entry in ESTIMATORS.items() if key in entry.looks_at)


def _estimates(key: str) -> Callable[[RunConfig], bool]:
    """Whether the estimator looks at ``key``; one of the user's may."""
    return lambda config: is_one_of(config.algorithm.advantage_estimator, _estimators(key), ESTIMATORS)


def _either(names: Sequence[str]) -> str:
    """``"a", "b" or "c"``."""
    *others, last = (f'"{name}"' for name in names)
    return f"{', '.join(others)} or {last}" if others else last


def _correction_rules() -> list[Rule]:
    """One for each key that is a correction's own."""
    rules: list[Rule] = []
    for key in dict.fromkeys(key for entry in CORRECTIONS.values() for key in entry.looks_at):
        names = [name for name, entry in CORRECTIONS.items() if key in entry.looks_at]
        rules.append(Rule((key,), _corrects(key), f"algorithm.correction {_either(names)}"))
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
        f"algorithm.advantage_estimator = {_either(_estimators(STD))}, and their normalization",
    ),
    Rule((PLAIN,), _estimates(PLAIN), f"one of algorithm.advantage_estimator {', '.join(_estimators(PLAIN))}"),
    *(
        Rule((key,), _estimates(key), f"algorithm.advantage_estimator = {_either(_estimators(key))}")
        for key in (GAMMA, LAMBD)
    ),
)
