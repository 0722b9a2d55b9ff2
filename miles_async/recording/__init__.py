"""The groups of a run, kept whole on disk, and reading them again."""
