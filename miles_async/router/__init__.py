"""The router: one address before all engines."""
