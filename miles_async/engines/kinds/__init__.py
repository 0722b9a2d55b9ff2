"""What serves as an engine: ``engine.kind``, one file for each kind, the table in ``table.py``."""
