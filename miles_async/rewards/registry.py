"""From the name of a reward to its function: in the configuration, and in a prompt's metadata.

Promises: a name that leads nowhere, or to something that cannot take what it is called with, is refused before the run
starts, in one line that names the nearest valid name; data can choose among the built-ins and the functions that the
configuration names, and so brings no code into a run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miles_async.config.schema import Reward, RunConfig
from miles_async.hooks.hook import Hook, HookError, nearest
from miles_async.rewards.boxed import boxed
from miles_async.rewards.graded import RewardError
from miles_async.rewards.sample import RewardSample
from miles_async.rewards.table import BOXED, BUILT_IN, WEIGHTED_SUM, built_in, short_name

# a number or a dict of numbers (a list of them for a group), or an awaitable of one
RewardFunction = Callable[..., Any]

_FUNCTIONS = {name: entry.function for name, entry in BUILT_IN.items()}
_NEEDS = {name: entry.needs for name, entry in BUILT_IN.items() if entry.needs is not None}


class RewardConfigError(HookError):
    """A key of ``[reward]`` does not lead to a reward function."""


@dataclass(frozen=True)
class RewardHook(Hook):
    """A hook whose built-ins have ``boxed_`` twins. group: of a run with that ``reward.group_rm``; None: of any."""

    group: bool | None = None

    def load(self, value: str) -> RewardFunction:
        """The function that ``value`` names. Raises RewardConfigError."""
        name = value.removeprefix(BOXED)
        if name == value or "." in name or ":" in name:  # a module of the user may be called so
            return super().load(value)
        if name not in BUILT_IN:
            raise self._error(value, f"no built-in follows {BOXED}{nearest(name, list(BUILT_IN))}")
        return boxed(super().load(name), BUILT_IN[name].answer_form)

    def values(self, config: RunConfig) -> tuple[str, ...]:
        """What the configuration names here."""
        return super().values(config) if self.group in (None, config.reward.group_rm) else ()

    def listing(self) -> str:
        """Where the list is, which is long and would stand in several rows."""
        names = "those of [rewards/table.py](../miles_async/rewards/table.py)"
        return f"`{WEIGHTED_SUM}`, and {names}" if WEIGHTED_SUM in self.built_in else names


def _hook(key: str, parameters: tuple[str, ...], group: bool | None = None, sums: bool = True) -> RewardHook:
    return RewardHook(
        key,
        parameters,
        returns="a number or a dict of numbers"
        + (" for each sample (reward.group_rm = true)" if group else "")
        + ", or an awaitable of that",
        default="graded_match" if key == "reward.rm_type" else "none",
        built_in=_FUNCTIONS | ({WEIGHTED_SUM: "miles_async.rewards.weighted.weighted_sum"} if sums else {}),
        needs=_NEEDS,
        form="either",
        error=RewardConfigError,
        group=group,
    )


REWARD = _hook("reward.rm_type", ("sample",), False)
# reward.group_rm = true: the functions of the user are called with all samples of a group; the built-ins as ever
GROUP_REWARD = _hook("reward.rm_type", ("samples",), True)
REWARD_CHOICES = _hook("reward.rm_types", ("sample",))
REWARD_WEIGHTS = _hook("reward.rm_weights", ("sample",), sums=False)
HOOKS: tuple[Hook, ...] = (REWARD, GROUP_REWARD, REWARD_CHOICES, REWARD_WEIGHTS)


def is_built_in(name: str) -> bool:
    """Whether ``name`` is that of a built-in, ``boxed_`` or not."""
    return name == WEIGHTED_SUM or built_in(name) is not None


def chosen(sample: RewardSample, config: Reward) -> str:
    """Which reward grades ``sample``: ``rm_type`` in its metadata (Miles), else ``reward.rm_type``.

    The metadata may name a built-in, or a function of ``reward.rm_type``, ``rm_types`` or ``rm_weights``, by its path or any
    ending of it: ``rewards/brief.py:score``, ``brief.score`` and ``score`` mean the same. Raises RewardError for another.
    """
    given = sample.metadata.get("rm_type")
    if given is None or given == "":
        return config.rm_type
    if isinstance(given, str) and is_built_in(given.strip()):
        return given.strip()
    functions = [name for name in (config.rm_type, *config.rm_types, *config.rm_weights) if not is_built_in(name)]
    if isinstance(given, str):
        for function in functions:
            if f".{_dotted(function)}".endswith(f".{_dotted(given.strip())}"):
                return function
    names = [*map(short_name, functions), *BUILT_IN]
    near = nearest(given, names) if isinstance(given, str) else ""
    raise RewardError(
        "reward_error",
        f"the prompt's metadata has rm_type = {given!r}{near}; one of {', '.join(names)} (reward.rm_types)",
    )


def _dotted(path: str) -> str:
    return path.replace(".py:", ".").replace(":", ".").replace("/", ".")


def resolve_reward_path(rm_type: str, base: Path) -> str:
    """``rm_type`` with its file made absolute; ``module.function`` means a file too if ``base`` holds module.py."""
    return REWARD.resolve_path(rm_type, base)


def check_reward(rm_type: str) -> None:
    """Raises RewardConfigError unless :func:`resolve_reward` would succeed (imports the user's module)."""
    resolve_reward(rm_type)


def resolve_reward(rm_type: str, *, group: bool = False) -> RewardFunction:
    """The function that ``rm_type`` names. Raises RewardConfigError: no such name, failed import, wrong signature."""
    return (GROUP_REWARD if group else REWARD).load(rm_type)
