"""What is imported once for learners: Megatron, where torch is built for the CPU only, since CUDA does not survive a fork.
Imported by the learners' fork server, and by nobody else."""

from __future__ import annotations

from actors.runtime.placement.preloaded import for_good, import_all

with for_good("miles-async fork server of learners"):
    import_all(("uvloop", "actors.runtime.placement.local", "safetensors.torch"))
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        from miles_async.train import cpu_shim
        from miles_async.train.quiet_megatron import quiet_megatron

        quiet_megatron()
        cpu_shim.install(torch.device("cpu"))  # Megatron cannot be imported before
        import_all(
            (
                "actors.learner",
                "miles_async.train.trainer",
                "miles_async.train.attention",
                "megatron.core.optimizer",
            )
        )
