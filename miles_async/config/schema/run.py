"""The run itself, its model, its prompts, and what holds it together."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from miles_async.config.schema.section import CountInt, PositiveFloat, PositiveInt, Section


class Run(Section, frozen=True):
    num_steps: PositiveInt = 100  # batches of the whole run: each makes a weight version
    seed: CountInt = 1  # of a model made locally, sampling, shuffling
    target_reward: float | None = None  # stop when the mean reward of the last 5 steps reaches this
    # nothing moved for so long (no step, group, token or version): say who waits for whom and whose fault it is
    watchdog_s: PositiveFloat = 120.0
    watchdog_exit: bool = False  # end the run then as failed, with that as its reason
    # an actor silent for so long, while Redis answers, is killed and replaced
    heartbeat_timeout_s: PositiveFloat = 60.0
    # an actor that has not reached the bus for so long ends itself: its machine may be cut off, and it replaced elsewhere
    bus_lease_s: PositiveFloat = 300.0
    stop_timeout_s: PositiveFloat = 30.0  # an orderly stop takes no longer
    # an engine or a worker that `miles-async scale` takes out may finish what it has in flight for so long; then the others
    # get it
    drain_timeout_s: PositiveFloat = 300.0
    # restarts of one actor (the learner's ranks count as one) in restart_window_s; with one more the run fails
    max_restarts: CountInt = 5
    restart_window_s: PositiveFloat = 600.0  # in which restarts are counted
    # pause before the first restart; doubles with each further one in the window
    restart_backoff_s: PositiveFloat = 0.2


class Model(Section, frozen=True):
    hf_checkpoint: str  # a Hugging Face directory, or "builtin:NAME" for a tiny one made from run.seed
    # what the engine and the learner compute in; fp32 weights are kept by the optimizer
    dtype: Literal["float32", "bfloat16"] = "float32"
    # where the engine and the learner compute; "auto": on a GPU where there is one
    device: Literal["auto", "cpu", "cuda"] = "auto"
    model_provider: str | None = None  # a path to a function (path, dtype, device) that gives the learner's bridge
    # before the first launch of a checkpoint its log-probs in the learner are compared with transformers'
    parity_check: bool = True


class Data(Section, frozen=True):
    # a JSONL or Parquet file, or "builtin:NAME", or a list of them; "path@[a:b]" takes a slice of its rows
    prompt_data: str | list[str] = []
    # how often each of them has its turn, in proportion; None: by its prompts, so that all are seen equally often
    prompt_weights: list[PositiveFloat] | None = None
    data_source: str = "files"  # "files", or a path to ``def source(config, tokenizer) -> list[Prompt]``
    input_key: str = "input"  # the field of a row that is the prompt: a text, or a chat's messages
    label_key: str | None = "label"  # the field that the reward compares with
    metadata_key: str | None = "metadata"  # the field with a table that reward functions and rollouts get
    # the field with the tools that the chat template is given; they go into the metadata, too
    tool_key: str | None = None
    apply_chat_template: bool = False  # prompts are chats, which go through the chat template
    apply_chat_template_kwargs: dict[str, Any] = {}  # further variables of the template, such as enable_thinking
    chat_template_path: str | None = None  # a jinja file in the place of the checkpoint's template
    rollout_shuffle: bool = True  # the order of the prompts is drawn anew in each epoch
    rollout_max_prompt_len: PositiveInt | None = None  # tokens; longer prompts are left out at load


class Checkpoint(Section, frozen=True):
    save_interval: PositiveInt = 50  # steps between two checkpoints
    # how many of the newest stay; when the last one turns out to be damaged, a run goes on from the one before it, which 1
    # does not keep
    keep: PositiveInt = 2
    # the learner trains on while a checkpoint is written, from a copy of what each of its ranks writes in the memory of its
    # machine; one at a time
    async_save: bool = False
    save_hf: bool = True  # a Hugging Face export at the end
    post_save_function: str | None = None  # a path to a function (version, directory)


class Bus(Section, frozen=True):
    # of a Redis; None: a server of our own in the run directory; "env:NAME": from the environment
    url: str | None = None
    appendfsync: Literal["everysec", "always", "no"] = "everysec"  # a power cut loses a second, nothing, or more
    maxmemory_mb: PositiveInt | None = None  # of our own server; from 80 % of it on nothing new is dealt
    # a directory that all machines of the run share: published groups lie there, a file each, and Redis holds only which;
    # None: in Redis, whose memory they fill where responses are long or routes are replayed
    payload_dir: str | None = None


class Monitor(Section, frozen=True):
    tensorboard: bool = True  # event files for TensorBoard, too
    live: Literal["auto", "on", "off"] = "auto"  # the panel; "auto": on a terminal
    heartbeat_s: PositiveFloat = 1.0  # between two signs of life of an actor
    # a port of 127.0.0.1 where Prometheus finds every number of the run at /metrics while a launch lives; 0: any free one,
    # which the event "metrics_served" names; None: none
    metrics_port: Annotated[int, Meta(ge=0, le=65535)] | None = None


class Track(Section, frozen=True):
    """Where the metrics go besides the run's own directory."""

    wandb: bool = False  # a run of Weights & Biases; needs the package wandb
    # "offline": it lies in wandb/ of the run directory, and nothing is sent until `wandb sync` is called; "online": it is sent
    wandb_mode: Literal["offline", "online"] = "offline"
    wandb_project: str = "miles_async"  # the project that it belongs to
    # a run of MLflow, at MLFLOW_TRACKING_URI, or where that is not set in mlruns/ of the run directory; needs the package
    # mlflow, or mlflow-skinny
    mlflow: bool = False
    mlflow_experiment: str = "miles_async"  # the experiment that it belongs to


class Topology(Section, frozen=True):
    """Dotted paths of the actor classes, so that any role can be replaced without a patch."""

    dealer: str = "actors.dealer.Dealer"  # gives out the right to generate
    rollout: str = "actors.rollout.RolloutWorker"  # makes groups
    learner: str = "actors.learner.Learner"  # trains
    broadcaster: str = "actors.broadcaster.Broadcaster"  # brings weights to the engines
    engine: str = "actors.engine.EngineHost"  # runs an engine, or stands for one
    router: str = "actors.router.Router"  # one address for all engines
    evaluator: str = "actors.evaluator.Evaluator"  # evaluates versions of the weights
    eval_engine: str = "actors.eval_engine.EvalEngine"  # an engine of the evaluation
