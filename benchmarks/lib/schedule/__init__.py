"""The parts of ``bench schedule``: a trace of generation times, what it would take at best, and a run on it."""
