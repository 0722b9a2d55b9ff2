"""Evaluation: named datasets with their own sampling and reward, at an exact weight version, beside the training."""
