"""Which groups a learner may train on, and when."""
