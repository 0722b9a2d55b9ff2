"""Where the actors of a run get their places: on this machine, or on the machines of a Ray cluster."""

from __future__ import annotations

from typing import Literal

from miles_async.config.schema.section import CountFloat, CountInt, PositiveFloat, PositiveInt, Section


class Resources(Section, frozen=True):
    """What one actor of a role asks Ray for: one rank of the learner, one engine (of a server with engine.tp_size ranks each of
    them, all on one machine), one worker."""

    # None: 1 for a learner rank, an engine and a rollout worker, 0 for the others
    num_cpus: CountFloat | None = None
    num_gpus: CountFloat = 0.0  # an actor sees no others than these
    resources: dict[str, PositiveFloat] = {}  # of the cluster's own names: whoever asks for them runs where they are


class Elastic(Section, frozen=True):
    """Engines that come when the cluster has room, and leave when it has none, or takes their machine back."""

    # places are kept for these; None: engine.num_engines, with which the run begins
    min_engines: PositiveInt | None = None
    max_engines: PositiveInt | None = None  # None: none comes or leaves by itself


class ElasticLearner(Section, frozen=True):
    """A learner that goes on with fewer data-parallel replicas where a machine is lost and nobody else has room, and with more
    when there is room again."""

    # the fewest, of learner.num_ranks, with which the run begins; None: it waits until there is room for all of them
    min_ranks: PositiveInt | None = None
    wait_s: PositiveFloat = 60.0  # that room for as many ranks as before is waited for


class Placement(Section, frozen=True):
    # "local": processes of this machine; "ray": actors of a Ray cluster, on a machine of which the launch runs
    kind: Literal["local", "ray"] = "local"
    address: str | None = None  # of the cluster's head, "HOST:PORT", or "auto"; None: RAY_ADDRESS says it
    # start a Ray on this machine that ends with the run; else one that is there has to be named
    start_ray: bool = False
    # how often Ray starts a launch again that was killed, or whose machine is lost, on that machine or another one; the run
    # then goes on without the command that began it. 0: the launch is that command's own process
    launch_restarts: CountInt = 0
    namespace: str | None = None  # of the actors' names in Ray; None: one of the run directory's own
    ready_timeout_s: PositiveFloat = 180.0  # for the cluster to give an actor its place, and all of them at the start
    env_vars: list[str] = []  # variables of the launch's environment that actors get, besides OMP_NUM_THREADS
    # on several machines: which address of its machine an actor listens on and announces. The name of an interface, or the
    # network that it lies in ("10.0.0.0/8"), beyond which engines get no key; None: that from which it reaches the bus
    interface: str | None = None
    # on several machines: a directory that all of them see, for weights on their way; None: the run directory, which has to
    # be seen by all of them in any case
    shared_dir: str | None = None
    # its tensor-parallel ranks are on one machine, and as many others as have room there
    learner: Resources = Resources()
    elastic_learner: ElasticLearner = ElasticLearner()  # how few ranks it goes on with where a machine was lost
    elastic: Elastic = Elastic()  # engines that come and leave while the run goes on
    engine: Resources = Resources()  # on as few machines as have room for all
    rollout: Resources = Resources()  # on as many machines as there are
    broadcaster: Resources = Resources()  # with the learner's rank 0
    # on the launch's machine; one that asks for something where there is room for it
    dealer: Resources = Resources()
    router: Resources = Resources()  # as the dealer
    evaluator: Resources = Resources()  # as the dealer
    eval_engine: Resources = Resources()  # as engine
