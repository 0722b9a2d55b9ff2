"""Runs from Python, in a program or a notebook.

    import miles_async as ma

    run = ma.launch("run.toml", run={"num_steps": 20}, learner={"lr": 1e-5})
    run.wait()
    run.metrics()
    run.samples(step=20)
    run = ma.load("runs/run-20260101-120000")

Promises: what is wrong with a configuration is raised here, as the line that the command line says, before anything
starts. A run is processes of its own: only :meth:`Run.wait` and :meth:`Run.stop` wait for it, an event loop that runs
here does not matter, and it goes on when this program ends.
"""

from miles_async.api.run import Run, RunFailedError, load
from miles_async.api.starting import configuration, launch

__all__ = ["Run", "RunFailedError", "configuration", "launch", "load"]
