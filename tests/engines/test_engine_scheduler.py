"""Continuous batching: who joins, who leaves, what a pause and new weights do to those under way."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from engine_support import TOLERANCE, VOCAB, hf_logprobs, make_scheduler, request, run
from safetensors.torch import load_file

from miles_async.engines.embedded.request import EngineRequest, version_spans
from miles_async.engines.embedded.scheduler import Scheduler


def load(scheduler: Scheduler, directory: Path, version: str) -> None:
    scheduler.model.load(load_file(directory / "model.safetensors").items(), complete=True)
    scheduler.set_version(version)


def spans(one: EngineRequest) -> list[dict[str, object]]:
    return version_spans(one.version_events, one.version, len(one.output))


def check(one: EngineRequest, directory: Path) -> None:
    expected = hf_logprobs(directory, one.item.prompt, one.output, one.item.sampling.temperature)
    assert one.logprobs == pytest.approx(expected, abs=TOLERANCE)


def test_requests_join_and_leave_at_any_token_and_each_gets_its_own_answer(checkpoint: Path) -> None:
    rng = random.Random(5)
    scheduler = make_scheduler(checkpoint, max_running=7)
    left = [
        request(
            [rng.randrange(VOCAB) for _ in range(rng.randint(1, 60))],
            max_new_tokens=rng.randint(1, 25),
            sampling_seed=rng.randrange(1000),
            temperature=rng.choice([0.7, 1.0, 1.5]),
        )
        for _ in range(40)
    ]
    every = list(left)
    finished: list[EngineRequest] = []
    while len(finished) < len(every):
        if left and rng.random() < 0.4:
            scheduler.submit([left.pop() for _ in range(min(len(left), rng.randint(1, 6)))])
        if scheduler.runnable:
            finished += scheduler.step().finished
        assert scheduler.rows.count <= 7
    assert scheduler.idle
    for one in every:
        assert len(one.output) == one.limit
        check(one, checkpoint)


def test_a_prompt_of_one_token_comes_in_beside_a_long_one(checkpoint: Path) -> None:
    """As a probe of the engine's health does; nothing of it is computed before the pass that samples."""
    short = request([5], max_new_tokens=3, logprob_start_len=0)
    for one in run(make_scheduler(checkpoint), [request(range(40), max_new_tokens=3), short]):
        check(one, checkpoint)
    assert short.input_logprobs == [None]


def test_the_same_seed_gives_the_same_tokens_whatever_the_batch(checkpoint: Path) -> None:
    def asked() -> list[EngineRequest]:
        return [request([i, 2, 3], max_new_tokens=20, sampling_seed=i, temperature=1.0) for i in range(6)]

    together = run(make_scheduler(checkpoint), asked())
    alone = [run(make_scheduler(checkpoint), [one])[0] for one in asked()]
    crowd = [request([9] * 30, max_new_tokens=n, sampling_seed=99) for n in (3, 8, 40)]
    crowded = run(make_scheduler(checkpoint), [*crowd, *asked()])[3:]
    assert [one.output for one in together] == [one.output for one in alone] == [one.output for one in crowded]
    assert len({tuple(one.output) for one in alone}) == 6


def test_a_small_cache_delays_requests_and_changes_no_answer(checkpoint: Path) -> None:
    def asked() -> list[EngineRequest]:
        return [request([i, 7], max_new_tokens=60, sampling_seed=i) for i in range(8)]

    tight = make_scheduler(checkpoint, max_tokens=150)
    done = run(tight, asked())
    assert [one.output for one in done] == [one.output for one in run(make_scheduler(checkpoint), asked())]
    assert any(one.retractions for one in done)  # they grew past the budget and gave way to each other
    assert tight.cache.rows * tight.cache.length <= 150


def test_stop_ids_and_the_end_token_end_a_response_unless_ignored(checkpoint: Path) -> None:
    (free,) = run(make_scheduler(checkpoint), [request([1, 2], max_new_tokens=12, sampling_seed=3)])
    at = 5
    assert free.output[at] not in free.output[:at]
    by_id, by_eos, ignored = run(
        make_scheduler(checkpoint),
        [
            request([1, 2], max_new_tokens=12, sampling_seed=3, stop_token_ids=[95, free.output[at]]),
            request([1, 2], max_new_tokens=12, sampling_seed=3, eos=free.output[at]),
            request([1, 2], max_new_tokens=12, sampling_seed=3, eos=free.output[at], ignore_eos=True),
        ],
    )
    for one in (by_id, by_eos):
        assert one.output == free.output[: at + 1]
        assert one.finish == {"type": "stop", "matched": free.output[at]}
    assert ignored.output == free.output
    assert ignored.finish == {"type": "length", "length": 12}


def test_a_stop_string_ends_a_response_even_across_tokens(checkpoint: Path) -> None:
    (free,) = run(make_scheduler(checkpoint), [request([1, 2], max_new_tokens=12, sampling_seed=3)])
    stop = f"{free.output[3]} w{free.output[4]}"  # the end of one word and the beginning of the next
    (one,) = run(make_scheduler(checkpoint), [request([1, 2], max_new_tokens=12, sampling_seed=3, stop=["zz", stop])])
    assert one.output == free.output[:5]
    assert one.finish == {"type": "stop", "matched": stop}


def test_greedy_takes_the_likeliest_token_and_top_k_1_is_greedy(checkpoint: Path) -> None:
    zero, one, biased = run(
        make_scheduler(checkpoint),
        [
            request([5], max_new_tokens=8, temperature=0.0),
            request([5], max_new_tokens=8, temperature=1.0, top_k=1),
            request([5], max_new_tokens=8, logit_bias={"11": 1000.0}),
        ],
    )
    assert zero.output == one.output
    assert biased.output == [11] * 8
    check(zero, checkpoint)


def test_no_tokens_asked_is_no_tokens_given(checkpoint: Path) -> None:
    (one,) = run(make_scheduler(checkpoint), [request([5, 6], max_new_tokens=0, logprob_start_len=0)])
    assert (one.output, one.logprobs) == ([], [])
    assert one.input_logprobs is not None and len(one.input_logprobs) == 2


def test_a_retracted_request_has_each_span_from_its_own_versions_model(checkpoint: Path, other: Path) -> None:
    scheduler = make_scheduler(checkpoint)
    asked = [request([i, 4, 8], max_new_tokens=20 + i, sampling_seed=i) for i in range(5)]
    scheduler.submit(asked)
    for _ in range(7):
        scheduler.step()
    assert scheduler.pause("retract") == []
    assert not scheduler.runnable
    assert scheduler.flush()
    load(scheduler, other, "1")
    scheduler.resume()
    run(scheduler, [])
    while not scheduler.idle:
        scheduler.step()
    for one in asked:
        assert one.retractions == 1
        n = len(one.output)
        assert spans(one) == [{"version": "0", "start": 0, "end": 7}, {"version": "1", "start": 7, "end": n}]
        old = hf_logprobs(checkpoint, one.item.prompt, one.output)
        new = hf_logprobs(other, one.item.prompt, one.output)
        assert one.logprobs == pytest.approx(old[:7] + new[7:], abs=TOLERANCE)


def test_in_place_keeps_the_cache_so_later_tokens_mix_both_models(checkpoint: Path, other: Path) -> None:
    scheduler = make_scheduler(checkpoint)
    one = request([3, 4, 8], max_new_tokens=16, sampling_seed=1)
    scheduler.submit([one])
    for _ in range(6):
        scheduler.step()
    scheduler.pause("in_place")
    assert not scheduler.flush()  # a running request holds it
    load(scheduler, other, "1")
    scheduler.resume()
    while not scheduler.idle:
        scheduler.step()
    assert (one.retractions, spans(one)[1]) == (0, {"version": "1", "start": 6, "end": 16})
    new = hf_logprobs(other, one.item.prompt, one.output)
    assert one.logprobs[6:] != pytest.approx(new[6:], abs=1e-2)


def test_pause_by_abort_ends_all_with_what_they_have(checkpoint: Path) -> None:
    scheduler = make_scheduler(checkpoint, max_running=1)
    running, waiting = request([1], max_new_tokens=50), request([2], max_new_tokens=50)
    scheduler.submit([running, waiting])
    for _ in range(4):
        scheduler.step()
    ended = scheduler.pause("abort")
    assert {id(one) for one in ended} == {id(running), id(waiting)}
    assert running.finish is not None and running.finish["message"] == "Aborted"
    assert (len(running.output), len(running.logprobs)) == (4, 4)
    assert waiting.finish is not None and waiting.finish["message"] == "Abort in waiting queue"
    assert scheduler.idle


def test_an_abort_leaves_the_others_alone(checkpoint: Path) -> None:
    scheduler = make_scheduler(checkpoint)
    asked = [request([i], max_new_tokens=15, sampling_seed=i) for i in range(5)]
    scheduler.submit(asked)
    for _ in range(5):
        scheduler.step()
    scheduler.abort([asked[0], asked[3]])
    assert scheduler.abort([asked[0]]) == []  # ended already
    while not scheduler.idle:
        scheduler.step()
    for one in asked:
        assert len(one.output) == (5 if one in (asked[0], asked[3]) else 15)
        check(one, checkpoint)


def test_a_version_without_new_tokens_leaves_no_span() -> None:
    assert version_spans([("0", 3), ("1", 3), ("2", 5)], "3", 5) == [
        {"version": "0", "start": 0, "end": 3},
        {"version": "2", "start": 3, "end": 5},
    ]
    assert version_spans([("0", 3)], "0", 5) == [{"version": "0", "start": 0, "end": 5}]
    assert version_spans([], "0", 0) == []
