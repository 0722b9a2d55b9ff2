"""Published asynchronous runs as simulations: one file for each source, its inputs and what it measured."""
