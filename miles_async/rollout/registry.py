"""The functions that make rollouts, by the keys that name them (signatures: ``miles_async/rollout/interface.py``)."""

from __future__ import annotations

from miles_async.config.schema import RunConfig
from miles_async.hooks.hook import Hook
from miles_async.rollout.interface import RolloutFunction

SINGLE_TURN = "single_turn"

ROLLOUT = Hook(
    "rollout.rollout_function",
    ("ticket", "context"),
    returns="an awaitable of the samples of a group",
    form="async",
    default=f'"{SINGLE_TURN}", or "per_sample" with any other generate function',
    built_in={name: f"miles_async.rollout.{name}.rollout" for name in (SINGLE_TURN, "per_sample", "sft")},
)
GENERATE = Hook(
    "rollout.generate_function",
    ("ticket", "index", "context"),
    returns="an awaitable of the samples of one rollout",
    form="async",
    default=SINGLE_TURN,
    built_in={name: f"miles_async.rollout.{name}.generate" for name in (SINGLE_TURN, "multi_turn", "agent")},
)
TOOL_CALL_PARSER = Hook(
    "rollout.tool_call_parser",
    ("text",),
    returns='the calls in a turn\'s text, {"name", "arguments"} each',
    default="qwen",
    built_in={name: f"miles_async.rollout.tool_calls.{name}" for name in ("qwen", "python_tag")},
)
EXECUTE_TOOL = Hook(
    "rollout.execute_tool_function",
    ("name", "arguments", "metadata"),
    returns="an awaitable of the tool's answer, a text",
    form="async",
    default='none; "multi_turn" needs one',
)

AGENT = Hook(
    "rollout.agent_function",
    ("task",),
    returns="the reward, a dict of numbers with one, None (reward.rm_type grades then), or an awaitable of one of them",
    default='none; "agent" needs one',
    form="either",
)

HOOKS = (ROLLOUT, GENERATE, TOOL_CALL_PARSER, EXECUTE_TOOL, AGENT)


def rollout_function(config: RunConfig) -> RolloutFunction:
    """What makes the groups of a run. Raises HookError."""
    rollout = config.rollout
    singly = rollout.generate_function != SINGLE_TURN or rollout.request_per_sample
    return ROLLOUT.load(
        "per_sample" if rollout.rollout_function == SINGLE_TURN and singly else rollout.rollout_function
    )
