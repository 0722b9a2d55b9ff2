"""From the name in ``reward.rm_type`` to the function.

Promises: a name that leads nowhere, or to something that cannot take one sample, is refused before the run starts, in
one line that names the nearest valid name.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from miles_async.config import ConfigError
from miles_async.rewards import builtin_rewards
from miles_async.rewards.sample import RewardSample

RewardFunction = Callable[[RewardSample], Any]  # a number, or an awaitable of one

# cheap enough for the event loop
INLINE: dict[str, Callable[[RewardSample], float]] = {
    "graded_match": builtin_rewards.graded_match,
    "exact_match": builtin_rewards.exact_match,
}
BUILT_IN: dict[str, Callable[[RewardSample], float]] = {**INLINE, "math": builtin_rewards.math}
NEEDS = {
    "math": ("math_verify", "math-verify")
}  # module and package; a grading process imports it before its first call


class RewardConfigError(ConfigError):
    """``reward.rm_type`` does not lead to a reward function."""


def resolve_reward_path(rm_type: str, base: Path) -> str:
    """``rm_type`` with its file made absolute; ``module.function`` means a file too if ``base`` holds module.py."""
    if rm_type in BUILT_IN:
        return rm_type
    if ":" in rm_type:
        file, _, function = rm_type.rpartition(":")
        return f"{(base / Path(file).expanduser()).resolve()}:{function}"
    module, _, function = rm_type.rpartition(".")
    beside = base / (module.replace(".", "/") + ".py")
    return f"{beside.resolve()}:{function}" if module and beside.is_file() else rm_type


def check_reward(rm_type: str) -> None:
    """Raises RewardConfigError unless :func:`resolve_reward` would succeed (imports the user's module)."""
    resolve_reward(rm_type)


def resolve_reward(rm_type: str) -> RewardFunction:
    """The function that ``rm_type`` names. Raises RewardConfigError: no such name, failed import, wrong signature."""
    if rm_type in BUILT_IN:
        module_name, package = NEEDS.get(rm_type, ("", ""))
        if module_name and importlib.util.find_spec(module_name) is None:
            raise _error(rm_type, f"it needs the package {package}")
        return BUILT_IN[rm_type]
    if ":" in rm_type:
        file, _, name = rm_type.rpartition(":")
        module = _load_file(rm_type, Path(file))
    else:
        module_name, _, name = rm_type.rpartition(".")
        if not module_name or not all(part.isidentifier() for part in rm_type.split(".")):
            raise _error(rm_type, f"there is no such built-in reward{_nearest(rm_type, list(BUILT_IN))}", forms=True)
        module = _import(rm_type, module_name)
    function = getattr(module, name, None)
    if not callable(function):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise _error(rm_type, f'{module.__file__ or module.__name__} has no function "{name}"{_nearest(name, names)}')
    _check_signature(rm_type, function)
    return function


def _check_signature(rm_type: str, function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # written in C: nothing to look at
    try:
        signature.bind(None)
    except TypeError:
        raise _error(rm_type, f"it must take one argument, the sample, but is {signature}") from None


def _import(rm_type: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise _error(
                rm_type, f'there is no module "{error.name}" on the Python path or beside the TOML file'
            ) from None
        raise _error(rm_type, f"importing {name} failed: {error}") from None
    except Exception as error:
        raise _error(rm_type, f"importing {name} failed: {type(error).__name__}: {error}") from None


def _load_file(rm_type: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise _error(rm_type, f"there is no file {path}")
    name = f"{path.stem}@{path.resolve()}"  # no import statement can mean this name
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise _error(rm_type, f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    directory = str(path.resolve().parent)
    if directory not in sys.path:
        sys.path.append(directory)  # last: what lies beside the file must not hide an installed package
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _error(rm_type, f"importing {path} failed: {type(error).__name__}: {error}") from None
    return module


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f'; did you mean "{near[0]}"?' if near else ""


def _error(rm_type: str, reason: str, *, forms: bool = False) -> RewardConfigError:
    allowed = f'; one of {", ".join(BUILT_IN)}, "package.module.function" or "file.py:function"' if forms else ""
    return RewardConfigError(f'reward.rm_type = "{rm_type}": {reason}{allowed}'.replace("\n", " "))
