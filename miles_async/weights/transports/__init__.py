"""How the weights get from a snapshot into engines: ``weights.transport``, one file for each way, the table in ``table.py``."""
