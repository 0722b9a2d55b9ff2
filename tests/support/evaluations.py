"""A configuration that evaluates, and snapshots to be evaluated."""

from __future__ import annotations

import os
from pathlib import Path

from miles_async.weights.snapshot import WEIGHTS_FILE

MINIMAL = """
[model]
hf_checkpoint = "builtin:digits"
[data]
prompt_data = "builtin:repeat"
[algorithm]
correction = "behaviour"
"""


EVAL = """
[eval]
eval_interval = 4
[eval.datasets.seen]
prompt_data = "builtin:repeat"
"""


def snapshot(root: Path, version: int) -> Path:
    path = root / f"i0001-v{version:08d}"
    path.mkdir(parents=True)
    (path / WEIGHTS_FILE).write_bytes(bytes([version]) * 10)
    (path / "config.json").write_text("{}")
    os.utime(path, (version, version))
    return path
