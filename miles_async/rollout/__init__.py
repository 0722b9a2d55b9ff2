"""Rollout functions: from a ticket to unscored samples."""
