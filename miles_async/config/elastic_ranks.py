"""With how many ranks the learner goes on, by the places that its cluster has for it. Pure, without torch.

Promises: never more ranks than the configuration has, never fewer than ``placement.elastic_learner.min_ranks``; every number is
one that a launch would take, with which the model's layout and the batch come out even; it is the greatest that there is
room for; and no smaller than before while more may still come.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from miles_async.config.layout import check as check_layout
from miles_async.config.optimizer_steps import check as check_steps
from miles_async.config.schema import ConfigError, RunConfig


def with_ranks(config: RunConfig, ranks: int) -> RunConfig:
    """What a person would write who resumes the run with so many."""
    return replace(config, learner=replace(config.learner, num_ranks=ranks))


def suits(config: RunConfig, ranks: int) -> bool:
    """Whether a launch with so many ranks comes out even: whole replicas of the model, and as many groups on each."""
    fewer = with_ranks(config, ranks)
    try:
        check_layout(fewer.learner)
        check_steps(fewer)
    except ConfigError:
        return False
    return True


def rank_counts(config: RunConfig) -> tuple[int, ...]:
    """The numbers of ranks that the run may have, the greatest first; without ``placement.elastic_learner`` its own alone."""
    wanted, least = config.learner.num_ranks, config.placement.elastic_learner.min_ranks
    return tuple(ranks for ranks in range(wanted, (least or wanted) - 1, -1) if ranks == wanted or suits(config, ranks))


def decide(counts: Sequence[int], now: int, places: int, *, waited: bool) -> int | None:
    """How many ranks start, of ``counts`` (the greatest first), of a learner that had ``now``; None: it waits for room.

    places: for ranks, that are there now. waited: it has waited as long as it may. Where there is no room for any of ``counts``
    it is ``now`` then: they wait for their places as they would in a run that is not elastic.
    """
    most = next((ranks for ranks in counts if ranks <= places), None)
    if most is not None and (waited or most >= now):
        return most
    return now if waited else None
