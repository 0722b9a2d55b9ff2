"""A whole run whose late groups are made again: each prompt is trained once, and the bound is kept."""

from __future__ import annotations

from pathlib import Path

from launching import launch, left_behind, summary, write_config

from miles_async.monitor.record_lines import read_transitions

STEPS, BATCH = 4, 8


def test_a_prompt_whose_group_grew_too_old_is_made_again_until_it_is_trained(tmp_path: Path) -> None:
    staleness = {"policy": "recycle", "max_lag": 0, "capacity": 3 * BATCH}
    config, run_dir = write_config(tmp_path, staleness=staleness), tmp_path / "run"
    result = launch(config, run_dir)
    assert result.returncode == 0, result.stderr
    found = summary(run_dir)
    ledger = found["ledger"]
    assert found["status"] == "finished" and found["balanced"] and left_behind(run_dir) == []
    assert ledger["trained"] == STEPS * BATCH and sum(ledger["dropped"].values()) > 0
    assert ledger["dropped"].keys() <= {"stale", "stale_in_flight"}  # ready by then, or still generated
    assert found["max_token_lag"] == 0
    transitions = [*read_transitions(run_dir)]
    trained = [gid for t in transitions if t.kind == "batched" for gid in t.groups]
    prompts = [gid.rpartition("-")[0] for gid in trained]
    assert len(set(prompts)) == len(prompts)
    assert any(not gid.endswith("-0") for gid in trained)  # some of them at a later attempt
    dropped = {gid for t in transitions if t.kind == "dropped" for gid in t.groups}
    dealt = [gid for t in transitions if t.kind == "admitted" for gid in t.groups]
    assert len(set(dealt)) == len(dealt) and dropped <= set(dealt)
