"""Going on with a run: what may have changed, and what there is to go on from."""
