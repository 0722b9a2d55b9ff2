"""What a step costs: CPU µs per sample of each role, and by layer, of a small real run between two of its steps.

STEP_CONFIG (the quickstart) runs for STEP_STEPS steps more than it takes to be under way, with STEP_SET ("section.key=value
...") laid over it; start and end do not count. The figure of a role is its processes' CPU time less the sampler's; the
layers are samples of call stacks (``lib/cpu_sampler.py``, switched on by the environment, so that a run that is not profiled
has nothing of it; ``lib/layers.py`` is the table). `unsampled`: what the sampler has missed. ``miles-async bench step``.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.lib.cpu_sampler import DIRECTORY, PROFILER, Line
from benchmarks.lib.launched import ROLES, ROOT, by_role, launched, python_path, step_ends
from miles_async.cli.load import load

CONFIG = ROOT / "examples" / "quickstart.toml"
STEPS = 50
FIRST = 10  # the step from whose end on is counted
NO_TARGET = "run.target_reward=1e9"
FUNCTIONS = 8  # of each role that are named


def run(config: Path | None = None, steps: int | None = None, settings: list[str] | None = None) -> dict[str, Any]:
    """Figures in µs of CPU per sample. Raises RuntimeError: the run failed."""
    config = config or Path(os.environ.get("STEP_CONFIG", CONFIG))
    steps = steps or int(os.environ.get("STEP_STEPS", STEPS))
    settings = os.environ.get("STEP_SET", "").split() if settings is None else settings
    last = FIRST + steps
    settings = [NO_TARGET, "monitor.live=off", *settings, f"run.num_steps={last + 1}"]
    rollout = load(config, settings).rollout
    with tempfile.TemporaryDirectory() as directory:
        samples, run_dir = Path(directory) / "samples", Path(directory) / "run"
        samples.mkdir()
        environment = {DIRECTORY: str(samples), "PYTHONPATH": python_path(ROOT / "benchmarks" / "lib" / "sampled")}
        cpu, _ = launched(config, run_dir, settings, environment)
        ends = step_ends(run_dir)
        begin, end = ends[FIRST], ends[last]
        places = _places(samples, cpu.roles(), begin, end)
    trained = steps * rollout.rollout_batch_size * rollout.n_samples_per_prompt
    totals = _per_sample(by_role(cpu.between(begin, end)), trained)
    roles = {role: _role(total, places.get(role, Counter()), trained) for role, total in totals.items()}
    layers: Counter[str] = Counter()
    for role, figures in roles.items():
        layers.update(figures["layers"] or {role: figures["us_per_sample"]})
    return {
        "config": config.name,
        "settings": settings,
        "steps": steps,
        "samples_per_step": trained // steps,
        "step_ms": round((end - begin) / steps * 1e3, 1),
        "cpu_ms_per_step": round(
            sum(figures["us_per_sample"] for figures in roles.values()) * trained / steps / 1e3, 1
        ),
        "us_per_sample": {role: figures["us_per_sample"] for role, figures in roles.items()},
        "layers": _largest_first(layers),
        "roles": roles,
        "cores": os.cpu_count(),
    }


def _places(directory: Path, roles: Mapping[int, str], begin: float, end: float) -> dict[str, Counter[tuple[str, str]]]:
    """Of each role, the CPU seconds of each layer and function between two moments."""
    places: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for file in directory.glob("*.jsonl"):
        name = roles.get(int(file.stem), "?")
        for text in file.read_text().splitlines():
            line = Line(*json.loads(text))
            if begin < line.time <= end:
                for layer, function, seconds in line.places:
                    places[ROLES.get(name, name)][layer, function] += seconds
    return places


def _role(total: float, places: Counter[tuple[str, str]], trained: int) -> dict[str, Any]:
    """The figures of one role, without what the sampler took."""
    per_sample = _per_sample(places, trained)
    total -= per_sample.pop(PROFILER, 0.0)
    layers: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for (layer, function), figure in per_sample.items():
        layers[layer] += figure
        functions[function] += figure
    if places:
        layers["unsampled"] = total - sum(layers.values())
    return {
        "us_per_sample": round(total, 1),
        "layers": _largest_first(layers),
        "functions": _largest_first(Counter(dict(functions.most_common(FUNCTIONS)))),
    }


def _per_sample(seconds: Counter[Any], trained: int) -> Counter[Any]:
    return Counter({key: value * 1e6 / trained for key, value in seconds.items()})


def _largest_first(figures: Counter[str]) -> dict[str, float]:
    return {key: round(value, 1) for key, value in figures.most_common() if abs(value) >= 0.05}


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
