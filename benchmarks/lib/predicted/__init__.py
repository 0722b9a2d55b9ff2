"""The parts of ``bench simulator_table``: a world of synthetic engines, what runs in it, and what a simulation makes of it."""
