"""Which flags of the sglang server a configuration may give: all but those that something else decides or that break a run.

Promises: pure; a flag is known by each of its spellings, as ``--flag value``, ``--flag=value`` and abbreviated; what is refused
is refused with one line that says what to set in its place. Flags are those of sglang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from miles_async.config.schema import ConfigError

# flag -> what decides it: given twice, one of the two would be ignored
DECIDED = {
    "--model-path": "model.hf_checkpoint",
    "--model": "model.hf_checkpoint",
    "--device": "model.device",
    "--dtype": "model.dtype",
    "--max-running-requests": "engine.max_running_requests",
    "--context-length": "engine.context_length",
    "--tp-size": "engine.tp_size",
    "--tensor-parallel-size": "engine.tp_size",
    "--api-key": "engine.api_key",
    "--admin-api-key": "engine.api_key",
    "--host": "the run, which has each server listen on loopback",
    "--port": "the run, which gives each server a free one",
    "--weight-version": "the run, which counts versions from 0",
    "--config": "engine.args, which takes every flag",
}
RANKS = (
    "a server is one rank of the weight group for each tensor-parallel one: use engine.num_engines and engine.tp_size"
)
ONE_PROCESS = "aborts and versions are exact with one tokenizer process only"
# flag -> (the one value that is allowed, None: none is; why)
BREAKING: dict[str, tuple[str | None, str]] = {
    "--dp-size": ("1", RANKS),
    "--data-parallel-size": ("1", RANKS),
    "--attn-dp-size": ("1", RANKS),
    "--attention-data-parallel-size": ("1", RANKS),
    "--enable-dp-attention": (None, RANKS),
    "--pp-size": ("1", RANKS),
    "--pipeline-parallel-size": ("1", RANKS),
    "--nnodes": ("1", "the driver starts one process on its own machine: start it yourself, engine.kind = external"),
    "--tokenizer-worker-num": ("1", ONE_PROCESS),
    "--skip-tokenizer-init": (None, "stop strings and texts need the tokenizer"),
    "--is-embedding": (None, "an engine has to generate"),
    "--disaggregation-mode": ("null", "an engine has to prefill and to decode"),
    "--grpc-mode": (None, "engines are spoken to over HTTP"),
    "--smg-grpc-mode": (None, "engines are spoken to over HTTP"),
    "--ssl-certfile": (None, "engines on loopback are spoken to in plain HTTP"),
    "--ssl-keyfile": (None, "engines on loopback are spoken to in plain HTTP"),
    "--checkpoint-engine-wait-weights-before-ready": (None, "the weights come only to a server that is ready"),
    "--delete-ckpt-after-loading": (None, "the checkpoint is the run's, and a server that is replaced needs it"),
}
# version 0 is served as it was loaded: nothing is sent to an engine that says it has it
LOAD_FORMAT, UNTRUE_FORMATS = ("--load-format",), ("dummy",)


def check_args(key: str, args: Sequence[str]) -> None:
    """Refuse flags that something else decides, or with which a server is no engine of a run. ``key``: where they stand.

    Raises ConfigError.
    """
    for place, word in enumerate(args):
        if not word.startswith("--"):
            continue
        given, equals, after = word.partition("=")
        value = after if equals else next(iter(args[place + 1 : place + 2]), "")
        if (flag := _among(DECIDED, given)) is not None:
            raise ConfigError(f"{key}: {given} is not taken, {DECIDED[flag]} decides it")
        if (flag := _among(BREAKING, given)) is not None:
            allowed, why = BREAKING[flag]
            if allowed is None:
                raise ConfigError(f"{key}: {given} is refused: {why}")
            if value != allowed:
                raise ConfigError(f"{key}: {given} {value} is refused, {allowed} is allowed: {why}")
        if _among(LOAD_FORMAT, given) is not None and value in UNTRUE_FORMATS:
            raise ConfigError(f"{key}: {given} {value} is refused: version 0 would not be the checkpoint")


def _among(flags: Iterable[str], given: str) -> str | None:
    """The flag that ``given`` is, or that argparse takes it for; None: none of these."""
    if given in flags:
        return given
    # argparse takes abbreviations; apart from --model no flag of sglang's is the beginning of one of these
    return next((flag for flag in flags if len(given) > 3 and flag.startswith(given)), None)
