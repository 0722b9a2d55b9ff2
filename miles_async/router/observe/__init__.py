"""How the router sees that an engine is well: health, load, and what it does with its requests."""
