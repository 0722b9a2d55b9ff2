"""What the model wrote in a step, read from the record of a run, also while it grows and where it is damaged."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from web_runs import append, group, made_run, record_log_probs, record_step, sample

from miles_async.monitor.record_lines import TransitionLine
from miles_async.recording.samples import samples_of_step
from miles_async.text.tokenizer import Tokenizer
from miles_async.web.recorded import NotKeptError
from miles_async.web.sample_rows import Wanted
from miles_async.web.samples import PAGE, RecordedSteps


def test_a_step_has_the_samples_that_it_trained_on_with_their_texts(tmp_path: Path, digits_model: Path) -> None:
    tokenizer = Tokenizer(digits_model)
    prompt, answer = tokenizer.encode("120"), tokenizer.encode("34")
    run = made_run(tmp_path / "run", model=digits_model)
    made = group("0-1-0", sample(0, answer, [0] * len(answer)), sample(1, [], []), prompt=prompt)
    record_step(run, 1, made)
    record_step(run, 2, group("0-2-0", sample(0, answer, [1] * len(answer), reward=1.0), prompt=prompt))
    steps = RecordedSteps(run)
    found = steps.step(1, Wanted())
    assert (found["first"], found["last"], found["samples"], found["missing"]) == (1, 2, 2, [])
    assert (found["rows"][0]["prompt"], found["rows"][0]["response"], found["rows"][0]["lag"]) == ("120", "34", 0)
    assert found["rows"][1]["response"] == "" and found["rows"][1]["lag"] is None
    assert steps.step(None, Wanted())["step"] == 2
    assert steps.step(1, Wanted(text="nowhere"))["found"] == 0


def test_a_sample_is_told_token_by_token(tmp_path: Path, digits_model: Path) -> None:
    tokenizer = Tokenizer(digits_model)
    tokens = tokenizer.encode("123")
    run = made_run(tmp_path / "run", model=digits_model)
    record_step(run, 4, group("0-1-0", sample(7, tokens, [1, 1, 3], masked=1)))
    found = RecordedSteps(run).sample("0-1-0", 7, 4)
    assert "".join(found["tokens"]["text"]) == "123" and found["lag"] == 2
    assert found["tokens"]["version"] == [1, 1, 3] and found["tokens"]["trained"] == [False, True, True]
    assert found["tokens"]["logprob"] == [0.0, -0.5, -1.0] and found["tokens"]["teacher"] == []
    with pytest.raises(NotKeptError, match=r"no sample 3 \(one of: 7\)"):
        RecordedSteps(run).sample("0-1-0", 3, 4)


def test_the_learners_log_probs_stand_beside_the_engines_where_they_are_kept(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", model="/nowhere")
    made = group("0-1-0", sample(0, [5, 6], [0, 0]), sample(1, [7], [0], masked=1)), group("0-2-0", sample(0, [5], [0]))
    record_step(run, 1, *made)
    steps = RecordedSteps(run)

    def learner(group_id: str, index: int) -> list[float | None]:
        return steps.sample(group_id, index, 1)["tokens"]["learner"]

    assert learner("0-1-0", 0) == []
    record_log_probs(run, 1, *made, flat=[-0.25, -0.75, math.nan, -3.0])
    assert (learner("0-1-0", 0), learner("0-1-0", 1), learner("0-2-0", 0)) == ([-0.25, -0.75], [None], [-3.0])
    record_log_probs(run, 1, made[0], flat=[-0.5, -0.5, math.nan], life=2)  # trained again, by a later life
    os.utime(run / "record" / "learner-0-2-00001.seg", (2e9, 2e9))
    assert (learner("0-1-0", 0), learner("0-2-0", 0)) == ([-0.5, -0.5], [-3.0])
    assert steps.step(1, Wanted())["missing"] == []


def test_without_its_tokenizer_the_recorded_text_is_shown_and_ids_for_tokens(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", model="/nowhere")
    record_step(run, 1, group("0-1-0", sample(0, [5, 6], [0, 0], text="as it was"), prompt=[3, 4]))
    steps = RecordedSteps(run)
    row = steps.step(1, Wanted())["rows"][0]
    assert (row["prompt"], row["response"]) == ("[3][4]", "as it was")
    assert steps.sample("0-1-0", 0, 1)["tokens"]["text"] == ["[5]", "[6]"]


def test_steps_and_groups_that_come_later_are_found_and_a_rollback_takes_steps_back(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    steps = RecordedSteps(run)
    with pytest.raises(NotKeptError, match="no step of this run is on record yet"):
        steps.step(None, Wanted())
    for step in (1, 2, 3):
        record_step(run, step, group(f"0-{step}-0", sample(0, [5], [0])))
        assert steps.step(None, Wanted())["step"] == step
    record_step(run, 2, group("0-9-0", sample(0, [5], [1])))
    found = steps.step(None, Wanted())
    assert (found["step"], found["rows"][0]["group"]) == (2, "0-9-0")
    with pytest.raises(NotKeptError, match="step 3 is not on record: there are 1 to 2"):
        steps.step(3, Wanted())


def test_a_group_that_is_not_kept_or_damaged_costs_itself_and_is_named(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    record_step(run, 1, group("0-1-0", sample(0, [5], [0])))
    record_step(run, 1, group("0-1-0", sample(0, [5], [0])), group("0-2-0", sample(0, [5], [0])))
    segment = next((run / "record").glob("*.seg"))
    content = bytearray(segment.read_bytes())
    content[-1] ^= 255  # of the second block's body
    segment.write_bytes(content)
    found = RecordedSteps(run).step(1, Wanted())
    assert found["rows"] == [] and "is damaged at byte" in found["missing"][0]
    segment.unlink()
    found = RecordedSteps(run).step(1, Wanted())
    assert found["samples"] == 0 and "the run keeps no groups" in found["missing"][0]


def test_a_group_that_was_quarantined_is_not_among_the_samples_of_its_step(tmp_path: Path, digits_model: Path) -> None:
    run = made_run(tmp_path / "run", model=digits_model)
    record_step(run, 1, group("0-1-0", sample(0, [5], [0])), group("0-2-0", sample(0, [5], [0])))
    steps = RecordedSteps(run)
    assert steps.step(1, Wanted())["samples"] == 2
    append(run / "transitions.jsonl", TransitionLine("9-0", "quarantined", ("0-1-0",), step=1, reason="not_finite"))
    assert [row["group"] for row in steps.step(1, Wanted())["rows"]] == ["0-2-0"]
    assert [found["group"] for found in samples_of_step(run, 1)] == ["0-2-0"]


def test_a_step_of_many_samples_comes_in_parts(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    record_step(run, 1, group("0-1-0", *(sample(n, [5], [0], reward=n / 100) for n in range(PAGE + 5))))
    steps = RecordedSteps(run)
    first, rest = steps.step(1, Wanted(sort="reward")), steps.step(1, Wanted(sort="reward"), PAGE)
    assert [row["index"] for row in first["rows"] + rest["rows"]] == list(range(PAGE + 5))
    assert first["found"] == PAGE + 5 and len(rest["rows"]) == 5
