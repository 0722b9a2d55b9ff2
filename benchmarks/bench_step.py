"""What a step costs: CPU µs per sample of each role, and by layer, of a small real run between two of its steps.

STEP_CONFIG (the quickstart) runs for STEP_STEPS steps more than it takes to be under way, with STEP_SET ("section.key=value
...") laid over it; start and end do not count. The figure of a role is its processes' CPU time less the sampler's; the
layers are samples of call stacks (``lib/cpu_sampler.py``, switched on by the environment, so that a run that is not profiled
has nothing of it; ``lib/layers.py`` is the table). `unsampled`: what the sampler has missed. ``miles-async bench step``.

STEP_BEFORE=/path/to/a/checkout: also its roles, each STEP_REPEATS times in turns with this one's, nobody sampled; medians.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.lib.cpu_sampler import DIRECTORY, PROFILER, Line
from benchmarks.lib.launched import ROLES, ROOT, by_role, launched, python_path, step_ends
from miles_async.cli.load import load

STEPS = 50
REPEATS = 3
FIRST = 10  # the step from whose end on is counted
NO_TARGET = "run.target_reward=1e9"
FUNCTIONS = 8  # of each role that are named


class Plan(NamedTuple):
    """What is run, and from which step's end to which is counted."""

    config: Path | None  # None: the quickstart of the checkout
    settings: list[str]
    steps: int

    @property
    def last(self) -> int:
        return FIRST + self.steps

    def file(self, root: Path) -> Path:
        return self.config or root / "examples" / "quickstart.toml"

    def samples(self) -> int:
        """That are trained on in the steps that count."""
        rollout = load(self.file(ROOT), self.settings).rollout
        return self.steps * rollout.rollout_batch_size * rollout.n_samples_per_prompt


class Measured(NamedTuple):
    """CPU µs per sample by role, the moments between which it was spent, and which pid had which role."""

    roles: Counter[str]
    begin: float
    end: float
    pids: dict[int, str]


def run(config: Path | None = None, steps: int | None = None, settings: list[str] | None = None) -> dict[str, Any]:
    """Figures in µs of CPU per sample. Raises RuntimeError: the run failed."""
    ask = os.environ.get
    config = Path(ask("STEP_CONFIG", "")).absolute() if config is None and ask("STEP_CONFIG") else config
    steps = steps or int(ask("STEP_STEPS", STEPS))
    given = ask("STEP_SET", "").split() if settings is None else settings
    plan = Plan(config, [NO_TARGET, "monitor.live=off", *given, f"run.num_steps={FIRST + steps + 1}"], steps)
    found = profile(plan)
    if before := ask("STEP_BEFORE"):
        found["compared"] = compare(plan, Path(before).absolute(), int(ask("STEP_REPEATS", REPEATS)))
    return found


def profile(plan: Plan) -> dict[str, Any]:
    """One run of this checkout, sampled."""
    trained = plan.samples()
    with tempfile.TemporaryDirectory() as directory:
        samples = Path(directory) / "samples"
        samples.mkdir()
        environment = {DIRECTORY: str(samples), "PYTHONPATH": python_path(ROOT / "benchmarks" / "lib" / "sampled")}
        measured = measure(plan, ROOT, environment)
        places = _places(samples, measured)
    roles = {role: _role(total, places.get(role, Counter()), trained) for role, total in measured.roles.items()}
    layers: Counter[str] = Counter()
    for role, figures in roles.items():
        layers.update(figures["layers"] or {role: figures["us_per_sample"]})
    total = sum(figures["us_per_sample"] for figures in roles.values())
    return {
        "config": plan.file(ROOT).name,
        "settings": plan.settings,
        "steps": plan.steps,
        "samples_per_step": trained // plan.steps,
        "step_ms": round((measured.end - measured.begin) / plan.steps * 1e3, 1),
        "cpu_ms_per_step": round(total * trained / plan.steps / 1e3, 1),
        "us_per_sample": {role: figures["us_per_sample"] for role, figures in roles.items()},
        "layers": _largest_first(layers),
        "roles": roles,
        "cores": os.cpu_count(),
    }


def compare(plan: Plan, before: Path, repeats: int) -> dict[str, Any]:
    """Medians of µs per sample by role, here and in another checkout, and here over there."""
    runs: dict[Path, list[Counter[str]]] = {before: [], ROOT: []}
    for index in range(repeats):
        for root in runs if index % 2 == 0 else reversed(runs):
            runs[root].append(measure(plan, root, {"PYTHONPATH": python_path(root)}).roles)
            print(root, json.dumps(_largest_first(runs[root][-1])), file=sys.stderr)
    there, here = ({role: median(one[role] for one in made) for role in made[0]} for made in runs.values())
    there["all"], here["all"] = sum(there.values()), sum(here.values())
    return {
        role: {
            "before": round(there.get(role, 0.0), 1),
            "now": round(here[role], 1),
            "ratio": round(here[role] / there[role], 3) if there.get(role) else None,
        }
        for role in here
    }


def measure(plan: Plan, root: Path, environment: Mapping[str, str]) -> Measured:
    """One run of the checkout ``root``."""
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        cpu, _ = launched(plan.file(root), run_dir, plan.settings, environment, root)
        ends = step_ends(run_dir)
    begin, end = ends[FIRST], ends[plan.last]
    return Measured(_per_sample(by_role(cpu.between(begin, end)), plan.samples()), begin, end, cpu.roles())


def _places(directory: Path, measured: Measured) -> dict[str, Counter[tuple[str, str]]]:
    """Of each role, the CPU seconds of each layer and function in the steps that count."""
    places: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for file in directory.glob("*.jsonl"):
        name = measured.pids.get(int(file.stem), "?")
        for text in file.read_text().splitlines():
            line = Line(*json.loads(text))
            if measured.begin < line.time <= measured.end:
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
