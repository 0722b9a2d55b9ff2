"""How near a simulation comes that was calibrated on one recorded run: other lags, engines, batches and lengths, predicted
and run.

The real loop (dealer, ledger, workers, router, broadcaster, learner with its bus) on synthetic engines, whose steps take
longer the more requests they run, and a learner whose steps take as long as their tokens (``lib/predicted/world.py``). One
run is recorded, ``miles-async simulate --from`` is calibrated on it and knows nothing else; then each of HELD_OUT is
predicted, and run. ``throughput``: groups a second behind the step FIRST; ``lag``: mean of the trained tokens, in versions,
of all steps. ``error``: of a prediction that draws lengths by the distribution (fitted, or of the held-out run as it is
stated); ``error_of_trace``: of one that is given the lengths of the held-out run itself, so that chance has no part in it.
TABLE_STEPS steps each, TABLE_ONLY names some of them. ``miles-async bench simulator_table``.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks.lib import timed_run
from benchmarks.lib.launched import launched, python_path, step_ends
from benchmarks.lib.predicted.world import SAMPLES, Known, World, to_environment
from miles_async.comparing.ledger_figures import ledger_figures
from miles_async.monitor.record_lines import TransitionLine, read_transitions
from miles_async.simulation.calibrate import calibrate
from miles_async.simulation.draws import Draws
from miles_async.simulation.loop import simulate
from miles_async.simulation.settings import SimulationConfig
from miles_async.staleness.choice import policy_of

STEPS = 20
SEEDS = 5  # of a prediction that draws: its mean
FIRST = 3  # the step from whose end on throughput counts
BATCH_SIZE = 16
SLOTS = 48  # groups of all workers together
CONFIG = timed_run.config(
    BATCH_SIZE,
    SLOTS,
    "benchmarks.lib.predicted.parts.WorldLearner",
    "benchmarks.lib.predicted.parts.WorldEngine",
    rollout={"n_samples_per_prompt": SAMPLES},
    staleness={"policy": "fifo", "max_lag": 2},
)


class Held(NamedTuple):
    """A configuration: what it has otherwise than the recorded run, as a run's keys (a simulation's are alike but for
    engines)."""

    name: str
    settings: tuple[str, ...] = ()
    engines: int = 2
    lengths: World | None = None  # None: as in the recorded run


RECORDED = Held("recorded: lag 2, 2 engines, batches of 16, sigma 0.6")
HELD_OUT = (
    Held("lag 0", ("staleness.max_lag=0",)),
    Held("lag 5, drop", ("staleness.max_lag=5", "staleness.policy=drop")),
    Held("3 engines", engines=3),
    Held("batches of 32", ("rollout.rollout_batch_size=32",)),
    Held("long tail: sigma 1.1", lengths=World(sigma=1.1)),
    Held(
        "1 engine, lag 1, batches of 24, Pareto, token_mask",
        ("staleness.max_lag=1", "rollout.rollout_batch_size=24", "staleness.policy=token_mask"),
        engines=1,
        lengths=World(kind="pareto"),
    ),
)


def run() -> dict[str, Any]:
    """Raises RuntimeError: a run failed."""
    steps = int(os.environ.get("TABLE_STEPS", STEPS))
    only = os.environ.get("TABLE_ONLY", "")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        config = timed_run.write(Path(directory), CONFIG)
        recorded = Path(directory) / "recorded"
        world = World()
        _launch(config, recorded, RECORDED, world, steps)
        fitted = calibrate(recorded)
        for number, held in enumerate((RECORDED, *HELD_OUT)):
            if held is not RECORDED and only and only not in held.name:
                continue
            run_dir = recorded
            if held is not RECORDED:
                run_dir = Path(directory) / f"held-{number}"
                load = _launch(config, run_dir, held, world._replace(salt=number), steps)
            else:
                load = None
            rows.append(compared(recorded, run_dir, held, world, number, steps) | {"others_cores": load})
            print(json.dumps(rows[-1]), file=sys.stderr)
    held_out = rows[1:]
    return {
        "steps": steps,
        "world": World()._asdict(),
        "fitted": _fitted(fitted.config),
        "about": {name: value for name, value in fitted.about.items() if name not in ("from", "run")},
        "runs": rows,
        "worst": {
            name: max((abs(row[name]) for row in held_out), default=None)
            for name in ("error", "error_of_trace", "lag_off", "lag_off_of_trace")
        },
        "cores": os.cpu_count(),
    }


def compared(recorded: Path, run_dir: Path, held: Held, world: World, salt: int, steps: int) -> dict[str, Any]:
    """A run beside what is predicted of it from ``recorded``."""
    settings = [*held.settings, f"engines.num_engines={held.engines}", f"simulation.num_steps={steps}"]
    own = (held.lengths or world)._replace(salt=0 if held is RECORDED else salt)
    stated = held.lengths.settings if held.lengths is not None else []
    ends = step_ends(run_dir)
    throughput = _groups(read_transitions(run_dir), steps) / (ends[steps] - ends[FIRST])
    lag = _mean_lag(read_transitions(run_dir))
    found: dict[str, Any] = {"run": held.name, "groups_per_s": round(throughput, 3), "mean_lag": round(lag, 3)}
    config = calibrate(recorded, [*settings, *stated, "simulation.transitions=true"]).config
    drawn = [_predicted(_seeded(config, seed), None, steps) for seed in range(SEEDS)]
    known = _predicted(config, Known(own, round(config.lengths.prompt_mean)), steps)
    for suffix, figures in (("", drawn), ("_of_trace", [known])):
        predicted, lag_then = (statistics.fmean(values) for values in zip(*figures, strict=True))
        found |= {
            f"predicted{suffix}": round(predicted, 3),
            f"error{suffix}": round(predicted / throughput - 1, 4),
            f"predicted_lag{suffix}": round(lag_then, 3),
            f"lag_off{suffix}": round(lag_then - lag, 3),
        }
    return found


def _seeded(config: SimulationConfig, seed: int) -> SimulationConfig:
    return msgspec.structs.replace(config, simulation=msgspec.structs.replace(config.simulation, seed=seed))


def _predicted(config: SimulationConfig, draws: Draws | None, steps: int) -> tuple[float, float]:
    """Groups a second behind FIRST, and the mean lag."""
    timed = msgspec.structs.replace(config, simulation=msgspec.structs.replace(config.simulation, timeline=True))
    loop = simulate(timed, policy_of(config.staleness, config.rollout), draws)
    ends = {line["step"]: line["time"] for line in loop.record.lines}
    lines = [msgspec.convert(line, TransitionLine) for line in loop.moments.transitions or []]
    return _groups(lines, steps) / (ends[steps] - ends[FIRST]), _mean_lag(lines)


def _groups(lines: Iterable[TransitionLine], steps: int) -> int:
    return sum(len(t.groups) for t in lines if t.kind in ("batched", "extended") and FIRST < t.step <= steps)


def _mean_lag(lines: Iterable[TransitionLine]) -> float:
    shares: Mapping[str, float] = ledger_figures(lines, None)["lag_tokens"]
    return sum(int(lag) * share for lag, share in shares.items())


def _launch(config: Path, run_dir: Path, held: Held, world: World, steps: int) -> float:
    """Run it; the cores that other processes took meanwhile."""
    lengths = world if held.lengths is None else held.lengths._replace(salt=world.salt)
    settings: Sequence[str] = [f"run.num_steps={steps}", f"engine.num_engines={held.engines}", *held.settings]
    environment = to_environment(lengths) | {"PYTHONPATH": python_path()}
    cpu, _ = launched(config, run_dir, [*settings], environment)
    return round(cpu.until(step_ends(run_dir)[steps])["others_cores"], 3)


def _fitted(config: SimulationConfig) -> dict[str, Any]:
    """What the calibration found of the world's times."""
    names = ("engines", "learner", "links")
    sections = {name: msgspec.structs.asdict(getattr(config, name)) for name in names}
    times = {f"{name}.{key}": value for name in names for key, value in sections[name].items() if key.endswith("_s")}
    lengths = config.lengths
    return times | {"lengths": [lengths.kind, lengths.mean, lengths.sigma, lengths.alike]}


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
