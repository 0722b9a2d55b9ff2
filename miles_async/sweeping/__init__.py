"""A grid of runs: planned, run, put beside each other."""
