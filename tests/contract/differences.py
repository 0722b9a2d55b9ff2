"""The whole list of what SGLang and the embedded engine are allowed to do differently, each with its reason.

A test that meets one asks :func:`differs`; whatever is not in this table is required of both.
"""

from __future__ import annotations

from contract.client import Engine

# promise -> (the engine that does not keep it, why)
DIFFERENCES: dict[str, tuple[str, str]] = {
    "sampling_seed makes a response repeatable": (
        "sglang",
        "it uses the seed under --enable-deterministic-inference only, which needs Triton kernels: not on a CPU",
    ),
    "an unknown token id is refused": (
        "sglang",
        "it does not check: the scheduler fails with an IndexError and takes the server down, so nobody may send one",
    ),
    "known prefixes are cached": (
        "embedded",
        "it has no prefix cache: cached_tokens is always 0",
    ),
    "log-probs of other tokens, and texts beside them": (
        "embedded",
        "nothing of ours asks for them; it refuses the field by name instead of leaving the answer out",
    ),
    "a paused engine is not healthy": (
        "embedded",
        "it answers /health at once and without generating, so that a health check in a pause costs nobody 20 s",
    ),
    "routes are of the pass that gave the log-prob, through a retraction": (
        "sglang",
        "it returns those of the last pass, which computed the prefix again; what was sampled before is then not trained on",
    ),
}


def differs(engine: Engine, promise: str) -> bool:
    """Whether ``engine`` is excused from ``promise``, which must be in the table."""
    return DIFFERENCES[promise][0] == engine.kind
