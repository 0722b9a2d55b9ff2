"""The parts of ``make gpu-check`` (benchmarks/gpu_check.py), each in a process of its own."""
