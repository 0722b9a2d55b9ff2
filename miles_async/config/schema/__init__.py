"""The whole configuration of a run: one typed structure, read from TOML; a file for what belongs together.

Every key is here with its default and its unit, and with one comment, beside it or above it, that says what it is:
``docs/configuration.md`` is made of these. Names follow Miles' flags where the concept is the same. ``"none"`` unsets a key
that may be None. Loading, overriding and error messages are in ``toml.py``; checks across sections are in ``rules.py``.
"""

from __future__ import annotations

from miles_async.config.schema.algorithm import Algorithm, corrections, old_log_probs
from miles_async.config.schema.evaluation import Eval, EvalDataset
from miles_async.config.schema.learner import Critic, Learner
from miles_async.config.schema.placement import Elastic, ElasticLearner, Placement, Resources
from miles_async.config.schema.record import Record, Replay
from miles_async.config.schema.rollout import Reward, Rollout, Staleness
from miles_async.config.schema.run import Bus, Checkpoint, Data, Model, Monitor, Run, Topology, Track
from miles_async.config.schema.section import ConfigError, Section
from miles_async.config.schema.serving import Engine, Router, Weights

__all__ = [
    "Algorithm",
    "Bus",
    "Checkpoint",
    "ConfigError",
    "Critic",
    "Data",
    "Elastic",
    "ElasticLearner",
    "Engine",
    "Eval",
    "EvalDataset",
    "Learner",
    "Model",
    "Monitor",
    "Placement",
    "Record",
    "Replay",
    "Resources",
    "Reward",
    "Rollout",
    "Router",
    "Run",
    "RunConfig",
    "Section",
    "Staleness",
    "Topology",
    "Track",
    "Weights",
    "corrections",
    "old_log_probs",
]


class RunConfig(Section, frozen=True):
    model: Model
    data: Data
    run: Run = Run()
    rollout: Rollout = Rollout()
    reward: Reward = Reward()
    staleness: Staleness = Staleness()
    algorithm: Algorithm = Algorithm()
    critic: Critic = Critic()
    learner: Learner = Learner()
    checkpoint: Checkpoint = Checkpoint()
    engine: Engine = Engine()
    weights: Weights = Weights()
    router: Router = Router()
    bus: Bus = Bus()
    monitor: Monitor = Monitor()
    track: Track = Track()
    eval: Eval = Eval()
    record: Record = Record()
    replay: Replay = Replay()
    topology: Topology = Topology()
    placement: Placement = Placement()
