"""The learner that trains transformers' own models, each replica's shards over all ranks by torch's ``fully_shard``
(``learner.train_backend = "fsdp"``)."""
