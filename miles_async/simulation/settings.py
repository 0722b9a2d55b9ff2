"""Every key of a simulation's TOML, with its default and its unit.

``[rollout]``, ``[staleness]``, ``[weights]`` and ``[router]`` are those of a run's TOML; :data:`LOOKED_AT` says which of their
keys a simulation looks at. The other sections say how long things take: what a run measures.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from miles_async.config.schema import Rollout, Router, Section, Staleness, Weights
from miles_async.config.schema.section import CountFloat, CountInt, PositiveFloat, PositiveInt, Share

AboveOne = Annotated[float, Meta(gt=1)]


class Simulation(Section, frozen=True):
    num_steps: PositiveInt = 100
    warmup_steps: CountInt | None = None  # that no figure but the ledger is of; None: a tenth of num_steps
    seed: CountInt = 0  # the same one gives the same bytes
    # also simulate the same world without a bound on staleness, for ``share_of_ideal``; it takes about as long again
    ideal: bool = True
    timeline: bool = False  # each step's figures, under the names of a run's metrics
    transitions: bool = False  # every group's moments, as a run's transitions.jsonl; they grow with the groups


class Lengths(Section, frozen=True):
    """Tokens of a response; rollout.rollout_max_response_len cuts them."""

    kind: Literal["constant", "lognormal", "pareto", "empirical"] = "lognormal"
    mean: PositiveFloat = 64.0  # of all but "empirical", before the cut
    sigma: CountFloat = 0.6  # of "lognormal": of the logarithm
    alpha: AboveOne = 1.4  # of "pareto": its exponent
    values: list[float] = []  # of "empirical": drawn with equal chance
    # how much of what makes a response long its prompt does; 1: all samples of a group are equally long
    alike: Share = 0.0
    prompt_mean: CountFloat = 0.0  # tokens of a prompt
    prompt_sigma: CountFloat = 0.0  # of its logarithm


class Environment(Section, frozen=True):
    """What is between the engines' tokens and the ledger. Times are lognormal, sigma is of the logarithm."""

    turns: PositiveInt = 1  # of a response, all of them equally long; between two of them a tool is called
    tool_s: CountFloat = 0.0  # mean time of such a call
    tool_sigma: CountFloat = 0.0
    tool_tokens: CountInt = 0  # that its answer adds to the context; they are not trained on
    reward_s: CountFloat = 0.0  # mean time from a group's last token to its reward
    reward_sigma: CountFloat = 0.0
    refused: Share = 0.0  # of the groups, those that rollout.dynamic_sampling_filter drops


class Engines(Section, frozen=True):
    """An engine gives each running request one token in a step of

        step_s + running * step_request_s + context * step_context_s                 (context: tokens in its cache)

    or, of the first two terms, what ``measured_running`` and ``measured_tokens_per_s`` say.
    """

    num_engines: PositiveInt = 2
    max_running_requests: PositiveInt = 256  # samples; others queue
    step_s: CountFloat = 0.02
    step_request_s: CountFloat = 0.0002
    step_context_s: CountFloat = 0.0
    measured_running: list[
        float
    ] = []  # numbers of running requests, ascending; between two the step's time is a straight line
    measured_tokens_per_s: list[float] = []  # of the engine, at each of them
    prefill_token_s: CountFloat = 0.00002  # nobody gets a token meanwhile
    prefix_cache: bool = True  # the samples of one request share their prompt, a turn what came before it
    # room for contexts; where it is full, requests are retracted; None: no bound
    cache_tokens: PositiveInt | None = None
    cache_free: Share = 0.1  # of it, what is left free when a request is admitted, for those that run to grow
    slow: list[float] = []  # how many times longer everything takes, of the first engines
    update_s: CountFloat = 0.0  # that a wave of engines generates nothing for a new version
    update_engine_s: CountFloat = 0.0  # the same for each engine of the wave, on top


class Learner(Section, frozen=True):
    """A step takes step_s and, of the replica that has most, token_s for each token and micro_batch_s for each micro-batch."""

    step_s: CountFloat = 1.0
    token_s: CountFloat = 0.0  # of prompt and response, on one replica
    micro_batch_s: CountFloat = 0.0
    replicas: PositiveInt = 1  # that share a batch's groups
    num_steps_per_rollout: PositiveInt = 1  # optimizer steps of a batch
    max_tokens_per_micro_batch: PositiveInt = 8192
    padding: bool = False  # of the sequences of a micro-batch to the longest is computed, too
    balance_data: bool = True  # groups go to replicas so that their tokens come out even
    export_s: CountFloat = 0.0  # that it stands still for each version that is offered to engines
    save_interval: PositiveInt = 100  # steps between two checkpoints
    save_s: CountFloat = 0.0  # that it stands still for one


class Links(Section, frozen=True):
    """What the messages between the parts take; ``miles-async bench schedule`` measures it as ``added_ms``."""

    admit_s: CountFloat = 0.0  # from what lets a group start to its request
    publish_s: CountFloat = 0.0  # from its reward until the learner sees it
    batch_s: CountFloat = 0.0  # from a batch that could be chosen to its first computation
    offer_s: CountFloat = 0.0  # from a version until engines pause for it


class Failures(Section, frozen=True):
    """Times between deaths are exponential, of each process by itself; None: none dies."""

    # mean time until an engine dies; its requests go to others, from their start
    engine_interval_s: PositiveFloat | None = None
    engine_down_s: CountFloat = 60.0  # until it can be given weights
    # mean time until a worker dies; its groups wait for rollout.lease_s, then others make them anew
    worker_interval_s: PositiveFloat | None = None
    worker_down_s: CountFloat = 10.0
    # mean time until the learner dies; it trains again what it did since its last checkpoint
    learner_interval_s: PositiveFloat | None = None
    learner_down_s: CountFloat = 120.0


class SimulationConfig(Section, frozen=True):
    simulation: Simulation = Simulation()
    rollout: Rollout = Rollout()
    staleness: Staleness = Staleness()
    weights: Weights = Weights()
    router: Router = Router()
    lengths: Lengths = Lengths()
    environment: Environment = Environment()
    engines: Engines = Engines()
    learner: Learner = Learner()
    links: Links = Links()
    failures: Failures = Failures()

    @property
    def warmup_steps(self) -> int:
        given = self.simulation.warmup_steps
        return self.simulation.num_steps // 10 if given is None else given

    @property
    def slots(self) -> int:
        """Samples that all workers may have in flight."""
        return self.rollout.num_workers * self.rollout.samples_in_flight


LOOKED_AT = {
    "rollout": {
        "rollout_batch_size",
        "over_sampling_batch_size",
        "n_samples_per_prompt",
        "rollout_max_response_len",
        "num_workers",
        "max_groups_in_flight",
        "max_samples_in_flight",
        "request_per_sample",
        "lease_s",
        "partial_rollout",
    },
    "staleness": {"policy", "max_lag", "hard_bound", "too_old", "capacity", "elastic_cap", "elastic_admit_lag"},
    "weights": {"pause_mode", "update_waves", "update_interval"},
    "router": {"policy"},
}
