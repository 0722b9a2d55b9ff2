"""The routing policies: pure, so every promise is checked on plain values."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_async.router.policies.choice import POLICIES, make_policy
from miles_async.router.policies.consistent_hash import SLACK, ConsistentHash
from miles_async.router.policies.least_inflight import LeastInflight
from miles_async.router.policies.policy import EngineLoads
from miles_async.router.policies.power_of_two import PowerOfTwo
from miles_async.router.policies.versions import ANY, Demand, DemandError, read_demand

KEYS = [b"key-%d" % i for i in range(2000)]


def filled(made: EngineLoads, *engines: str) -> EngineLoads:
    for engine in engines:
        made.add(engine, version=0)
    return made


def take(made: EngineLoads, **how: object) -> str | None:
    engine = made.choose(**how)  # type: ignore[attr-defined]
    if engine is not None:
        made.started(engine)
    return engine


@pytest.fixture(params=sorted(POLICIES))
def made(request: pytest.FixtureRequest) -> EngineLoads:
    policy = make_policy(request.param)
    assert isinstance(policy, EngineLoads)
    return policy


def test_the_engine_with_the_fewest_requests_is_chosen() -> None:
    made = filled(LeastInflight(), "a", "b")
    assert sorted([take(made), take(made)], key=str) == ["a", "b"]
    made.finished("b")
    assert take(made) == "b"


def test_idle_engines_share_the_work_evenly() -> None:
    made = filled(LeastInflight(), "a", "b", "c")
    seen = Counter()
    for _ in range(30):
        engine = take(made)
        assert engine is not None
        seen[engine] += 1
        made.finished(engine)
    assert set(seen.values()) == {10}


def test_dead_excluded_and_outdated_engines_are_never_chosen(made: EngineLoads) -> None:
    filled(made, "a", "b", "c")
    made.set_state("a", "out")
    made.add("c", version=7)
    assert take(made, exclude=("b",)) == "c"
    assert take(made, demand=Demand(least=7)) == "c"
    assert take(made, demand=Demand(exact=0)) == "b"
    assert take(made, exclude=("b", "c")) is None
    assert take(made, demand=Demand(least=8)) is None
    assert take(made, demand=Demand(exact=3), key=b"k") is None
    made.set_state("a", "up")
    assert take(made, exclude=("b", "c"), key=b"k") == "a"


def test_an_engine_being_updated_is_the_last_choice_but_still_one(made: EngineLoads) -> None:
    filled(made, "a", "b")
    made.set_state("a", "updating")
    for _ in range(5):
        assert take(made, key=b"k") == "b"
    made.remove("b")
    assert take(made) == "a"
    assert take(made, demand=Demand(least=0)) == "a"
    # its answer could have tokens of the next version
    assert take(made, demand=Demand(exact=0)) is None
    made.add("b", 0)
    made.add("a", 1)  # its update is done
    assert made.loads["a"].state == "up" and made.loads["a"].inflight == 2


events = st.lists(
    st.sampled_from(["add a", "add b", "add c", "remove a", "start a", "start b", "finish a", "finish b", "out b"])
)


@pytest.mark.parametrize("name", sorted(POLICIES))
@settings(max_examples=50)
@given(events, st.sampled_from([b"", b"k"]))
def test_no_order_of_events_makes_a_count_negative_or_chooses_who_is_not_there(
    name: str, steps: list[str], key: bytes
) -> None:
    made = make_policy(name)
    assert isinstance(made, EngineLoads)
    for step in steps:
        verb, engine = step.split()
        match verb:
            case "add":
                made.add(engine)
            case "remove":
                made.remove(engine)
            case "start":
                made.started(engine)
            case "finish":
                made.finished(engine)
            case "out":
                made.set_state(engine, "out")
        assert all(load.inflight >= 0 for load in made.loads.values())
        chosen = made.choose(key=key)  # type: ignore[attr-defined]
        up = {load.name for load in made.loads.values() if load.state == "up"}
        assert chosen in up if up else chosen is None


def test_of_two_drawn_engines_the_less_loaded_one_is_chosen_and_the_draws_can_be_repeated() -> None:
    first, second = (filled(PowerOfTwo(seed=5), *"abcdefgh") for _ in range(2))
    for _ in range(400):
        assert take(first) == take(second)
    loads = [load.inflight for load in first.loads.values()]
    assert max(loads) - min(loads) <= 4  # drawn without looking, the range would be about 20
    lone = filled(PowerOfTwo(), "a", "b")
    assert [take(lone) for _ in range(4)].count("a") == 2


def owners(made: ConsistentHash) -> dict[bytes, str]:
    """Whose each key is while nothing is in flight."""
    return {key: name for key in KEYS if (name := made.choose(key=key)) is not None}


@settings(max_examples=15, deadline=None)
@given(st.sets(st.from_regex(r"[a-z0-9:.]{1,12}", fullmatch=True), min_size=2, max_size=16), st.data())
def test_only_the_keys_of_an_engine_that_joins_or_leaves_move(names: set[str], data: st.DataObject) -> None:
    newcomer = data.draw(st.sampled_from(sorted(names)))
    made = ConsistentHash()
    filled(made, *sorted(names - {newcomer}))
    before = owners(made)
    made.add(newcomer)
    after = owners(made)
    moved = {key for key in KEYS if before[key] != after[key]}
    assert {after[key] for key in moved} <= {newcomer}
    assert len(moved) <= 2.5 * len(KEYS) / len(names)
    made.set_state(newcomer, "out")
    assert owners(made) == before
    made.set_state(newcomer, "up")
    assert owners(made) == after
    made.remove(newcomer)
    assert owners(made) == before


def test_the_keys_are_shared_about_evenly() -> None:
    made = ConsistentHash()
    filled(made, *(f"10.0.0.{i}:30000" for i in range(8)))
    shares = Counter(owners(made).values())
    assert max(shares.values()) < 1.5 * len(KEYS) / 8 and min(shares.values()) > 0.5 * len(KEYS) / 8


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KEYS[:3]), st.integers(0, 5)), max_size=60), st.integers(1, 9))
def test_no_engine_is_swamped_by_a_key(requests: list[tuple[bytes, int]], n_engines: int) -> None:
    made = filled(ConsistentHash(), *(f"engine{i}" for i in range(n_engines)))
    running: list[str] = []
    for key, n_end in requests:
        engine = take(made, key=key)
        assert engine is not None
        running.append(engine)
        assert made.loads[engine].inflight <= math.ceil(SLACK * len(running) / n_engines)
        for _ in range(min(n_end, len(running) - 1)):
            made.finished(running.pop(0))


def test_a_key_keeps_its_engine_while_the_load_allows() -> None:
    made = filled(ConsistentHash(), *"abcd")
    seen = set()
    for _ in range(20):
        engine = take(made, key=b"conversation")
        assert engine is not None
        seen.add(engine)
        made.finished(engine)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("least", "exact", "met", "missed"),
    [(b"3", None, (3, 9), (2, -1)), (None, b"3", (3,), (2, 4)), (b"1", b"3", (3,), (1, 4)), (None, None, (-1, 5), ())],
)
def test_a_demand_says_which_versions_will_do(
    least: bytes | None, exact: bytes | None, met: tuple[int, ...], missed: tuple[int, ...]
) -> None:
    demand = read_demand(least, exact)
    assert all(demand.met_by(version) for version in met)
    assert not any(demand.met_by(version) for version in missed)


@given(st.binary(max_size=20))
def test_a_header_is_a_version_or_refused_in_one_line(value: bytes) -> None:
    if value.isdigit() and len(value) <= 15:
        assert read_demand(value, None).least == read_demand(None, value).exact == int(value)
    else:
        with pytest.raises(DemandError, match="x-weight-version") as caught:
            read_demand(None, value)
        assert "\n" not in str(caught.value)


def test_two_demands_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(DemandError, match="x-weight-version = 3 is below x-min-weight-version = 4"):
        read_demand(b"4", b"3")


@pytest.mark.parametrize(
    ("answer", "broken"),
    [
        (b'{"meta_info": {"weight_version": "5"}}', None),
        (b'{"meta_info": {"weight_version": "6"}}', "6"),
        (b'{"meta_info": {"weight_version": "default"}}', "default"),
        (b'{"meta_info": {"weight_version": "5", "weight_versions": [{"version": "4", "start": 0}]}}', "4"),
        (b'[{"meta_info": {"weight_version": "5"}}, {"meta_info": {"weight_version": "7"}}]', "7"),
        (b'{"text": "\\"weight_version\\": \\"9\\"", "meta_info": {}}', None),
        (b'{"choices": []}', None),
        (b"no JSON", None),
        (b"[" * 100_000, None),
        (b'{"meta_info": {"weight_version": "' + "²".encode() + b'"}}', "²"),
    ],
)
def test_an_answer_is_held_against_the_demand_by_every_version_that_it_names(answer: bytes, broken: str | None) -> None:
    assert Demand(exact=5).broken_by(answer) == broken
    if broken is None:
        assert ANY.broken_by(answer) is None
