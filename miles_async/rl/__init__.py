"""The mathematics of reinforcement learning: plain functions on tensors, no configuration, no I/O."""
