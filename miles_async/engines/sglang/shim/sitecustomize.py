"""Lets an unmodified ``sglang`` wheel be imported where Triton and torchvision do not exist.

Promises: loaded only in the server's own processes (the driver puts this directory on *their* PYTHONPATH, and only for
``device = "cpu"``); a really installed package always wins, since the finder is asked last; whoever *probes* for one of
the packages instead of importing it is told that it is absent. A stand-in can be imported, decorated with and subclassed;
launching one of its kernels is an error. SGLang ships the same idea for Apple silicon (``sglang/_platform_stubs.py``).
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

ABSENT = frozenset({"triton", "torchvision"})

# find_spec() asks whether a package exists; torch asks the same question of Triton by importing it.
PROBES = frozenset({"find_spec", "has_triton_package", "get_triton_version"})
IMPORT_MACHINERY = "<frozen importlib._bootstrap"


class StandInBase:
    """What a class of a stand-in inherits from: it can be subclassed and constructed with anything."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


class StandIn(types.ModuleType):
    """A module of which every attribute exists: classes for capitalised names, else stand-ins usable as decorators."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__file__ = __file__
        self.__version__ = "0.0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        value = type(name, (StandInBase,), {"__module__": self.__name__}) if name[0].isupper() else self._child(name)
        setattr(self, name, value)
        return value

    def _child(self, name: str) -> types.ModuleType:
        full_name = f"{self.__name__}.{name}"
        child = sys.modules.get(full_name)
        if child is None:
            child = sys.modules[full_name] = StandIn(full_name)
            child.__spec__ = importlib.machinery.ModuleSpec(full_name, StandInFinder, is_package=True)
        return child

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """``@triton.jit`` and ``@triton.jit(...)``: the function comes back as it is."""
        if len(args) == 1 and not kwargs and callable(args[0]):
            return args[0]
        return _unchanged

    def __getitem__(self, grid: Any) -> NoReturn:
        raise RuntimeError(f"{self.__name__} is a stand-in: its kernels cannot be launched on this machine")

    def __bool__(self) -> bool:
        return False


def _unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


class _TritonConfig:
    """``triton.Config``: built at import by autotuning tables, never read on a CPU."""

    def __init__(self, kwargs: dict[str, Any] | None = None, num_warps: int = 4, num_stages: int = 2, **_: Any) -> None:
        self.kwargs, self.num_warps, self.num_stages = kwargs or {}, num_warps, num_stages


def _cdiv(a: int, b: int) -> int:
    return -(a // -b)


def _next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length() if n > 0 else 1


# What is computed with while modules are imported must be real.
REAL_ATTRIBUTES = {"triton": {"Config": _TritonConfig, "cdiv": _cdiv, "next_power_of_2": _next_power_of_2}}


def _is_probe() -> bool:
    """Whether the import under way was started by a function that only asks if the package exists."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(IMPORT_MACHINERY):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name in PROBES


class StandInFinder:
    """The last entry of ``sys.meta_path``: asked only for what nobody else could find."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in ABSENT or _is_probe():
            return None
        return importlib.machinery.ModuleSpec(fullname, cls, is_package=True)

    @classmethod
    def create_module(cls, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StandIn(spec.name)

    @classmethod
    def exec_module(cls, module: types.ModuleType) -> None:
        vars(module).update(REAL_ATTRIBUTES.get(module.__name__, {}))


sys.meta_path.append(StandInFinder)
