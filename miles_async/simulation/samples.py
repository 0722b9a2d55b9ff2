"""What is under way in a simulation: groups, their requests, and the samples of these."""

from __future__ import annotations

from bus.messages import ReadyGroup
from miles_async.simulation.draws import Drawn


class Sample:
    """One response. ``made`` of its ``length`` tokens are there; the turn that is generated ends at ``goal``."""

    __slots__ = ("base", "due", "end", "entry", "goal", "length", "made", "prompt", "request", "spans", "start", "turn")

    def __init__(self, length: int, prompt: float) -> None:
        self.length, self.prompt = length, prompt  # of its context, in tokens; a shared one counts in parts
        self.made = self.goal = self.turn = 0
        self.due = 0.0  # tokens to be prefilled before the next one is sampled
        self.spans: list[tuple[int, int]] = []  # (version, tokens that it sampled), in the order of sampling
        self.request: Request
        # of an engine's running requests; times are counted in the engine's steps
        self.start = self.end = 0.0
        self.base = 0.0  # tokens of its context, less the step at which it joined
        self.entry = -1  # its number at the engine that runs it; -1: none does


class Request:
    """Samples that one /generate asks for: they hold their slots until the last of them has ended."""

    __slots__ = ("asked", "engine", "group", "holds", "left", "numbers", "samples", "version")

    def __init__(self, group: SimulatedGroup, samples: list[Sample], numbers: list[int]) -> None:
        self.group, self.samples, self.numbers = group, samples, numbers
        self.left = len(samples)  # whose turn has not ended
        self.asked = self.holds = False  # whether an engine is to answer it; whether it has slots of its worker
        # whose it is, and the version that is to sample its next token; -1: no engine has it
        self.engine = self.version = -1
        for sample in samples:
            sample.request = self


class SimulatedGroup:
    """A prompt group from its admission on. ``unfinished``: of its requests. ``prompt``: its position, and how often it was
    made before. ``serving``: the oldest version that an engine had then."""

    __slots__ = ("attempt", "drawn", "group_id", "position", "prompt", "requests", "serving", "unfinished", "worker")

    def __init__(self, position: int, drawn: Drawn, prompt: tuple[int, int] | None = None, serving: int = 0) -> None:
        self.position, self.drawn, self.group_id, self.serving = position, drawn, str(position), serving
        self.prompt = (position, 0) if prompt is None else prompt
        self.requests: list[Request] = []
        self.unfinished = self.attempt = 0
        self.worker = -1

    def begin(self, worker: int, *, per_sample: bool, shares_prompt: bool, turns: int) -> list[Request]:
        """A new attempt, from nothing: its requests."""
        lengths = self.drawn.lengths
        shared = len(lengths) if shares_prompt and not per_sample else 1
        samples = [Sample(length, self.drawn.prompt / shared) for length in lengths]
        for sample in samples:
            sample.goal = goal(sample.length, 0, turns)
            sample.due = sample.prompt
        parts = [[n] for n in range(len(samples))] if per_sample else [list(range(len(samples)))]
        self.requests = [Request(self, [samples[n] for n in part], part) for part in parts]
        self.unfinished, self.worker = len(self.requests), worker
        self.attempt += 1
        return self.requests

    @property
    def made(self) -> int:
        """Tokens of this attempt that are there."""
        return sum(sample.made for request in self.requests for sample in request.samples)

    @property
    def has_begun(self) -> bool:
        """Whether it is generated now, and has a token."""
        samples = (sample for request in self.requests for sample in request.samples)
        return self.unfinished > 0 and any(sample.spans or sample.entry >= 0 for sample in samples)

    def floor(self, serving: int) -> int:
        """The version of its oldest token, as far as it is known; ``serving``: of one that has none."""
        found = [
            sample.spans[0][0] if sample.spans else request.version
            for request in self.requests
            if request.version >= 0
            for sample in request.samples
        ]
        return min(found, default=serving)

    def ready(self, now: float) -> ReadyGroup:
        """As the ledger knows it."""
        counts: dict[int, int] = {}
        for request in self.requests:
            for sample in request.samples:
                for version, tokens in sample.spans:
                    counts[version] = counts.get(version, 0) + tokens
        versions = tuple(sorted(counts.items()))
        lengths = self.drawn.lengths
        return ReadyGroup(
            self.group_id,
            "",
            versions[0][0],
            versions[-1][0],
            sum(lengths),
            now,
            lengths=tuple(lengths),
            versions=versions,
        )


def goal(length: int, turn: int, turns: int) -> int:
    """Tokens at which turn ``turn``, from 0, of a response ends."""
    return length * (turn + 1) // turns
