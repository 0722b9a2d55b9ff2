"""What lies between engines and learner is found from the moments of a run."""

from __future__ import annotations

import numpy as np
import pytest

from miles_async.simulation.chain_fit import learning_of, links_of, rewards_of, updates_of
from miles_async.simulation.observations import Observed, ObservedGroup, ObservedStep, ObservedUpdate

ADMIT_S, PUBLISH_S, BATCH_S, OFFER_S, PAUSED_S = 0.05, 0.02, 0.03, 0.04, 0.3
STEPS = 30


def chain() -> Observed:
    """A synchronous run of one group a step, of two engines in two waves; every link takes its time."""
    seen, clock, rng = Observed(), 0.0, np.random.default_rng(3)
    for number in range(1, STEPS + 1):
        name, tokens = str(number), int(rng.integers(100, 400))
        seen.admissions.append((clock, (name,)))
        began = clock + ADMIT_S
        graded = began + 0.01 * tokens + (reward := float(rng.lognormal(-1.0, 0.5)))
        group = ObservedGroup(clock, began, graded - reward, graded, graded + PUBLISH_S, lengths=(tokens,), prompt=50)
        seen.groups[name] = group
        train = 1.0 + 0.002 * (tokens + 50) + (0.5 if number % 2 == 0 else 0.0)
        ended = graded + PUBLISH_S + BATCH_S + train
        seen.batches.append(graded + PUBLISH_S)
        seen.steps[number] = ObservedStep([name], 1, graded + PUBLISH_S, ended, train, 2.0 if number == 10 else 0.0)
        clock = ended + OFFER_S
        for engine in ("engine-0", "engine-1"):
            clock += PAUSED_S
            seen.updates.append(ObservedUpdate(number, clock, {engine: PAUSED_S}))
    return seen


def test_each_link_is_what_it_took() -> None:
    found = links_of(chain(), slots=4)
    assert found == pytest.approx((ADMIT_S, PUBLISH_S, BATCH_S, OFFER_S), abs=1e-6)


def test_where_all_slots_are_taken_what_is_waited_for_one_is_no_link() -> None:
    seen = chain()
    for name in list(seen.groups)[::2]:
        group = seen.groups[name]
        group.began = (group.began or 0.0) + 0.5  # for a slot
    assert links_of(seen, slots=0).admit_s == pytest.approx(ADMIT_S, abs=1e-6)


def test_the_learners_time_is_split_into_steps_tokens_and_versions_that_are_offered() -> None:
    found = learning_of(chain(), replicas=1, prompt=0.0, update_interval=2)
    assert found[:4] == pytest.approx((1.0, 0.002, 0.5, 2.0), rel=1e-6) and found.error < 1e-6


def test_rewards_have_their_mean_and_their_spread_and_those_at_once_take_no_time() -> None:
    mean, sigma = rewards_of([*chain().groups.values()])
    assert mean == pytest.approx(np.exp(-1.0 + 0.125), rel=0.2) and sigma == pytest.approx(0.5, rel=0.25)
    assert rewards_of([ObservedGroup(generated=1.0, graded=1.0)] * 3) == (0.0, 0.0)


def test_a_pause_that_grows_with_its_wave_is_split_in_two() -> None:
    seen = Observed()
    for number, size in enumerate((1, 2, 4, 8)):
        paused = {f"engine-{n}": 0.2 + 0.05 * size for n in range(size)}
        seen.updates.append(ObservedUpdate(number, float(number), paused))
    assert updates_of(seen) == pytest.approx((0.2, 0.05))
    assert updates_of(Observed()) == (0.0, 0.0)
