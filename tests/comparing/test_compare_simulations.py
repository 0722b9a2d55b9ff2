"""A simulation beside a run: the same figures under the same names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from simulations import PLAIN

from miles_async.comparing.compare import compare, read_all, show
from miles_async.comparing.curves import read_curve
from miles_async.comparing.ledger_figures import ledger_figures
from miles_async.comparing.picture import draw
from miles_async.monitor.record_lines import TransitionLine, read_transitions
from miles_async.simulation.directory import simulate_into
from miles_async.simulation.reading import parse

GIVEN = (
    "staleness.policy=token_mask",
    "staleness.max_lag=2",
    "lengths.sigma=1.2",
    "lengths.mean=1500",
    "simulation.transitions=true",
)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("compared") / "simulated"
    simulate_into(parse(PLAIN, GIVEN), directory)
    return directory


def a_run(directory: Path) -> Path:
    """Two steps of a run."""
    directory.mkdir()
    values = {"raw_reward": 0.5, "n_tokens": 100.0, "n_samples": 10.0, "perf/step_time": 2.0, "perf/train_time": 1.0}
    lines = [{"actor": "learner-0", "step": step, "time": step, "values": values} for step in (1, 2)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = '[model]\nhf_checkpoint = "m"\n[learner]\nlr = 0.1\nbalance_data = true\n'
    (directory / "config.toml").write_text(config + '[staleness]\nmax_lag = 4\npolicy = "token_mask"\n')
    transitions = [
        {"id": "1-0", "kind": "published", "groups": ["a"], "versions": [[0, 60]]},
        {"id": "1-1", "kind": "published", "groups": ["b"], "versions": [[0, 30], [1, 10]]},
        {"id": "1-2", "kind": "published", "groups": ["c"], "versions": [[0, 25]]},
        {"id": "1-3", "kind": "batched", "groups": ["a"], "step": 1},
        {"id": "1-4", "kind": "batched", "groups": ["b"], "step": 2},
        {"id": "1-5", "kind": "dropped", "groups": ["c"], "reason": "stale"},
    ]
    (directory / "transitions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in transitions))
    return directory


def test_a_run_and_a_simulation_have_the_same_figures(simulated: Path, tmp_path: Path) -> None:
    found = compare(read_all([a_run(tmp_path / "run"), simulated]))
    run, other = found["figures"]["run"], found["figures"]["simulated"]
    named = {"samples_per_s", "samples_per_step", "learner_busy", "lag_tokens", "lag_groups", "wasted_share", "steps"}
    assert all(run[name] is not None and other[name] is not None for name in named)
    assert run["lag_tokens"] == {"0": 0.7, "1": 0.3} and run["lag_groups"] == {"0": 0.5, "1": 0.5}
    assert run["wasted_share"] == 0.2 and run["samples_per_step"] == 10.0
    assert other["masked"] > 0 and other["length_bias"] == pytest.approx(1.0, abs=0.1) and other["share_of_ideal"] > 0.5
    assert other["reward_at_steps"] is None and found["simulations"] == ["simulated"]
    assert set(found["differences"]) == {"staleness.max_lag"}  # of what both have; a learner's lr is no simulation's
    text = show(found)
    assert (
        "tokens by lag" in text and "0: 70%, 1: 30%" in text and "simulated is a simulation: it has no rewards" in text
    )


def test_a_simulations_steps_and_transitions_add_up_to_its_summary(simulated: Path) -> None:
    summary = json.loads((simulated / "summary.json").read_text())
    curve = read_curve(simulated)
    assert curve.is_simulation and curve.figures["steps"] == summary["steps"] == len(curve.points)
    assert curve.points[-1].seconds == pytest.approx(summary["wall_s"])
    assert curve.figures["mean_token_lag"] == pytest.approx(summary["mean_token_lag"])
    told = ledger_figures(read_transitions(simulated), 2)
    assert {name: told[name] for name in told} == {name: pytest.approx(summary[name], abs=2e-6) for name in told}


def test_a_group_that_was_batched_again_counts_as_the_last_time() -> None:
    lines = [
        TransitionLine("1-0", "published", ("a",), versions=((0, 10),)),
        TransitionLine("1-1", "batched", ("a",), step=1),
        TransitionLine("2-0", "published", ("b",), versions=((0, 5),)),
        TransitionLine("2-1", "batched", ("b",), step=1),
        TransitionLine("2-2", "published", ("c",), versions=((0, 5),)),
        TransitionLine("2-3", "extended", ("c",), step=1),
    ]
    assert ledger_figures(lines, None) == {"lag_tokens": {"0": 1.0}, "lag_groups": {"0": 1.0}, "wasted_share": 0.0}
    assert ledger_figures([], None) == {}


def test_simulations_alone_are_drawn_by_throughput(simulated: Path, tmp_path: Path) -> None:
    simulate_into(parse(PLAIN, ["simulation.ideal=false"]), tmp_path / "other")
    found = compare(read_all([simulated, tmp_path / "other"]))
    assert {"lengths.mean", "lengths.sigma", "staleness.policy", "simulation.transitions"} <= set(found["differences"])
    draw(read_all([simulated, tmp_path / "other"]), tmp_path / "both.png")
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
