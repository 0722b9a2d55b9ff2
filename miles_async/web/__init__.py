"""Runs as a page in a browser: what `status`, `inspect` and `compare` say, live; nothing here changes a run."""
