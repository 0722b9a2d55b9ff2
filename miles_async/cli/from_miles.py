"""``miles-async convert SCRIPT -o run.toml``: a launch script of Miles or slime as a configuration of ours.

Promises: the script is read and not run; the file is whole or not there, and replaces nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miles_async.cli.load import effect_rules
from miles_async.config.schema import ConfigError
from miles_async.config.toml import text_of
from miles_async.disk.durable import write_whole
from miles_async.migration.script import read
from miles_async.migration.translate import render, translate


def convert(script: Path, out: Path) -> tuple[dict[str, Any], str]:
    """Write ``out``; what was done as a document, and for a reader. Raises ConfigError, FileExistsError."""
    if out.exists():
        raise FileExistsError(f"{out} is there already: it would be replaced")
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: no such directory, {out.parent}")
    try:
        flags = read(text_of(script), is_python=script.suffix == ".py")
    except SyntaxError as error:
        raise ConfigError(f"{script} is no Python: {error}") from None
    found = translate(flags, effect_rules())
    write_whole(out, render(found, script.name).encode())
    document = {"file": str(out), "flags": len(flags.flags), "keys": found.keys, "without": found.without}
    without = [f"  {flag}: {reason}" for flag, reason in found.without.items()]
    said = f"{out}: {len(found.keys)} keys of {len(flags.flags)} flags"
    return document, "\n".join([f"{said}; without one:" if without else said, *without])
