"""What the dealer lets in: by the engine that is furthest behind, never past the bound, nothing while Redis fills up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engine_lines import set_engine

from actors import dealer as module
from actors.dealer import SEED_SPACE, Dealer, PromptsChangedError, sampling_seed, seed_again
from actors.runtime.context import ActorContext
from actors.runtime.spec import ActorSpec
from bus import Bus, Ledger
from bus.ledger_leases import next_attempt
from bus.messages import Ticket, Wait
from bus.waits import WaitKind
from miles_async.config.schema import Data, Engine, Model, Rollout, Run, RunConfig, Staleness
from miles_async.data import Prompt
from miles_async.models.fingerprint import fingerprint
from miles_async.recording import manifest

BATCH = 4
Make = Callable[..., Dealer]


@pytest.fixture
def make(bus: Bus, tmp_path: Path, digits_model: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes dealers of eight prompts."""

    def make_dealer(max_lag: int = 1, first: int = 1) -> Dealer:
        prompts = [Prompt(i, f"{first}-{i}", np.array([first, i], dtype=np.int32)) for i in range(8)]
        monkeypatch.setattr(module, "Tokenizer", lambda path: None)
        monkeypatch.setattr(module, "load_prompts", lambda config, tokenizer: prompts)
        config = RunConfig(
            model=Model(hf_checkpoint="none"),
            data=Data(prompt_data="none"),
            run=Run(num_steps=50),
            engine=Engine(num_engines=3),
            rollout=Rollout(rollout_batch_size=BATCH, n_samples_per_prompt=2),
            staleness=Staleness(max_lag=max_lag),
        )
        spec = ActorSpec("dealer", "dealer", 0, "", config, tmp_path, str(digits_model), "", bus.run_id, 1)
        return Dealer(ActorContext(spec, bus))

    return make_dealer


async def test_admission_goes_by_the_engine_that_is_furthest_behind(bus: Bus, make: Make) -> None:
    await set_engine(bus, "engine-0", "http://127.0.0.1:1", 1, 3, "serving")
    await set_engine(bus, "engine-1", "http://127.0.0.1:2", 1, 0, "updating")  # it generates under 0 until it is done
    await set_engine(bus, "engine-2", "http://127.0.0.1:3", 1, -1, "starting")  # it gets no request yet
    dealer = make()
    assert (await dealer._deal()).sentence == "the learner to take step 1"
    assert (await Ledger(bus).counts())["dealt"] == 2 * BATCH  # (0 + max_lag + 1) batches
    await set_engine(bus, "engine-1", "http://127.0.0.1:2", 1, 1, "serving")
    await dealer._deal()
    assert (await Ledger(bus).counts())["dealt"] == 3 * BATCH


async def test_nothing_is_dealt_before_an_engine_serves(bus: Bus, make: Make) -> None:
    await set_engine(bus, "engine-0", "http://127.0.0.1:1", 1, 0, "starting")
    assert (await make()._deal()).sentence == "an engine to serve"
    assert (await Ledger(bus).counts())["dealt"] == 0


async def test_a_heartbeat_during_a_look_says_what_the_dealer_still_waits_for(
    bus: Bus, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    dealer, heartbeats = make(), []
    look = dealer._deal

    async def deal() -> Wait:
        heartbeats.append(dealer.ctx.heartbeat())
        if len(heartbeats) == 3:
            dealer.ctx.stop.set()
        return await look()

    monkeypatch.setattr(dealer, "_deal", deal)
    await dealer.run()
    first, *others = [heartbeat.waits for heartbeat in heartbeats]
    assert first == () and others[0] == others[1]
    assert [wait.kind for wait in others[0]] == [WaitKind.ENGINE_TO_SERVE]
    assert dealer.ctx.heartbeat().waits == ()


async def test_with_a_bound_of_0_one_batch_is_open(bus: Bus, make: Make) -> None:
    await set_engine(bus, "engine-0", "http://127.0.0.1:1", 1, 0, "serving")
    await make(max_lag=0)._deal()
    assert len((await Ledger(bus).open_groups()).order) == BATCH


async def test_nothing_new_starts_while_redis_fills_up(bus: Bus, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def memory() -> tuple[int, int]:
        return 81 << 20, 100 << 20

    await set_engine(bus, "engine-0", "http://127.0.0.1:1", 1, 0, "serving")
    monkeypatch.setattr(bus, "memory", memory)
    assert (await make()._deal()).sentence == "room in Redis (81 of 100 MB used)"
    assert (await Ledger(bus).counts())["dealt"] == 0


async def test_a_dealer_that_starts_again_goes_on_where_the_ledger_is(bus: Bus, make: Make) -> None:
    await set_engine(bus, "engine-0", "http://127.0.0.1:1", 1, 0, "serving")
    await make(max_lag=0)._deal()
    await make(max_lag=1)._deal()
    ledger = Ledger(bus)
    await ledger.prepare()
    dealt = [c.ticket for c in await ledger.next_tickets("w", "w/1", 20, 60_000)]
    assert len({ticket.group_id for ticket in dealt}) == 2 * BATCH == len(dealt)
    assert seeds_of(dealt) == sorted(seeds_of(dealt)) and len(set(seeds_of(dealt))) == 2 * BATCH


async def test_a_prompt_that_is_to_be_made_again_is_dealt_before_new_ones_with_a_seed_of_its_own(
    bus: Bus, make: Make
) -> None:
    await set_engine(bus, "engine-0", "http://127.0.0.1:1", 1, 0, "serving")
    dealer, ledger = make(max_lag=0), Ledger(bus)
    await dealer._deal()
    await ledger.prepare()
    first = [c.ticket for c in await ledger.next_tickets("w", "w/1", 20, 60_000)]
    for number in (2, 0):
        assert await ledger.drop(first[number].group_id, "stale", again=True)
    await dealer._deal()
    again = [c.ticket for c in await ledger.next_tickets("w", "w/1", 20, 60_000)]
    assert [ticket.group_id for ticket in again] == [next_attempt(first[i].group_id) for i in (2, 0)]
    assert (await ledger.room()).next_position == BATCH
    assert [(t.prompt, t.prompt_tokens) for t in again] == [(first[i].prompt, first[i].prompt_tokens) for i in (2, 0)]
    assert not set(seeds_of(again)) & set(seeds_of(first)) and all(0 <= seed < SEED_SPACE for seed in seeds_of(again))
    assert seeds_of(again) == [seed_again(dealer.ctx.config.run.seed, ticket.group_id) for ticket in again]


def seeds_of(tickets: list[Ticket]) -> list[int]:
    return [ticket.sampling_seed for ticket in tickets]


async def test_other_prompts_than_those_dealt_so_far_are_refused(make: Make) -> None:
    await make()._check_prompts()
    await make()._check_prompts()
    with pytest.raises(PromptsChangedError, match="start another run"):
        await make(first=2)._check_prompts()


def test_no_two_samples_of_a_run_share_a_seed() -> None:
    seeds = [sampling_seed(7, position, 4) + i for position in range(500) for i in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < SEED_SPACE for seed in seeds)
    assert seeds != [sampling_seed(8, position, 4) + i for position in range(500) for i in range(4)]


async def test_a_dealer_refuses_other_prompts_before_it_deals(bus: Bus, make: Make) -> None:
    await set_engine(bus, "engine-0", "http://127.0.0.1:1", 1, 0, "serving")
    await make()._check_prompts()
    dealer = make(first=2)
    dealer.ctx.stop.set()  # should it go on after all
    with pytest.raises(PromptsChangedError):
        await dealer.run()
    assert (await Ledger(bus).counts())["dealt"] == 0


async def test_what_a_record_is_of_is_on_disk_before_the_first_prompt_is_dealt(
    bus: Bus, make: Make, tmp_path: Path, digits_model: Path
) -> None:
    await set_engine(bus, "engine-0", "http://127.0.0.1:1", 1, 0, "serving")
    dealer, deal = make(), Dealer._deal

    async def stopped() -> Wait:
        said = manifest.read(tmp_path)
        assert said is not None and (await Ledger(bus).counts())["dealt"] == 0
        assert said.model.fingerprint == fingerprint(digits_model)
        assert said.prompts.fingerprint == await Ledger(bus).bind("prompts", "others")
        dealer.ctx.stop.set()
        return await deal(dealer)

    dealer._deal = stopped  # type: ignore[method-assign]
    await dealer.run()
    assert (await Ledger(bus).counts())["dealt"] > 0
