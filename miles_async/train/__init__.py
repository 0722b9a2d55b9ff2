"""The training backend: Megatron-core on a CPU (gloo) or GPUs (NCCL), one code path."""
