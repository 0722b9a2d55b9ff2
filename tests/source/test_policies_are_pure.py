"""Invariant 10: what decides does no I/O and reads no clock. Read from the source, so that no path through it is missed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PURE = (
    "bus/codec.py",
    "bus/fields.py",
    "bus/messages.py",
    "bus/positions.py",
    "bus/ready.py",
    "bus/waits.py",
    "miles_async/config/schema/section.py",
    "miles_async/config/schema/run.py",
    "miles_async/config/schema/rollout.py",
    "miles_async/config/schema/algorithm.py",
    "miles_async/config/schema/learner.py",
    "miles_async/config/schema/serving.py",
    "miles_async/config/schema/evaluation.py",
    "miles_async/config/schema/__init__.py",
    "miles_async/config/schema/placement.py",
    "miles_async/config/schema/record.py",
    "miles_async/config/rules.py",
    "miles_async/config/effect.py",
    "miles_async/config/elastic_ranks.py",
    "miles_async/config/learnable.py",
    "miles_async/groups/rollouts.py",
    "miles_async/groups/routes.py",
    "miles_async/filters/dynamic_sampling.py",
    "miles_async/config/loopback.py",
    "miles_async/config/layout.py",
    "miles_async/config/lora.py",
    "miles_async/config/optimizer_steps.py",
    "miles_async/config/qkv_format.py",
    "miles_async/rewards/rules.py",
    "miles_async/rewards/table.py",
    "miles_async/rl/advantages.py",
    "miles_async/rl/builtin/table.py",
    "miles_async/rl/corrections.py",
    "miles_async/rl/effect.py",
    "miles_async/rl/rules.py",
    "miles_async/rl/kl.py",
    "miles_async/rl/losses.py",
    "miles_async/rl/opd.py",
    "miles_async/rl/reduce.py",
    "miles_async/rl/segments.py",
    "miles_async/rollout/inflight.py",
    "miles_async/rollout/timing.py",
    "miles_async/engines/elastic.py",
    "miles_async/engines/loads.py",
    "miles_async/router/access.py",
    "miles_async/router/addresses.py",
    "miles_async/router/observe/suspects.py",
    "miles_async/router/policies/breaker.py",
    "miles_async/router/policies/choice.py",
    "miles_async/router/policies/consistent_hash.py",
    "miles_async/router/policies/least_inflight.py",
    "miles_async/router/policies/policy.py",
    "miles_async/router/policies/power_of_two.py",
    "miles_async/router/policies/versions.py",
    "miles_async/engines/sglang/flags.py",
    "miles_async/engines/sglang/health.py",
    "miles_async/groups/sound.py",
    "miles_async/groups/aged.py",
    "miles_async/simulation/asking.py",
    "miles_async/simulation/assignment.py",
    "miles_async/simulation/chain_fit.py",
    "miles_async/simulation/deaths.py",
    "miles_async/simulation/draws.py",
    "miles_async/simulation/engine.py",
    "miles_async/simulation/events.py",
    "miles_async/simulation/failures.py",
    "miles_async/simulation/fits.py",
    "miles_async/simulation/fleet.py",
    "miles_async/simulation/generation_fit.py",
    "miles_async/simulation/ideal.py",
    "miles_async/simulation/learner.py",
    "miles_async/simulation/ledger.py",
    "miles_async/simulation/loop.py",
    "miles_async/simulation/moments.py",
    "miles_async/simulation/observations.py",
    "miles_async/simulation/record.py",
    "miles_async/simulation/samples.py",
    "miles_async/simulation/settings.py",
    "miles_async/simulation/training.py",
    "miles_async/simulation/workers.py",
    "miles_async/staleness/count.py",
    "miles_async/staleness/drop.py",
    "miles_async/staleness/elastic.py",
    "miles_async/staleness/fifo.py",
    "miles_async/staleness/floors.py",
    "miles_async/staleness/in_order.py",
    "miles_async/staleness/pace.py",
    "miles_async/staleness/policies.py",
    "miles_async/staleness/progress.py",
    "miles_async/staleness/ready_first.py",
    "miles_async/staleness/recycle.py",
    "miles_async/staleness/refusals.py",
    "miles_async/staleness/token_mask.py",
    "miles_async/staleness/weight_fifo.py",
    "miles_async/staleness/windowed.py",
    "miles_async/engines/token_ids.py",
    "miles_async/train/batch.py",
    "miles_async/train/schedule.py",
    "miles_async/text/unicode.py",
    "miles_async/weights/fleet.py",
)
# modules that can neither wait, nor ask for the time, nor reach the outside, as they are used here
LIBRARIES = {"__future__", "collections", "dataclasses", "functools", "itertools", "math", "typing", "msgspec"}
LIBRARIES |= {
    "bisect",
    "enum",
    "fnmatch",
    "hashlib",
    "heapq",
    "ipaddress",
    "json",
    "numpy",
    "re",
    "statistics",
    "string",
    "struct",
    "torch",
}
MODULES = {"urllib.parse"}  # of packages that reach outside elsewhere
# draws from a generator of its own, whose seed it is given
SEEDED = {"miles_async/router/policies/power_of_two.py": {"random"}}
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "compile", "__import__"}
IMPURE_ATTRIBUTES = {"random", "load", "save", "fromfile", "tofile", "memmap", "distributed", "datetime64"}


def imports(tree: ast.AST) -> set[str]:
    """The modules that a source names, also inside its functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("file", PURE)
def test_a_policy_imports_nothing_that_waits_or_reaches_outside(file: str) -> None:
    ours = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in PURE}
    named = imports(ast.parse((ROOT / file).read_text())) - SEEDED.get(file, set())
    assert {name for name in named if name not in ours | MODULES and name.partition(".")[0] not in LIBRARIES} == set()


@pytest.mark.parametrize("file", PURE)
def test_a_policy_calls_nothing_that_has_an_effect_or_is_not_repeatable(file: str) -> None:
    found = []
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            found.append(f"line {node.lineno}: {node.func.id}")
        elif isinstance(node, ast.Attribute) and node.attr in IMPURE_ATTRIBUTES:
            found.append(f"line {node.lineno}: .{node.attr}")
        elif isinstance(node, ast.Global | ast.AsyncFunctionDef | ast.Await):
            found.append(f"line {node.lineno}: {type(node).__name__}")
    assert found == []
