"""Everything that Redis holds of a run, read at one moment, and whether it is whole.

Promises: one script reads all of it; :func:`check` compares it with the story, key by key: each group is in one place, and
has there what it needs to go on, and nothing that it had before.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import redis
from ledger_story import OPEN, Story, prompt_of

from bus.codec import decode, encode
from bus.ledger import balanced
from bus.messages import Batch, Group, ReadyGroup, Ticket, Transition

_READ = """
local P, since = KEYS[1], ARGV[1]
local view = {}
local tables = {
  'count', 'state', 'lease', 'ticket', 'sample', 'payload', 'attempts', 'claim', 'causes', 'batch', 'quarantine',
}
for _, name in ipairs(tables) do
  view[#view + 1] = redis.call('HGETALL', P .. 'l:' .. name)
end
view[#view + 1] = redis.call('ZRANGE', P .. 'l:order', 0, -1)
view[#view + 1] = redis.call('SMEMBERS', P .. 'l:ahead')
view[#view + 1] = redis.call('LRANGE', P .. 'l:again', 0, -1)
view[#view + 1] = redis.call(
  'HMGET', P .. 'l:meta', 'last_step', 'committed_step', 'forgotten_step', 'next_position'
)
view[#view + 1] = redis.call('XRANGE', P .. 'tickets', '-', '+')
view[#view + 1] = redis.call('XRANGE', P .. 'samples', '-', '+')
view[#view + 1] = redis.call('XRANGE', P .. 'events', '(' .. since, '+')
view[#view + 1] = redis.call('XPENDING', P .. 'tickets', 'rollout', '-', '+', 1000)
view[#view + 1] = redis.call('XINFO', 'GROUPS', P .. 'tickets')[1]
local payloads = {}
for _, key in ipairs(redis.call('KEYS', P .. 'payload:*')) do
  payloads[#payloads + 1] = { key, redis.call('PTTL', key), redis.call('GET', key) }
end
view[#view + 1] = payloads
return view
"""


def _table(flat: list[Any]) -> dict[str, bytes]:
    return {key.decode(): value for key, value in zip(flat[::2], flat[1::2], strict=True)}


def _text(table: dict[str, bytes]) -> dict[str, str]:
    return {key: value.decode() for key, value in table.items()}


def _number(entry_id: bytes) -> tuple[int, int]:
    when, _, sequence = entry_id.partition(b"-")
    return int(when), int(sequence)


class View:
    """One moment of the run at ``prefix``; ``events`` are those after ``since``."""

    def __init__(self, client: redis.Redis, prefix: str, since: str = "0-0") -> None:
        raw: Any = client.eval(_READ, 1, prefix, since)
        (
            count,
            state,
            lease,
            ticket,
            sample,
            payload,
            attempts,
            claim,
            causes,
            batch,
            quarantine,
            order,
            ahead,
            again,
            meta,
            *streams,
        ) = raw
        self.count = {name: int(value) for name, value in _table(count).items()}
        self.state, self.lease, self.payload = _text(_table(state)), _text(_table(lease)), _text(_table(payload))
        self.ticket, self.sample = _table(ticket), _table(sample)
        self.attempts = {gid: int(n) for gid, n in _table(attempts).items()}
        self.claim, self.causes = {gid: int(n) for gid, n in _table(claim).items()}, _table(causes)
        self.batch = {int(step): record for step, record in _table(batch).items()}
        self.quarantined = set(_table(quarantine))
        self.order = [gid.decode() for gid in order]
        self.ahead = {gid.decode() for gid in ahead}
        self.again = [gid.decode() for gid in again]
        self.last_step, self.committed, self.forgotten, self.position = (int(value or 0) for value in meta)
        tickets, samples, events, pending, group, payloads = streams
        self.tickets = {i: _table(fields) for i, fields in tickets}
        self.samples = {i: _table(fields) for i, fields in samples}
        self.events = [decode(fields[1], Transition) for _, fields in events]
        self.newest = events[-1][0].decode() if events else since
        self.pending = {line[0] for line in pending}
        self.delivered = _number(_table(group)["last-delivered-id"])  # every ticket up to it has been sent to somebody
        self.payloads = {key.decode(): (ttl, value) for key, ttl, value in payloads}


@lru_cache(4096)
def ticket(position: int, attempt: int = 0) -> Ticket:
    return Ticket(group_id=f"0-{position}-{attempt}", prompt_tokens=b"\1\0\0\0", sampling_seed=position)


def ticket_of(gid: str) -> Ticket:
    return ticket(*map(int, gid.split("-")[1:]))


@lru_cache(4096)
def _sent(gid: str) -> bytes:
    return encode(ticket_of(gid))


@lru_cache(4096)
def _group_id(payload: bytes) -> str:
    return decode(payload, Group).group_id


@lru_cache(4096)
def _described(ready: bytes) -> tuple[str, str]:
    message = decode(ready, ReadyGroup)
    return message.group_id, message.payload_key


def check(view: View, story: Story) -> None:
    """Invariant 1, and that no group can get stuck. The message of a failure is the first difference."""
    _check_places(view, story)
    _check_tickets(view, story)
    _check_payloads(view, story)
    steps = range(story.forgotten + 1, story.last_step + 1)
    assert (view.last_step, view.committed, view.position) == (story.last_step, story.committed, story.position)
    assert view.forgotten == story.forgotten
    assert (view.ahead, view.again, view.quarantined) == (story.ahead, story.again, story.left_out())
    assert sorted(view.batch) == list(steps)
    for step, record in view.batch.items():
        batch = decode(record, Batch)
        assert (batch.step, batch.group_ids) == (step, story.batches[step])
        assert batch.payload_keys == tuple(view.payload[gid] for gid in batch.group_ids)


def _check_places(view: View, story: Story) -> None:
    live = [prompt_of(gid) for gid in [*view.again, *(gid for gid, place in story.place.items() if place != "dropped")]]
    assert len(set(live)) == len(live), "of two attempts at a prompt neither was dropped"
    assert view.state == {gid: place for gid, place in story.place.items() if place in (*OPEN, "b")}
    assert view.order == [gid for gid in story.place if story.place[gid] in tuple(OPEN)]
    places = list(story.place.values())
    names = {"w": "waiting", "f": "in_flight", "r": "ready", "b": "batched", "trained": "trained", "dropped": "dropped"}
    told = {name: places.count(place) for place, name in names.items()} | {"dealt": len(places)}
    count = dict.fromkeys(told, 0) | view.count
    assert told == {name: count[name] for name in told}
    assert balanced(count)
    assert count["dropped"] == sum(n for name, n in count.items() if name.startswith("dropped:"))


def _check_tickets(view: View, story: Story) -> None:
    to_do = story.in_place("wf")
    assert sorted(view.ticket) == sorted(to_do)
    assert {entry: (gid.encode(), _sent(gid)) for gid, entry in view.ticket.items()} == {
        entry: (fields["g"], fields["m"]) for entry, fields in view.tickets.items()
    }
    assert view.lease == story.lease
    assert (view.attempts, view.claim) == (story.attempts, story.claim)
    assert set(view.causes) <= set(to_do)
    assert view.pending <= set(view.tickets), "pending for ever: delivered and deleted, but not acknowledged"
    for gid in to_do:
        entry = view.ticket[gid]
        sent = entry in view.pending
        assert sent or _number(entry) > view.delivered, f"no consumer can get the ticket of {gid} again"
        # the idle time of the delivered ticket is the lease: undelivered, the next reader takes it from its holder
        assert sent or story.place[gid] == "w", f"{gid} is in flight, and its ticket still to be delivered"


def _check_payloads(view: View, story: Story) -> None:
    published = story.in_place("rb")
    kept = {gid for step in range(story.forgotten + 1, story.last_step + 1) for gid in story.batches[step]}
    assert sorted(view.sample) == sorted(published)
    assert view.payload.keys() == kept | set(published)
    assert sorted(view.sample.values()) == sorted(view.samples)
    lasting = set(view.payload.values())
    for gid in published:
        assert _described(view.samples[view.sample[gid]]["m"]) == (gid, view.payload[gid])
    for gid, key in view.payload.items():
        assert key in view.payloads, f"the payload of {gid} is gone"
        assert _group_id(view.payloads[key][1]) == gid
    for key, (ttl, _) in view.payloads.items():
        assert ttl == -1 if key in lasting else ttl > 0, f"{key} goes away after {ttl} ms"
