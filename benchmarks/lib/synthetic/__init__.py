"""A synthetic engine's parts: the clock in the place of a model (``batch.py``), its place in the event loop, its weights."""
