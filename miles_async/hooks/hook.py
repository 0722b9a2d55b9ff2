"""From a name in the configuration to a function: one loader for every extension point.

A value is the name of a built-in, a dotted path ``package.module.function``, or ``file.py:function``. Promises: a value
that leads nowhere, or to something that cannot be called as its hook is (other parameters, ``async`` where nobody awaits it,
no ``async`` where it is awaited, a ``yield`` that nobody comes to), is refused before the run starts, in one line that names
the key, the value, what is allowed and the nearest valid name; a built-in is imported only when it is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from miles_async.config.schema import ConfigError, RunConfig
from miles_async.hooks.faults import words


class HookError(ConfigError):
    """A key does not lead to a function that can be called as its hook is."""


@dataclass(frozen=True)
class Hook:
    """One extension point: the key that names its function, and how that function is called.

    key: ``section.key`` of the configuration; its value is a text, a list of them, or None. parameters: what the function is
    called with, by position. returns, default: in words, for the documentation. built_in: name to
    ``package.module.function``. needs: name of a built-in to (module, package) that it cannot do without. form: what is done
    with the function: "plain", it is called and that is all; "async", what it gives is awaited; "either"; "iterated", plain
    too, and it may yield.
    """

    key: str
    parameters: tuple[str, ...]
    returns: str
    default: str
    built_in: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    form: Literal["plain", "async", "either", "iterated"] = "plain"
    error: type[HookError] = HookError

    def load(self, value: str) -> Callable[..., Any]:
        """The function that ``value`` names. Raises HookError: no such name, failed import, wrong signature."""
        if value in self.built_in:
            module_name, package = self.needs.get(value, ("", ""))
            if module_name and importlib.util.find_spec(module_name) is None:
                raise self._error(value, f"it needs the package {package}")
            module, _, name = self.built_in[value].rpartition(".")
            return getattr(importlib.import_module(module), name)
        module, name = self._find(value)
        function = getattr(module, name, None)
        if not callable(function):
            names = [n for n, found in vars(module).items() if callable(found) and not n.startswith("_")]
            where = module.__file__ or module.__name__
            raise self._error(value, f'{where} has no function "{name}"{nearest(name, names)}')
        self._check_signature(value, function)
        self._check_form(value, function)
        return function

    def resolve_path(self, value: str, base: Path) -> str:
        """``value`` with its file made absolute; ``module.function`` means a file too if ``base`` holds module.py."""
        if value in self.built_in:
            return value
        if ":" in value:
            file, _, function = value.rpartition(":")
            return f"{(base / Path(file).expanduser()).resolve()}:{function}"
        module, _, function = value.rpartition(".")
        beside = base / (module.replace(".", "/") + ".py")
        return f"{beside.resolve()}:{function}" if module and beside.is_file() else value

    def values(self, config: RunConfig) -> tuple[str, ...]:
        """What the configuration names here; empty where the key is unset."""
        section, _, key = self.key.partition(".")
        value = getattr(getattr(config, section), key)
        return () if value is None else (value,) if isinstance(value, str) else tuple(value)

    def listing(self) -> str:
        """The built-ins in Markdown, for the documentation."""
        return ", ".join(f"`{name}`" for name in self.built_in) or "-"

    def functions(self, config: RunConfig) -> list[Callable[..., Any]]:
        """The functions that the configuration names here. Raises HookError."""
        return [self.load(value) for value in self.values(config)]

    def _find(self, value: str) -> tuple[ModuleType, str]:
        if ":" in value:
            file, _, name = value.rpartition(":")
            return self._load_file(value, Path(file)), name
        if value.endswith(".py"):
            raise self._error(value, f'which function of the file? "{value}:FUNCTION"')
        module_name, _, name = value.rpartition(".")
        if not module_name or not all(part.isidentifier() for part in value.split(".")):
            names = list(self.built_in)
            forms = ", ".join([*names, '"package.module.function" or "file.py:function"'])
            raise self._error(value, f"there is no such built-in{nearest(value, names)}; one of {forms}")
        return self._import(value, module_name), name

    def _check_signature(self, value: str, function: Callable[..., Any]) -> None:
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return  # written in C: nothing to look at
        try:
            signature.bind(*self.parameters)
        except TypeError:
            takes = f"it must take ({', '.join(self.parameters)}), but is {signature}"
            raise self._error(value, takes) from None

    def _check_form(self, value: str, function: Callable[..., Any]) -> None:
        is_async, yields = _form_of(function)
        if yields and (is_async or self.form != "iterated"):
            raise self._error(value, f"it must give {self.returns}, and not yield")
        if is_async and self.form in ("plain", "iterated"):
            raise self._error(value, 'it must be a plain function: nobody awaits what an "async def" gives')
        # a plain wrapper around an "async def" hands on what that gives
        if self.form == "async" and not (is_async or inspect.iscoroutinefunction(inspect.unwrap(function))):
            raise self._error(value, 'it must be an "async def": what it gives is awaited')

    def _import(self, value: str, name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
                where = "on the Python path or beside the TOML file"
                raise self._error(value, f'there is no module "{error.name}" {where}') from None
            raise self._error(value, f"importing {name} failed: {error}") from None
        except (Exception, SystemExit) as error:
            raise self._error(value, f"importing {name} failed: {words(error)}") from None

    def _load_file(self, value: str, path: Path) -> ModuleType:
        if not path.is_file():
            raise self._error(value, f"there is no file {path}")
        name = f"{path.stem}@{path.resolve()}"  # no import statement can mean this name
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise self._error(value, f"{path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        directory = str(path.resolve().parent)
        if directory not in sys.path:
            sys.path.append(directory)  # last: what lies beside the file must not hide an installed package
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if not isinstance(error, Exception | SystemExit):
                raise
            raise self._error(value, f"importing {path} failed: {words(error)}") from None
        return module

    def _error(self, value: str, reason: str) -> HookError:
        return self.error(f'{self.key} = "{value}": {reason}'.replace("\n", " "))


def nearest(name: str, names: list[str]) -> str:
    """``; did you mean "..."?``, or nothing."""
    near = difflib.get_close_matches(name, names, 1)
    return f'; did you mean "{near[0]}"?' if near else ""


def _form_of(function: Callable[..., Any]) -> tuple[bool, bool]:
    """Whether ``function``, or the ``__call__`` of an object, is an ``async def``, and whether it yields."""
    forms: list[Any] = [function, type(function).__call__]
    is_async = any(inspect.iscoroutinefunction(form) or inspect.isasyncgenfunction(form) for form in forms)
    yields = any(inspect.isgeneratorfunction(form) or inspect.isasyncgenfunction(form) for form in forms)
    return is_async, yields
