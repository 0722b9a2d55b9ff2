"""Which engine gets the next request: pure objects, without I/O and without a clock."""
