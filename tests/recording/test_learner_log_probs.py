"""The learner's log-probs of a group are read as they were written, and what does not fit the group is not shown."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from web_runs import group, made_run, record_log_probs, record_step, sample

from miles_async.recording.learner_log_probs import items
from miles_async.recording.samples import inspect_sample, samples_of_step, show

GROUP = group("0-1-0", sample(0, [5, 6], [0, 0], masked=1), sample(1, [7], [0]))


def test_inspect_shows_them_for_what_was_trained_and_the_group_is_found_as_before(
    tmp_path: Path, digits_model: Path
) -> None:
    run = made_run(tmp_path / "run", model=digits_model)
    record_step(run, 1, GROUP)
    assert "learner_logprob" not in inspect_sample(run, "0-1-0/0")["samples"][0]["tokens"][0]
    record_log_probs(run, 1, GROUP, flat=[math.nan, -0.75, -1.5])
    found = inspect_sample(run, "0-1-0/0")
    assert [token["learner_logprob"] for token in found["samples"][0]["tokens"]] == [None, -0.75]
    assert "learner   -0.7500" in show(found) and (found["outcome"], found["lease"]) == ("published", "rollout-0/1")
    assert len(samples_of_step(run, 1)) == 2


def test_values_of_another_number_of_tokens_are_no_values_of_the_groups() -> None:
    assert items(1, [GROUP], np.zeros(2, dtype=np.float32), "learner-0/1") == []
    assert [entry.group_id for entry, _ in items(1, [GROUP, GROUP], np.zeros(6, dtype=np.float32), "l/1")] == [
        "0-1-0"
    ] * 2


def test_a_block_that_is_damaged_costs_itself_alone(tmp_path: Path, digits_model: Path) -> None:
    run = made_run(tmp_path / "run", model=digits_model)
    record_step(run, 1, GROUP)
    record_log_probs(run, 1, GROUP, flat=[math.nan, -0.75, -1.5])
    segment = next((run / "record").glob("learner-*.seg"))
    content = bytearray(segment.read_bytes())
    content[-1] ^= 255
    segment.write_bytes(content)
    tokens = inspect_sample(run, "0-1-0/1")["samples"][0]["tokens"]
    assert len(tokens) == 1 and "learner_logprob" not in tokens[0]
