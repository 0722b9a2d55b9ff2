"""A whole run by events, without a model: what a policy, a fleet and a learner come to."""
