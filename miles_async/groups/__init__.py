"""What may be trained: one validator for publication and training."""
