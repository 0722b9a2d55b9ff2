"""Planted bugs, one for each line that upholds an invariant, and the command that shows that a test catches each."""
