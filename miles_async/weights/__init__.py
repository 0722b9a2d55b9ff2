"""The weight plane: the learner's snapshot, its buckets, the process group, and the push that updates engines."""
