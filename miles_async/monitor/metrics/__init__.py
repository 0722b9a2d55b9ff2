"""Every metric of a run's record, declared: its name, its unit, which actor reports it, what it says, Miles' name for it."""
