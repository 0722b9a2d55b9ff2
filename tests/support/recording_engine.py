"""An engine that writes down what it sampled: put in place through ``[topology]``."""

from __future__ import annotations

import json

from actors.engine import EngineHost
from actors.runtime.context import ActorContext
from miles_async.engines.embedded import frontend
from miles_async.engines.embedded.request import EngineRequest, version_spans


class RecordingEngine(EngineHost):
    """One line for each request that ended, in ``sampled/NAME.jsonl`` of the run directory: prompt, output, log-probs and the
    version of each token. They are read from the scheduler's own state, before an answer is made of it."""

    def __init__(self, ctx: ActorContext) -> None:
        super().__init__(ctx)
        directory = ctx.run_dir / "sampled"
        directory.mkdir(exist_ok=True)
        log = (directory / f"{ctx.name}.jsonl").open("a", buffering=1)
        render = frontend.render

        def recorded(request: EngineRequest, codec: frontend.TextCodec) -> dict[str, object]:
            output = request.output
            spans = version_spans(request.version_events, request.version, len(output))
            versions = [int(span["version"]) for span in spans for _ in range(span["start"], span["end"])]
            line = {"prompt": request.item.prompt, "output": output, "logprobs": request.logprobs, "versions": versions}
            log.write(json.dumps(line) + "\n")
            return render(request, codec)

        frontend.render = recorded
