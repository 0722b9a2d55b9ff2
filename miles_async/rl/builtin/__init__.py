"""The built-ins of an algorithm: what a configuration can name, as functions of the form that a user's own have."""
