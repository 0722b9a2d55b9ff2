"""A whole run whose payloads lie in a directory: workers and learner are killed, and what is left is what is on record."""

from __future__ import annotations

from pathlib import Path

import redis
from launching import TINY, begin, bus_url, kill, left_behind, summary, wait_for_step, write_config

STEPS, BATCH, INTERVAL = 40, 8, 5


def test_kills_lose_no_payload_and_the_directory_holds_no_more_than_redis_names(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": STEPS},
        rollout=TINY["rollout"] | {"num_workers": 2},
        checkpoint={"save_interval": INTERVAL, "save_hf": False},
        bus={"payload_dir": "payloads"},
    )
    run_dir = tmp_path / "run"
    process = begin(config, run_dir)
    for step, victim in ((3, "rollout-0"), (INTERVAL + 3, "learner-0"), (2 * INTERVAL + 3, "rollout-1")):
        wait_for_step(run_dir, step, process)
        kill(run_dir, victim)
    wait_for_step(run_dir, 3 * INTERVAL, process)
    client = redis.Redis.from_url(bus_url(run_dir))
    held = {key: client.get(key) or b"" for key in client.keys("*payload:*")}
    assert held and max(map(len, held.values())) < 255  # names
    client.close()
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    found = summary(run_dir)
    assert (found["status"], found["steps"], found["balanced"]) == ("finished", STEPS, True)
    assert found["ledger"]["trained"] == STEPS * BATCH and found["ledger"]["dropped"] == {}
    (of_the_run,) = (tmp_path / "payloads").iterdir()
    # those of the last interval, which a damaged newest checkpoint would have trained again, and what was ready beyond
    assert 0 < len(list(of_the_run.iterdir())) <= (INTERVAL + 3) * BATCH
    assert not list(of_the_run.glob("*.partial"))
    assert left_behind(run_dir) == []
