"""Every type that crosses a process boundary on the bus, in one file.

Promises: no pickle and no code on the wire; token ids, log-probs, masks and versions travel as raw little-endian
buffers whose dtype is named here; every message names its schema by its tag, and an unknown tag is refused, as are
fields that no actor would write (``fields.py``): what decodes can be used without a further look at them.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from bus.fields import MAX_NUMBER, Members, Name, Node, Number, Place, Seconds, Text, Url, Version
from bus.waits import WaitKind

SCHEMA_VERSION = 1

UNSAMPLED = MAX_NUMBER  # in place of a weight version: no policy sampled this token (SFT), so it never grows stale


class Message(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """Base of all messages: msgpack arrays, tagged by type name on the wire."""


class Sample(Message, tag="sample", frozen=True):
    """One response of a prompt group. All buffers have one entry for each response token.

    tokens: ``<i4`` token ids. logprobs: ``<f4`` behaviour log-probs (what the engine reported for the token it sampled).
    loss_mask: ``u1``, 1 where the policy wrote the token. versions: ``<i4`` weight version that sampled the token.
    teacher_logprobs: ``<f4``, empty where nobody teaches. teacher_top_tokens: ``<i4``, teacher_top_logprobs: ``<f4``, k of each
    for a response token: the teacher's likeliest there; empty where it was not asked for them. text: without special tokens;
    raw_text: with them, from the rollout function to the reward and no further.
    """

    index: int
    tokens: bytes
    logprobs: bytes
    loss_mask: bytes
    versions: bytes
    reward: float
    finish_reason: str  # "stop" | "length" | "abort"
    text: str = ""
    reward_parts: dict[str, float] = {}
    prompt_tokens: bytes = b""  # <i4, where it is not the group's own (a branch of an agent's run); not empty then
    rollout_index: int = -1  # which of the group's rollouts: branches of one share it; -1: ``index``
    teacher_logprobs: bytes = b""
    raw_text: str = ""
    teacher_top_tokens: bytes = b""
    teacher_top_logprobs: bytes = b""
    # experts that engines' passes chose, for each token of prompt and response but the last; empty where nobody replays them
    routes: bytes = b""


class Begun(msgspec.Struct, array_like=True, frozen=True):
    """How far learner and engines were when a group began, as its worker had heard; -1: not known, or it asked no engine.

    first_token_at: when its first token was sampled, as far as its engines say that; 0: they do not, or it asked none.
    """

    learner: Version = -1  # the learner's version when the first request for it was sent
    engines: Version = -1  # the oldest version that an engine served then
    first_token: Version = -1  # the learner's version when the first token of it was sampled
    sampled_by: Version = -1  # the version that sampled that token
    first_token_at: Seconds = 0.0


class Group(Message, tag="group", frozen=True):
    """One prompt and its ``n_samples_per_prompt`` rollouts: the unit the bus carries and the ledger counts.

    A rollout is one sample, or several of an agent whose turns do not extend one sequence.
    """

    group_id: str
    prompt_tokens: bytes  # <i4
    samples: tuple[Sample, ...]
    worker: str
    started: float  # seconds since the epoch, when generation began
    finished: float
    label: str | None = None
    begun: Begun = Begun()
    generated: float = 0.0  # when its last token was there, before it was graded; 0: not said


class Ticket(Message, tag="ticket", frozen=True):
    """The right to generate one group, given by admission. Its id is ``epoch-index-attempt``."""

    group_id: str
    prompt_tokens: bytes  # <i4
    sampling_seed: int  # the seed of sample i of this group is sampling_seed + i
    prompt: str = ""
    label: str | None = None
    metadata: dict[str, Any] = {}


class ReadyGroup(Message, tag="ready", frozen=True):
    """What the ledger and the policies know of a published group; the payload stays behind ``payload_key``."""

    group_id: Text
    payload_key: Text
    oldest_version: Version
    newest_version: Version
    n_tokens: Annotated[int, Meta(ge=0)]  # response tokens of all samples
    published: Seconds
    lengths: tuple[int, ...] = ()  # response tokens of each sample
    rewards: tuple[float, ...] = ()
    versions: tuple[tuple[int, int], ...] = ()  # (weight version, response tokens that it sampled), ascending
    begun: Begun = Begun()
    generated: Seconds = 0.0  # of Group
    graded: Seconds = 0.0  # ``finished`` of Group


class Batch(Message, tag="batch", frozen=True):
    """The write-ahead record of one step: which groups step ``step`` (1-based) trains on, in order."""

    step: int
    group_ids: tuple[str, ...]
    payload_keys: tuple[str, ...]
    # versions that a token in it may be behind, as it was when the batch was chosen; -1: not on record
    max_lag: int = -1
    # response tokens that are further behind, and are masked out of the loss; -1: there may be none
    masked_tokens: int = -1
    parts: tuple[int, ...] = ()  # how many groups were recorded at a time, where they were not at once
    ticks: bool = True  # false: the step goes on with another part before its weights change


class Transition(Message, tag="transition", frozen=True):
    """What the ledger did, written to ``events`` by the very script that did it: the record of every transition.

    kind: "admitted", "claimed", "released", "failed" (an attempt), "published", "batched", "extended" (batched for a step that
    has others already), "trained" (a durable checkpoint contains it), "dropped", "reconciled" (trained, as a checkpoint knows
    and this ledger had forgotten), "quarantined" (it cannot be trained, and is no part of the step any more that it was batched
    for; counted as dropped for "quarantined"). Of a step whose weights are held for another part, the detail is "held".
    Of "batched" and "extended", max_lag and masked_tokens are those of the step's record, as it then is.
    """

    kind: str
    group_ids: tuple[str, ...]
    by: str = ""  # the lease or the actor
    step: int = 0  # of "batched", "extended", "trained" and "quarantined"
    reason: str = ""  # of "failed", "dropped" and "quarantined"
    detail: str = ""
    attempt: int = 0  # of "claimed": 1 for the first time
    lengths: tuple[int, ...] = ()  # response tokens of each sample of a group that had been generated
    group: ReadyGroup | None = None  # of "published"
    max_lag: int = -1  # of Batch
    masked_tokens: int = -1  # of Batch


class DeadLetter(Message, tag="dead_letter", frozen=True):
    """A group given up after its last attempt; on ``dead``, its ticket beside it."""

    group_id: str
    attempts: int
    reason: str
    causes: tuple[str, ...]  # of each attempt, oldest first


class Snapshot(Message, tag="snapshot", frozen=True):
    """Learner to broadcaster: the weights of ``version`` lie in ``path`` as a Hugging Face directory (safetensors)."""

    version: Number
    incarnation: Number
    path: Annotated[str, Meta(min_length=1, max_length=4096)]
    checksum: Annotated[str, Meta(max_length=64)] = ""  # miles_async/weights/verify.py


class EngineUp(Message, tag="engine_up", frozen=True):
    """Engine to broadcaster: this engine answers, with these weights, and wants to be brought to the current version."""

    engine: Name
    url: Url
    incarnation: Number  # a restarted engine comes with a new one
    version: Version
    epoch: Number = 0  # of its line in the ledger of versions; 0: not said


class EngineServes(Message, tag="engine_serves", frozen=True):
    """Broadcaster to router and dealer: the engine confirmed that it serves ``version``."""

    engine: Name
    url: Url
    incarnation: Number
    version: Version
    epoch: Number = 0


class EngineDown(Message, tag="engine_down", frozen=True):
    """Whoever notices that an engine is gone."""

    engine: Name
    incarnation: Number
    reason: Text
    epoch: Number = 0


class Control(Message, tag="control", frozen=True):
    """Supervisor to everybody: ``stop``, or ``finish`` (do what is left, then end).

    ``roles`` limits it (empty: all); ``process``, an actor and its incarnation, to that one.
    """

    command: Text
    roles: tuple[Name, ...] = ()
    reason: Text = ""
    process: tuple[Name, Number] | None = None


class Scale(Message, tag="scale", frozen=True):
    """Somebody to the supervisor: have so many engines and rollout workers (None: as many as now)."""

    request: Name  # the answer has it, too
    engines: Members | None = None
    workers: Members | None = None


class Scaled(Message, tag="scaled", frozen=True):
    """The supervisor's answer to a Scale: how many there are before and after, and who comes and goes."""

    request: Name
    refusal: Text = ""  # why nothing is changed
    engines: tuple[Number, Number] = (0, 0)
    workers: tuple[Number, Number] = (0, 0)
    starts: tuple[Name, ...] = ()
    leaves: tuple[Name, ...] = ()


class Event(Message, tag="event", frozen=True):
    """Something that happened once, for the run's record."""

    actor: Name
    kind: Text
    time: Seconds
    data: dict[str, Any] = {}


class Metrics(Message, tag="metrics", frozen=True):
    """Numbers at a step (the learner's version) from one actor."""

    actor: Name
    step: Version
    time: Seconds
    values: Annotated[dict[Annotated[str, Meta(min_length=1, max_length=200)], float], Meta(max_length=1000)]


class Wait(Message, tag="wait", frozen=True):
    """What an actor waits for, and since when. ``targets``: the actors that it is for; empty: those of its kind's roles.

    ``about``: what the sentence of its kind has places for. Raises ValueError for anything else.
    """

    kind: WaitKind
    since: Seconds
    targets: tuple[Name, ...] = ()
    about: dict[str, int | Text] = {}

    def __post_init__(self) -> None:
        if self.about.keys() != self.kind.fields:
            raise ValueError(f"a wait for {self.kind} tells {sorted(self.kind.fields)}, not {sorted(self.about)}")

    @property
    def sentence(self) -> str:
        """What is waited for, in words for people: "groups for step 5"."""
        return self.kind.sentence.format(targets=", ".join(self.targets), **self.about)


class Heartbeat(Message, tag="heartbeat", frozen=True):
    """Last sign of life of an actor, and all that it waits for, longest first (empty: busy)."""

    actor: Name
    role: Name
    incarnation: Number
    time: Seconds
    waits: Annotated[tuple[Wait, ...], Meta(max_length=100)] = ()
    where: Place = ""
    refused: Annotated[int, Meta(ge=0)] = 0  # malformed messages and requests that it has refused
    node: Node = ""  # actors of one node are lost together


AnyMessage = (
    Sample
    | Group
    | Ticket
    | ReadyGroup
    | Batch
    | Transition
    | DeadLetter
    | Snapshot
    | EngineUp
    | EngineServes
    | EngineDown
    | Control
    | Scale
    | Scaled
    | Event
    | Metrics
    | Wait
    | Heartbeat
)
