"""The benchmarks of a checkout, by name."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from miles_async.config.schema import ConfigError
from miles_async.config.words import nearest

_ROOT = Path(__file__).resolve().parents[2]


def names() -> list[str]:
    """The names of the checkout's benchmarks. Raises ConfigError: this is none."""
    found = sorted(path.stem.removeprefix("bench_") for path in (_ROOT / "benchmarks").glob("bench_*.py"))
    if not found:
        raise ConfigError(f"no benchmarks beside {_ROOT / 'miles_async'}: they are in the checkout, not in the package")
    return found


def find(name: str) -> Any:
    """The module ``benchmarks.bench_<name>``. Raises ConfigError with the nearest name."""
    known = names()
    if name not in known:
        raise ConfigError(f'no benchmark "{name}"{nearest(name, known)} (there are: {", ".join(known)})')
    if str(_ROOT) not in sys.path:
        sys.path.insert(0, str(_ROOT))
    return importlib.import_module(f"benchmarks.bench_{name}")
